"""Lists of phrases to learn to copy from: which are spelled alike, and where one starts in a text."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

NEIGHBOURS: Final = 12
"""Phrases that are kept as alike, for each."""
POOL: Final = 4000
"""Phrases among which they are looked for, at most twice as many."""


def alike(phrases: Sequence[str]) -> npt.NDArray[np.int64]:
    """(N, K) the phrases that are spelled most like each, by edit distance over length; out of `POOL` of them."""
    from rapidfuzz import fuzz, process

    step = max(1, len(phrases) // POOL)
    pool = np.arange(0, len(phrases), step)
    words = [phrases[i] for i in pool.tolist()]
    found = []
    for start in range(0, len(phrases), 500):
        own = range(start, min(start + 500, len(phrases)))
        ratios = process.cdist([phrases[i] for i in own], words, scorer=fuzz.ratio, dtype=np.uint8).astype(np.int64)
        ratios[np.asarray(own)[:, None] == pool[None]] = -1
        found.append(pool[np.argsort(-ratios, axis=1, kind="stable")[:, :NEIGHBOURS]])
    return np.concatenate(found)


def starts(tokens: Sequence[int], phrases: Sequence[tuple[int, ...]]) -> list[int]:
    """Before each token and before the end the longest phrase that is written there, N for none.

    Args:
        tokens: Of a text.
        phrases: N token sequences.
    """
    places = {phrase: place for place, phrase in enumerate(phrases)}
    lengths = sorted({len(phrase) for phrase in phrases}, reverse=True)
    text, found = tuple(tokens), []
    for at in range(len(text) + 1):
        hits = (places.get(text[at : at + n]) for n in lengths if at + n <= len(text))
        found.append(next((hit for hit in hits if hit is not None), len(phrases)))
    return found
