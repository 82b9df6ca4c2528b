"""What a frozen encoder hears of a source, computed once: its states in one float16 file that is mapped.

Letters of shapes: B utterances, T encoder frames, D width, F feature frames, M mel bins.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ctxasr_ray.models import checkpoint
from ctxasr_ray.training import cache
from ctxasr_ray.training.examples import pad_windows
from ctxasr_ray.training.heard import warp_mel
from ctxasr_ray.training.progress import bar

if TYPE_CHECKING:
    from ctxasr_ray.models.frame_encoder import FrameEncoder
    from ctxasr_ray.training.features import Features

BATCH = 8
"""Utterances in one pass."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """States of every utterance of a source, in its order.

    Args:
        states: (all frames, D) float16.
        ends: (N,) where each utterance's frames end.
    """

    states: npt.NDArray[np.float16]
    ends: npt.NDArray[np.int64]

    def __getitem__(self, index: int) -> npt.NDArray[np.float32]:
        """(T, D) of one utterance, a fresh copy."""
        return self.states[self.ends[index - 1] if index else 0 : self.ends[index]].astype(np.float32)


def encode(spoken: "Features", encoder: "FrameEncoder", path: Path, *, warp: float = 0.0) -> Encoded:
    """Runs the encoder over a source, or opens what an earlier start has computed of the same features.

    Args:
        spoken: Log-mel features by the encoder's own extractor.
        encoder: Frozen.
        path: File that holds the result (npy), the digest of what it is made of appended to its name; its lengths lie
            beside it.
        warp: Largest stretch of the mel axis, drawn for each utterance; see `heard.warp_mel`.
    """
    made_of = {"features": spoken.digest, "encoder": checkpoint.fingerprint(encoder.name)["model"], "warp": warp}
    path = cache.keyed(path, made_of)
    index = path.with_suffix(".json")
    if not index.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = list(_states(spoken, encoder, warp))
        temporary = path.with_suffix(".tmp.npy")
        np.save(temporary, np.concatenate(rows) if rows else np.zeros((0, encoder.width), np.float16))
        temporary.replace(path)
        index.write_text(json.dumps({"num_frames": [len(row) for row in rows]}), "utf-8")
    frames = json.loads(index.read_text("utf-8"))["num_frames"]
    return Encoded(np.load(path, mmap_mode="r"), np.cumsum(frames, dtype=np.int64))


def _states(spoken: "Features", encoder: "FrameEncoder", warp: float) -> Iterator[npt.NDArray[np.float16]]:
    """(T, D) of each utterance in order; encoders without a window hear one at a time, so that none is padded."""
    import torch

    windowed = hasattr(encoder.extractor, "n_samples")
    size = BATCH if windowed else 1
    with bar("encoder", len(spoken)) as advance, torch.inference_mode():
        for start in range(0, len(spoken), size):
            batch = range(start, min(start + size, len(spoken)))
            rows = [spoken[i] for i in batch]
            if warp:
                rows = [
                    warp_mel(row, np.random.default_rng([0, i]).uniform(-warp, warp))
                    for i, row in zip(batch, rows, strict=True)
                ]
            if windowed:
                states_BTD = encoder(pad_windows(rows, int(encoder.extractor.nb_max_frames)))
                frames = [heard_frames(encoder, int(spoken.lengths[i])) for i in batch]
            else:
                mask = torch.ones((1, len(rows[0])), dtype=torch.bool)
                states_BTD = encoder(torch.from_numpy(rows[0])[None], attention_mask=mask)
                frames = [states_BTD.shape[1]]
            for own_TD, num_frames in zip(states_BTD.float().cpu().numpy(), frames, strict=True):
                yield own_TD[:num_frames].astype(np.float16)
                advance("")


def heard_frames(encoder: "FrameEncoder", num_features: int) -> int:
    """Frames of a windowed encoder that hear so many feature frames of speech."""
    extractor = encoder.extractor
    positions = int(encoder.module.config.max_source_positions)
    return max(1, encoder.num_frames(num_features * int(extractor.hop_length), positions))
