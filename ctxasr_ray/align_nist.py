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


def _walk(references: Any, reference_lengths: Any, hypotheses: Any, hypothesis_lengths: Any) -> Any:
    capacity = len(references) + len(hypotheses)
    pairs, ops = np.empty(capacity, np.int64), np.empty(capacity, np.int8)
    rows, columns = np.empty(capacity, np.int64), np.empty(capacity, np.int64)
    came_by = np.empty(np.max((reference_lengths + 1) * (hypothesis_lengths + 1)), np.int8)
    num_edits, reference_end, hypothesis_end = 0, 0, 0
    for pair in range(len(reference_lengths)):
        i, j = reference_lengths[pair], hypothesis_lengths[pair]
        width = j + 1
        reference_start, hypothesis_start = reference_end, hypothesis_end
        reference_end, hypothesis_end = reference_end + i, hypothesis_end + j
        _filled(references[reference_start:reference_end], hypotheses[hypothesis_start:hypothesis_end], came_by)
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
    references: npt.NDArray[np.uint32],
    reference_lengths: npt.NDArray[np.int64],
    hypotheses: npt.NDArray[np.uint32],
    hypothesis_lengths: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int8], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Aligns P pairs, one table of (n + 1)(m + 1) bytes at a time.

    Args:
        references: Codes of all references in one line.
        reference_lengths: (P,) units of each.
        hypotheses: Codes of all hypotheses in one line.
        hypothesis_lengths: (P,) units of each.

    Returns:
        pair, op, reference_index and hypothesis_index as in `align.Edits`.
    """
    if not len(reference_lengths):
        none = np.zeros(0, np.int64)
        return none, none.astype(np.int8), none, none
    pair, op, reference_index, hypothesis_index = _compiled_walk(
        references, reference_lengths, hypotheses, hypothesis_lengths
    )
    return pair, op, reference_index, hypothesis_index
