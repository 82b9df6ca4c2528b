"""The words of many texts as numbers, compiled: one pass over their bytes, each word hashed and compared exactly."""

from typing import Any, Final

import numba
import numpy as np
import numpy.typing as npt

_FIRST_BITS: Final = 12
_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: spreads keys over the high bits


def _grown(keys: Any, bits: int) -> Any:
    """A table of 2^bits places with the numbers of all words so far."""
    table = np.full(1 << bits, -1, np.int32)
    for number in range(len(keys)):
        slot = np.int64((keys[number] * _GOLDEN) >> np.uint64(64 - bits))
        while table[slot] >= 0:
            slot = (slot + 1) & (len(table) - 1)
        table[slot] = number
    return table


_compiled_grown: Final = numba.njit(cache=True)(_grown)


def _read(data: Any, separates: Any, table: Any, bits: Any, words: Any, codes: Any, lengths: Any, done: Any) -> Any:
    """Goes on where `done` says, until the table is half full; arrays bound anew in here would cost three times."""
    keys, starts, sizes = words
    at, at_text, words_before, num_words, num_distinct = done
    while at < len(data) and 2 * num_distinct < len(table):
        byte = data[at]
        if byte <= 32 and separates[byte]:
            if byte == 10:
                lengths[at_text] = num_words - words_before
                words_before, at_text = num_words, at_text + 1
            at += 1
            continue
        start, key = at, np.uint64(0)
        while byte > 32 or not separates[byte]:
            key = ((key << np.uint64(8)) | (key >> np.uint64(56))) ^ np.uint64(byte)
            at += 1
            byte = data[at]
        size = at - start
        slot = np.int64((key * _GOLDEN) >> np.uint64(64 - bits))
        while True:
            number = table[slot]
            if number < 0:
                table[slot] = number = num_distinct
                keys[number], starts[number], sizes[number] = key, start, size
                num_distinct += 1
                break
            if keys[number] == key and sizes[number] == size:
                same, known = True, starts[number]
                for i in range(size if size > 8 else 0):  # up to 8 bytes the key is the word itself
                    same &= data[known + i] == data[start + i]
                if same:
                    break
            slot = (slot + 1) & (len(table) - 1)
        codes[num_words] = number
        num_words += 1
    return at, at_text, words_before, num_words, num_distinct


_compiled_read: Final = numba.njit(cache=True, nogil=True)(_read)


def word_numbers(
    data: npt.NDArray[np.uint8], separates: npt.NDArray[np.bool_], num_texts: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64], int]:
    """Numbers words by first appearance.

    Args:
        data: UTF-8, a line feed after each text and none inside.
        separates: (256,) which bytes stand between words, the line feed among them.
        num_texts: Line feeds in `data`.

    Returns:
        (words,) the number of every word, (num_texts,) words of each text, and how many words differ.
    """
    codes, lengths = np.empty(len(data) // 2, np.int32), np.zeros(num_texts, np.int64)
    words: tuple[npt.NDArray[Any], ...] = (np.zeros(0, np.uint64), np.zeros(0, np.int64), np.zeros(0, np.int64))
    bits, done = _FIRST_BITS, (0, 0, 0, 0, 0)
    while True:
        more = (1 << bits - 1) - len(words[0])  # open addressing, at most half full
        words = tuple(np.concatenate((column, np.empty(more, column.dtype))) for column in words)
        table = _compiled_grown(words[0][: done[4]], bits)
        done = _compiled_read(data, separates, table, bits, words, codes, lengths, done)
        if done[0] == len(data):
            return codes[: done[3]].copy(), lengths, done[4]
        bits += 1
