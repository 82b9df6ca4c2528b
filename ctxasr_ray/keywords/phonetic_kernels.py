"""Sounds compared by numba: graded distances, and the phrases that share pairs of like phones with a span.

A list of N phrases in the order of their lengths is a table of bits, a row per pair of classes of phones, a bit per
phrase. The pairs of a span are counted for 64 phrases at a time, in the binary digits of six words, so that fifty
thousand phrases cost a few microseconds; only those that share most are compared phone by phone.
Letters: A phones, K classes, Q spans, N phrases, W words of 64 phrases.
"""

from typing import Final, NamedTuple

import numba
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Words = npt.NDArray[np.uint64]
Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]

_DIGITS: Final = 6
_MOST_PAIRS: Final = 2**_DIGITS - 1
"""Distinct pairs of a span that are counted, its first ones."""


class Sounds(NamedTuple):
    """Some sounds, one behind the other."""

    phones: Int32s
    offsets: Int64s
    """Sound n is phones[offsets[n]] to phones[offsets[n + 1]]."""


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]  # numba is untyped
def _cost(heard: Int32s, phrase: Int32s, swap: Floats, gap: Floats, row: Floats, limit: float) -> float:
    """The cheapest way from one sound to the other; infinite as soon as it must be above a limit."""
    size = len(phrase)
    row[0] = 0.0
    for j in range(size):
        row[j + 1] = row[j] + gap[phrase[j]]
    for i in range(len(heard)):
        phone = heard[i]
        diagonal = row[0]
        row[0] += gap[phone]
        least = row[0]
        for j in range(size):
            best = min(diagonal + swap[phone, phrase[j]], row[j + 1] + gap[phone], row[j] + gap[phrase[j]])
            diagonal = row[j + 1]
            row[j + 1] = best
            least = min(least, best)
        if least > limit:
            return np.inf
    return float(row[size])


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]  # numba is untyped
def all_distances(heard: Sounds, phrases: Sounds, swap: Floats, gap: Floats, largest_N: Floats) -> Floats:
    """(Q, N) distances per phone of the phrase; infinite above `largest_N`, 1 of an empty phrase."""
    num_heard, num_phrases = len(heard.offsets) - 1, len(phrases.offsets) - 1
    out = np.ones((num_heard, num_phrases))
    for n in range(num_phrases):
        phrase = phrases.phones[phrases.offsets[n] : phrases.offsets[n + 1]]
        if len(phrase) == 0:
            continue
        row = np.empty(len(phrase) + 1)
        whole = gap[phrase].sum()
        limit = largest_N[n] * whole
        for q in range(num_heard):
            one = heard.phones[heard.offsets[q] : heard.offsets[q + 1]]
            out[q, n] = _cost(one, phrase, swap, gap, row, limit) / whole
    return out


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]  # numba is untyped
def pair_bits(phrases: Sounds, classes: Int32s, edge: int) -> Words:
    """(K * K, W) bit n % 64 of word n // 64 is set where phrase n has a pair; `edge` is the class of its two ends."""
    num_classes, num_phrases = edge + 1, len(phrases.offsets) - 1
    bits = np.zeros((num_classes * num_classes, (num_phrases + 63) // 64), dtype=np.uint64)
    for n in range(num_phrases):
        mine = np.uint64(1) << np.uint64(n % 64)
        before = edge
        for i in range(phrases.offsets[n], phrases.offsets[n + 1]):
            now = classes[phrases.phones[i]]
            bits[before * num_classes + now, n // 64] |= mine
            before = now
        bits[before * num_classes + edge, n // 64] |= mine
    return bits


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]  # numba is untyped
def _add(bits_W: Words, digits: Words, low: int, high: int) -> None:
    """Adds one where a bit is set."""
    zeros, ones, twos, threes, fours, fives = digits
    for w in range(low, high):
        carry = bits_W[w]
        zeros[w], carry = zeros[w] ^ carry, zeros[w] & carry
        ones[w], carry = ones[w] ^ carry, ones[w] & carry
        twos[w], carry = twos[w] ^ carry, twos[w] & carry
        threes[w], carry = threes[w] ^ carry, threes[w] & carry
        fours[w], carry = fours[w] ^ carry, fours[w] & carry
        fives[w] ^= carry


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]  # numba is untyped
def _ones(word: np.uint64) -> int:
    """How many bits of a word are set."""
    word -= (word >> np.uint64(1)) & np.uint64(0x5555555555555555)
    word = (word & np.uint64(0x3333333333333333)) + ((word >> np.uint64(2)) & np.uint64(0x3333333333333333))
    word = (word + (word >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return int((word * np.uint64(0x0101010101010101)) >> np.uint64(56))


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]  # numba is untyped
def _with_at_least(num: int, digits: Words, allowed_W: Words, low: int, high: int, out_W: Words) -> int:
    """Marks the allowed phrases that were counted so often, and returns how many they are."""
    all_ones = np.uint64(0xFFFFFFFFFFFFFFFF)
    out_W[low:high] = 0
    equal_W = np.full(high - low, all_ones)
    for digit in range(_DIGITS - 1, -1, -1):
        if (num >> digit) & 1:
            for w in range(low, high):
                equal_W[w - low] &= digits[digit, w]
        else:
            for w in range(low, high):
                out_W[w] |= equal_W[w - low] & digits[digit, w]
                equal_W[w - low] &= ~digits[digit, w]
    total = 0
    for w in range(low, high):
        out_W[w] = (out_W[w] | equal_W[w - low]) & allowed_W[w]
        total += _ones(out_W[w])
    return total


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]  # numba is untyped
def _mark_most_shared(
    least: int, most: int, enough: int, digits: Words, allowed_W: Words, low: int, high: int, out_W: Words
) -> None:
    """Marks the phrases with the largest count that enough of them reach, else with the least."""
    while least < most:
        middle = (least + most + 1) // 2
        if _with_at_least(middle, digits, allowed_W, low, high, out_W) >= enough:
            least = middle
        else:
            most = middle - 1
    _with_at_least(least, digits, allowed_W, low, high, out_W)


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]  # numba is untyped
def _pairs(one: Int32s, classes: Int32s, edge: int, seen: npt.NDArray[np.bool_], pairs: Int64s) -> int:
    """Writes the distinct pairs of a sound, and returns their number."""
    num, before = 0, edge
    for i in range(len(one) + 1):
        now = classes[one[i]] if i < len(one) else edge
        pair = before * (edge + 1) + now
        before = now
        if not seen[pair] and num < _MOST_PAIRS:
            seen[pair] = True
            pairs[num] = pair
            num += 1
    for i in range(num):
        seen[pairs[i]] = False
    return num


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]  # numba is untyped
def near(
    heard: Sounds,
    first_Q: Int64s,
    stop_Q: Int64s,
    phrases: Sounds,
    bits: Words,
    allowed_W: Words,
    classes: Int32s,
    edge: int,
    swap: Floats,
    gap: Floats,
    looked_at: int,
    least_shared: float,
    max_distance: float,
    max_edits: float,
) -> tuple[Int64s, Int64s, Floats]:
    """The phrases near each span: (spans, phrases, distances), the spans in their order.

    Args:
        heard: Q spans.
        first_Q: The first phrase that is long enough for a span.
        stop_Q: The first phrase that is too long.
        phrases: N, by ascending length.
        bits: From `pair_bits`.
        allowed_W: A bit per phrase that may be found.
        classes: (A,) of the phones.
        edge: Class of the ends, the last one.
        swap: (A, A), as `phonetic.costs`.
        gap: (A,), likewise.
        looked_at: The phrases that share most pairs are compared, so many and those that share as many as the last.
        least_shared: Share of a span's pairs that a phrase must have, at least two of them.
        max_distance: Per phone of the phrase.
        max_edits: Plain edits per phone of the span.
    """
    other = 1.0 - np.eye(len(gap))
    unit = np.ones(len(gap))
    digits = np.zeros((_DIGITS, bits.shape[1]), dtype=np.uint64)
    out_W = np.zeros(bits.shape[1], dtype=np.uint64)
    seen, pairs = np.zeros(bits.shape[0], dtype=np.bool_), np.empty(_MOST_PAIRS, dtype=np.int64)
    row = np.empty(np.diff(phrases.offsets).max() + 1)
    spans, found, apart = [np.int64(0) for _ in range(0)], [np.int64(0) for _ in range(0)], [0.0 for _ in range(0)]
    for q in range(len(heard.offsets) - 1):
        one = heard.phones[heard.offsets[q] : heard.offsets[q + 1]]
        if len(one) == 0 or first_Q[q] >= stop_Q[q]:
            continue
        low, high = first_Q[q] // 64, (stop_Q[q] - 1) // 64 + 1
        digits[:, low:high] = 0
        num = _pairs(one, classes, edge, seen, pairs)
        for i in range(num):
            _add(bits[pairs[i]], digits, low, high)
        least = max(2, int(least_shared * num))
        _mark_most_shared(least, num, looked_at, digits, allowed_W, low, high, out_W)
        for w in range(low, high):
            left = out_W[w]
            while left:
                lowest = left & (~left + np.uint64(1))
                left ^= lowest
                n = 64 * w + _ones(lowest - np.uint64(1))
                if n < first_Q[q] or n >= stop_Q[q]:
                    continue
                phrase = phrases.phones[phrases.offsets[n] : phrases.offsets[n + 1]]
                edits = np.floor(max_edits * len(one))
                if _cost(one, phrase, other, unit, row, edits) > edits:
                    continue
                whole = gap[phrase].sum()
                distance = _cost(one, phrase, swap, gap, row, max_distance * whole) / whole
                if distance <= max_distance:
                    spans.append(np.int64(q))
                    found.append(np.int64(n))
                    apart.append(distance)
    return np.array(spans), np.array(found), np.array(apart)
