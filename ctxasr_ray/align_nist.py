"""The `nist` alignment of `align.py`, compiled: substitution 4, deletion 3, insertion 3, diagonal first on ties."""

from typing import Any, Final

import numba
import numpy as np
import numpy.typing as npt

_SUBSTITUTION, _DELETION, _INSERTION = 1, 2, 3


def _fill(reference: Any, hypothesis: Any, came_by: Any) -> None:
    """Writes into `came_by`, (n + 1) x (m + 1) in one line, the op by which the best path enters each cell."""
    n, m = len(reference), len(hypothesis)
    width = m + 1
    cost = np.arange(width) * 3
    came_by[:width] = _INSERTION
    for i in range(1, n + 1):
        diagonal, cost[0] = cost[0], i * 3
        came_by[i * width] = _DELETION
        for j in range(1, width):
            op = np.int8(reference[i - 1] != hypothesis[j - 1])  # 0 hit, 1 substitution
            best = diagonal + 4 * op
            if cost[j] + 3 < best:
                best, op = cost[j] + 3, np.int8(_DELETION)
            if cost[j - 1] + 3 < best:
                best, op = cost[j - 1] + 3, np.int8(_INSERTION)
            diagonal, cost[j] = cost[j], best
            came_by[i * width + j] = op


_filled: Final = numba.njit(cache=True)(_fill)


def _walk(codes: Any, reference_starts: Any, reference_lengths: Any, starts: Any, lengths: Any) -> Any:
    capacity = np.sum(reference_lengths) + np.sum(lengths)
    pairs, ops = np.empty(capacity, np.int64), np.empty(capacity, np.int8)
    rows, columns = np.empty(capacity, np.int64), np.empty(capacity, np.int64)
    came_by = np.empty(np.max((reference_lengths + 1) * (lengths + 1)), np.int8)
    num_edits = 0
    for pair in range(len(lengths)):
        i, j = reference_lengths[pair], lengths[pair]
        width, reference_start, start = j + 1, reference_starts[pair], starts[pair]
        _filled(codes[reference_start : reference_start + i], codes[start : start + j], came_by)
        first = num_edits
        while i > 0 or j > 0:
            op = came_by[i * width + j]
            if op != _INSERTION:
                i -= 1
            if op != _DELETION:
                j -= 1
            if op:
                pairs[num_edits], ops[num_edits], rows[num_edits], columns[num_edits] = pair, op, i, j
                num_edits += 1
        ops[first:num_edits] = ops[first:num_edits][::-1].copy()
        rows[first:num_edits] = rows[first:num_edits][::-1].copy()
        columns[first:num_edits] = columns[first:num_edits][::-1].copy()
    return pairs[:num_edits].copy(), ops[:num_edits].copy(), rows[:num_edits].copy(), columns[:num_edits].copy()


_compiled_walk: Final = numba.njit(cache=True)(_walk)


def walk(
    codes: npt.NDArray[np.uint32],
    reference_starts: npt.NDArray[np.int64],
    reference_lengths: npt.NDArray[np.int64],
    starts: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int8], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Aligns P pairs, one table of (n + 1)(m + 1) bytes at a time.

    Args:
        codes: The units of all sequences in one line.
        reference_starts: (P,) where the reference of each pair starts in it.
        reference_lengths: (P,) units of each.
        starts: (P,) the same for the hypotheses.
        lengths: (P,)

    Returns:
        pair, op, reference_index and hypothesis_index as in `align.Edits`.
    """
    if not len(lengths):
        none = np.zeros(0, np.int64)
        return none, none.astype(np.int8), none, none
    pair, op, reference_index, hypothesis_index = _compiled_walk(
        codes, reference_starts, reference_lengths, starts, lengths
    )
    return pair, op, reference_index, hypothesis_index
