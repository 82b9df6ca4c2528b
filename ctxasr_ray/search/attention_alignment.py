"""Cross-attention -> the encoder positions that each token of a text was written from.

Whisper's own rule for word times: the weights of the alignment heads are standardised over the tokens, smoothed over
time, averaged, and the cheapest path through them that never goes back says where each token begins. A token lasts
until the next one, or the end, begins. Letters: H heads, L tokens, T encoder positions.

Reference:
    Radford et al. 2023, Robust speech recognition via large-scale weak supervision, arXiv 2212.04356; the rule stands
    in its code (whisper/timing.py), after Sakoe and Chiba 1978, Dynamic programming algorithm optimization for spoken
    word recognition. Smoothing the average instead of every head is ours.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from ctxasr_ray.search.ctc_state import Floats, compiled

MEDIAN_WIDTH: Final = 7
"""Positions of the smoothing filter, as in Whisper."""


def attention_spans(
    weights_HLT: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Gives first position and one past the last of every token.

    Args:
        weights_HLT: (H, L + 1, T) distributions over the positions that hear speech, the last row the end's.
    """
    centred = weights_HLT - weights_HLT.mean(axis=1, keepdims=True)
    spread = weights_HLT.std(axis=1, keepdims=True)
    mean_LT = np.divide(centred, spread, out=np.zeros_like(centred), where=spread > 0).mean(axis=0)
    margin = MEDIAN_WIDTH // 2
    if mean_LT.shape[1] > margin:
        padded = np.pad(mean_LT, ((0, 0), (margin, margin)), mode="reflect")
        mean_LT = np.median(np.lib.stride_tricks.sliding_window_view(padded, MEDIAN_WIDTH, axis=1), axis=2)
    first = _first_positions(-mean_LT.astype(np.float64))
    return first[:-1], first[1:]


@compiled
def _first_positions(costs_LT: Floats) -> npt.NDArray[np.int64]:
    """Where the cheapest monotonic path through all rows enters each of them."""
    rows, columns = costs_LT.shape
    total = np.full((rows + 1, columns + 1), np.inf)
    step = np.zeros((rows + 1, columns + 1), dtype=np.int8)  # 0 both, 1 the next row, 2 the next position
    total[0, 0] = 0.0
    for j in range(1, columns + 1):
        for i in range(1, rows + 1):
            best, how = total[i - 1, j - 1], 0
            if total[i - 1, j] < best:
                best, how = total[i - 1, j], 1
            if total[i, j - 1] < best:
                best, how = total[i, j - 1], 2
            total[i, j] = best + costs_LT[i - 1, j - 1]
            step[i, j] = how
    first = np.zeros(rows, dtype=np.int64)
    i, j = rows, columns
    while i > 0 and j > 0:
        first[i - 1] = j - 1
        move = step[i, j]
        i -= move != 2
        j -= move != 1
    return first
