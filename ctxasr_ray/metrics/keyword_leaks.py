"""Keywords that were written though nothing that was said sounds like them: the list has spoken, not the voice.

A phrase that a system wrote and nobody said is a leak where no span of the reference is nearer to it than
`LEAK_DISTANCE` by graded phones (`keywords.phonetic`). The definition is ours: it needs no recogniser's posteriors.
"""

import importlib.util
from collections import Counter
from typing import Final

from ctxasr_ray import text
from ctxasr_ray.metrics.phrase_trie import Phrase

LEAK_DISTANCE: Final = 0.6
"""Distance per phone from which two sounds have nothing to do with each other: where candidates are given up too."""
_MAX_WORDS: Final = 6
"""Words of the longest span of a reference that is compared."""


def engine() -> str:
    """What pronounces phrases; empty where nothing does."""
    if not importlib.util.find_spec("espeakng_loader"):
        return ""
    from ctxasr_ray.keywords.phonetic import engine as phonemes

    return phonemes()


def leaks(false_positives: Counter[Phrase], reference: str, voice: str) -> int:
    """How many of some phrases no span of a reference sounds like.

    Args:
        false_positives: Normalised phrases that were written and not said.
        reference: Raw.
        voice: Of espeak-ng.
    """
    if not false_positives:
        return 0
    from ctxasr_ray.keywords.phonetic import distances, sound

    heard = [sound(word, voice) for word in text.words(reference, "basic")]
    spans = ["".join(heard[i:j]) for i in range(len(heard)) for j in range(i + 1, min(i + _MAX_WORDS, len(heard)) + 1)]
    if not any(spans):
        return false_positives.total()
    nearest = distances(spans, [sound(" ".join(phrase), voice) for phrase in false_positives]).min(axis=0)
    return sum(
        times for times, far in zip(false_positives.values(), (nearest >= LEAK_DISTANCE).tolist(), strict=True) if far
    )
