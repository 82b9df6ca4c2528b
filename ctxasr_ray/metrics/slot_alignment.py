"""The best path through slots of alternative words against a reference, compiled; see `compositional_oracle`."""

from typing import Any, Final

import numba
import numpy as np
import numpy.typing as npt


def _best(
    references: Any, reference_ends: Any, words: Any, word_ends: Any, may_be_empty: Any, slot_ends: Any, counts: Any
) -> None:
    """Writes substitutions, deletions and insertions of the best path of each utterance into `counts`, (U, 3)."""
    reference_start, slot_start = 0, 0
    for u in range(len(reference_ends)):
        reference = references[reference_start : reference_ends[u]]
        length = len(reference)
        above = np.zeros((length + 1, 4), np.int32)  # errors, substitutions, deletions, insertions
        for j in range(length + 1):
            above[j, 0], above[j, 2] = j, j
        row = np.zeros((length + 1, 4), np.int32)
        for slot in range(slot_start, slot_ends[u]):
            first = word_ends[slot - 1] if slot else 0
            skip = 0 if may_be_empty[slot] else 1
            for j in range(length + 1):
                best, came_from = above[j, 0] + skip, 3
                if j and row[j - 1, 0] + 1 <= best:
                    best, came_from = row[j - 1, 0] + 1, 2
                if j:
                    wrong = 1
                    for at in range(first, word_ends[slot]):
                        if words[at] == reference[j - 1]:
                            wrong = 0
                            break
                    if above[j - 1, 0] + wrong <= best:
                        best, came_from = above[j - 1, 0] + wrong, 1
                source = above[j] if came_from == 3 else (row[j - 1] if came_from == 2 else above[j - 1])
                row[j, 1], row[j, 2], row[j, 3] = source[1], source[2], source[3]
                if best > source[0]:
                    row[j, came_from] += 1
                row[j, 0] = best
            above, row = row, above
        counts[u, 0], counts[u, 1], counts[u, 2] = above[length, 1], above[length, 2], above[length, 3]
        reference_start, slot_start = reference_ends[u], slot_ends[u]


_compiled: Final = numba.njit(cache=True)(_best)


def best_paths(
    references: npt.NDArray[np.uint32],
    reference_ends: npt.NDArray[np.int64],
    words: npt.NDArray[np.uint32],
    word_ends: npt.NDArray[np.int64],
    may_be_empty: npt.NDArray[np.bool_],
    slot_ends: npt.NDArray[np.int64],
) -> npt.NDArray[np.int64]:
    """Aligns U references with U lines of slots at unit costs; a slot that may be empty can be passed for nothing.

    Args:
        references: Codes of all references in one line.
        reference_ends: (U,) where each ends in it.
        words: Codes of all slots' words in one line.
        word_ends: (slots,) where each slot ends in it; every slot has a word.
        may_be_empty: (slots,) whether some hypothesis has no word there.
        slot_ends: (U,) where each utterance's slots end.

    Returns:
        (U, 3) substitutions, deletions and insertions; among paths of equally many errors one that matches or
        substitutes rather than deletes, and deletes rather than inserts.
    """
    counts = np.zeros((len(reference_ends), 3), np.int64)
    _compiled(references, reference_ends, words, word_ends, may_be_empty, slot_ends, counts)
    return counts
