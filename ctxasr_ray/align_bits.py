"""Edit distances of many pairs, compiled: 64 units of the reference in one step, a bit for each.

The bit masks of a reference are made once for all pairs in a row that share it, as the hypotheses of a list do.

Reference:
    Myers 1999, A fast bit-vector algorithm for approximate string matching based on dynamic programming, JACM 46(3);
    with blocks as in Hyyro 2003, A bit-vector algorithm for computing Levenshtein and Damerau edit distances.
"""

from typing import Any, Final

import numba
import numpy as np
import numpy.typing as npt

_ONE: Final = np.uint64(1)
_NONE: Final = np.uint64(0)
_LAST: Final = np.uint64(63)


def _marked(reference: Any, num_blocks: Any, symbols: Any, masks: Any) -> Any:
    """Numbers the units of a reference in `symbols` and sets their bits in `masks`, a row each; row 0: no such unit."""
    if masks.size < (len(reference) + 1) * num_blocks:
        masks = np.empty(2 * (len(reference) + 1) * num_blocks, np.uint64)
    masks[:num_blocks] = 0
    num_symbols = 1
    for i in range(len(reference)):
        if symbols[reference[i]] == 0:
            symbols[reference[i]] = num_symbols
            masks[num_symbols * num_blocks : (num_symbols + 1) * num_blocks] = 0
            num_symbols += 1
        masks[symbols[reference[i]] * num_blocks + (i >> 6)] |= _ONE << np.uint64(i & 63)
    return masks


_compiled_marked: Final = numba.njit(cache=True, nogil=True)(_marked)


def _one_block(hypothesis: Any, symbols: Any, masks: Any, reference_length: Any) -> Any:
    """The distance from a reference of at most 64 units; `grown` and `fallen` are the steps down a column."""
    grown, fallen, last, distance = ~_NONE, _NONE, np.uint64(reference_length - 1), reference_length
    for j in range(len(hypothesis)):
        match = masks[symbols[hypothesis[j]]]
        same = (((match & grown) + grown) ^ grown) | match | fallen
        grows, falls = fallen | ~(same | grown), same & grown
        distance += np.int64((grows >> last) & _ONE) - np.int64((falls >> last) & _ONE)
        grows, falls = (grows << _ONE) | _ONE, falls << _ONE
        grown, fallen = falls | ~(same | grows), same & grows
    return distance


_compiled_one_block: Final = numba.njit(cache=True, nogil=True)(_one_block)


def _many_blocks(hypothesis: Any, symbols: Any, masks: Any, reference_length: Any, num_blocks: Any) -> Any:
    """The same from a longer one, steps along a row carried from block to block."""
    grown, fallen = np.full(num_blocks, ~_NONE), np.zeros(num_blocks, np.uint64)
    last, distance = np.uint64((reference_length - 1) & 63), reference_length
    for j in range(len(hypothesis)):
        row, grows_above, falls_above = symbols[hypothesis[j]] * num_blocks, _ONE, _NONE
        for block in range(num_blocks):
            match, more = masks[row + block] | falls_above, grown[block]
            same = (((match & more) + more) ^ more) | match | fallen[block]
            grows, falls = fallen[block] | ~(same | more), same & more
            if block == num_blocks - 1:
                distance += np.int64((grows >> last) & _ONE) - np.int64((falls >> last) & _ONE)
            shifted = (grows << _ONE) | grows_above
            grown[block] = (falls << _ONE) | falls_above | ~(same | shifted)
            fallen[block] = same & shifted
            grows_above, falls_above = grows >> _LAST, falls >> _LAST
    return distance


_compiled_many_blocks: Final = numba.njit(cache=True, nogil=True)(_many_blocks)


def _distances(
    codes: Any, num_codes: Any, reference_starts: Any, reference_lengths: Any, starts: Any, lengths: Any
) -> Any:
    found = np.empty(len(starts), np.int32)
    symbols, masks = np.zeros(num_codes, np.int32), np.empty(256, np.uint64)
    reference, num_blocks = codes[:0], 0
    for pair in range(len(starts)):
        at, size = reference_starts[pair], reference_lengths[pair]
        if pair == 0 or at != reference_starts[pair - 1] or size != reference_lengths[pair - 1]:
            for i in range(len(reference)):
                symbols[reference[i]] = 0
            reference, num_blocks = codes[at : at + size], (size + 63) >> 6
            masks = _compiled_marked(reference, num_blocks, symbols, masks)
        hypothesis = codes[starts[pair] : starts[pair] + lengths[pair]]
        if num_blocks == 0:
            found[pair] = lengths[pair]
        elif num_blocks == 1:
            found[pair] = _compiled_one_block(hypothesis, symbols, masks, size)
        else:
            found[pair] = _compiled_many_blocks(hypothesis, symbols, masks, size, num_blocks)
    return found


_compiled_distances: Final = numba.njit(cache=True, nogil=True)(_distances)


def unit_distances(
    codes: npt.NDArray[np.uint32],
    reference_starts: npt.NDArray[np.int64],
    reference_lengths: npt.NDArray[np.int64],
    starts: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
) -> npt.NDArray[np.int32]:
    """(P,) substitutions, deletions and insertions together, each at a cost of one.

    Args:
        codes: The units of all sequences in one line.
        reference_starts: (P,) where the reference of each pair starts in it.
        reference_lengths: (P,) units of each.
        starts: (P,) the same for the hypotheses.
        lengths: (P,)
    """
    num_codes = int(codes.max(initial=0)) + 1
    found: npt.NDArray[np.int32] = _compiled_distances(
        codes, num_codes, reference_starts, reference_lengths, starts, lengths
    )
    return found
