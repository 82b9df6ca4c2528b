"""What a frozen encoder hears of a source, computed once: its states in one float16 file that is mapped.

Letters of shapes: B utterances, T encoder frames, D width, F feature frames, M mel bins.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ctxasr_ray.training.examples import pad_windows
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


def encode(spoken: "Features", encoder: "FrameEncoder", path: Path) -> Encoded:
    """Runs the encoder over a source, or opens what an earlier start has computed.

    Args:
        spoken: Log-mel features by the encoder's own extractor, which has a window.
        encoder: Frozen.
        path: File that holds the result (npy); its lengths lie beside it.
    """
    import torch

    index = path.with_suffix(".json")
    frames = [heard_frames(encoder, int(n)) for n in spoken.lengths]
    ends = np.cumsum(frames, dtype=np.int64)
    if not index.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = (int(ends[-1]) if len(ends) else 0, encoder.width)
        states = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)  # type: ignore[no-untyped-call]
        with bar("encoder", len(spoken)) as advance, torch.inference_mode():
            for start in range(0, len(spoken), BATCH):
                batch = range(start, min(start + BATCH, len(spoken)))
                values = pad_windows([spoken[i] for i in batch], int(encoder.extractor.nb_max_frames))
                for i, own in zip(batch, encoder(values).float().cpu().numpy(), strict=True):
                    states[ends[i] - frames[i] : ends[i]] = own[: frames[i]]
                    advance("")
        states.flush()
        index.write_text(json.dumps({"num_utterances": len(spoken)}), "utf-8")
    return Encoded(np.load(path, mmap_mode="r"), ends)


def heard_frames(encoder: "FrameEncoder", num_features: int) -> int:
    """Encoder frames that hear so many feature frames of speech."""
    extractor = encoder.extractor
    positions = int(encoder.module.config.max_source_positions)
    return max(1, encoder.num_frames(num_features * int(extractor.hop_length), positions))
