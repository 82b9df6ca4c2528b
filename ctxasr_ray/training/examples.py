"""Which utterances a speech training can use, and how their features and targets are padded.

Letters of shapes: B utterances, F feature frames, M mel bins, N tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

    from ctxasr_ray.training.features import Features


@dataclass(frozen=True, slots=True)
class TrainingExample:
    """A usable utterance: its place in the features, and its tokens."""

    index: int
    target: list[int]


def usable(
    features: "Features",
    encode: Callable[[str], list[int]],
    num_outputs: Callable[[int], int],
    *,
    max_tokens: int | None = None,
) -> tuple[list[TrainingExample], dict[str, str]]:
    """Finds the utterances whose text can be written and fits its frames.

    Args:
        features: Of the training source.
        encode: Text -> token ids; a ValueError says why a text cannot be written.
        num_outputs: Feature frames -> CTC output frames.
        max_tokens: Longest target; None is without bound.

    Returns:
        The usable ones, and for every other utterance why it is left out.
    """
    from ctxasr_ray.training.objectives import frames_needed

    kept: list[TrainingExample] = []
    left_out = dict(features.left_out)
    for index, (name, text) in enumerate(zip(features.names, features.texts, strict=True)):
        try:
            target = encode(text)
        except ValueError as error:
            left_out[name] = str(error)
            continue
        outputs = num_outputs(int(features.lengths[index]))
        if not target:
            left_out[name] = "its text is empty"
        elif frames_needed(target) > outputs:
            left_out[name] = f"its text needs {frames_needed(target)} output frames, its audio has {outputs}"
        elif max_tokens is not None and len(target) > max_tokens:
            left_out[name] = f"its text has {len(target)} tokens, the model writes at most {max_tokens}"
        else:
            kept.append(TrainingExample(index, target))
    return kept, left_out


def pad_features(rows: Sequence[npt.NDArray[np.float32]]) -> "dict[str, torch.Tensor]":
    """Pads (F, M) features with zeros to `input_features` (B, F, M) and its `attention_mask` (B, F)."""
    import torch

    longest = max(len(row) for row in rows)
    features_BFM = np.zeros((len(rows), longest, rows[0].shape[1]), np.float32)
    mask_BF = np.zeros((len(rows), longest), np.bool_)
    for place, (row, features_FM) in enumerate(zip(rows, features_BFM, strict=True)):
        features_FM[: len(row)] = row
        mask_BF[place, : len(row)] = True
    return {"input_features": torch.from_numpy(features_BFM), "attention_mask": torch.from_numpy(mask_BF)}


def pad_windows(rows: Sequence[npt.NDArray[np.float32]], num_frames: int) -> "torch.Tensor":
    """Repeats the last row of (F, M) features, which is that of padding, up to a fixed window: (B, M, num_frames)."""
    import torch

    padded = [np.concatenate([row, np.repeat(row[-1:], num_frames - len(row), axis=0)]).T for row in rows]
    return torch.from_numpy(np.ascontiguousarray(padded))


def pad_targets(targets: Sequence[Sequence[int]]) -> "torch.Tensor":
    """Pads token ids with `objectives.IGNORED` to (B, N) int64; at least one column."""
    import torch

    from ctxasr_ray.training.objectives import IGNORED

    padded_BN = np.full((len(targets), max(map(len, targets))), IGNORED, np.int64)
    for row, target in zip(padded_BN, targets, strict=True):
        row[: len(target)] = target
    return torch.from_numpy(padded_BN)
