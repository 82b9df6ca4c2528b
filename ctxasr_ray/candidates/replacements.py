"""Spans of words and phrases that sound alike -> what may be put where, and what goes together."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from ctxasr_ray import text

_WRITTEN: Final = 0.5
"""Phones by which a phrase that is written already outweighs one that merely sounds like it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Replacement:
    """A phrase in place of the words `start` to `stop` of a hypothesis."""

    start: int
    stop: int
    phrase: str
    """Raw; equal to the words where they are the phrase already."""
    distance: float
    evidence: float
    """Phones of the phrase times what is left to the largest distance."""


def replacements(
    texts: Sequence[Sequence[str]],
    phrases: Sequence[str],
    *,
    max_distance: float,
    min_evidence: float,
    max_words: int,
    normaliser: str,
    voice: str,
) -> list[list[Replacement]]:
    """Every span of each text that sounds like a phrase, near enough; a span of several texts is compared once.

    Args:
        texts: Raw words of each text.
        phrases: Raw; those without a sound are passed over.
        max_distance: Largest distance, included.
        min_evidence: Least evidence of a replacement; a phrase that is written already needs none.
        max_words: Words of the longest span.
        normaliser: Under which a span is a phrase already.
        voice: Of espeak-ng.
    """
    from ctxasr_ray.keywords.phonetic import distances, sound

    heard = {word: sound(text.normalise(word, "basic"), voice) for words in texts for word in words}
    spans = [
        [
            (i, j, " ".join(words[i:j]))
            for i in range(len(words))
            for j in range(i + 1, min(i + max_words, len(words)) + 1)
        ]
        for words in texts
    ]
    sounds = {
        raw: "".join(heard[word] for word in words[i:j])
        for words, row in zip(texts, spans, strict=True)
        for i, j, raw in row
    }
    targets = [sound(text.normalise(phrase, "basic"), voice) for phrase in phrases]
    normals = {text.normalise(phrase, normaliser): n for n, phrase in enumerate(phrases)}
    sounding = frozenset(targets)
    distinct = list(dict.fromkeys(one for one in sounds.values() if one))
    largest = [max_distance - min_evidence / max(len(target), 1) + 1e-9 for target in targets]
    near: dict[str, list[tuple[int, float]]] = {one: [] for one in distinct}
    if distinct and targets:
        distance_SN = distances(distinct, targets, np.asarray(largest))
        for s, n in zip(*(places.tolist() for places in np.nonzero(distance_SN <= max_distance)), strict=True):
            if targets[n] and len(targets[n]) * (max_distance - float(distance_SN[s, n])) >= min_evidence:
                near[distinct[s]].append((n, float(distance_SN[s, n])))

    def of_span(raw: str) -> list[tuple[int, float]]:
        """Phrases near a span; the one that it is already at distance 0. Only what sounds like one is normalised."""
        found = near.get(sounds[raw], [])
        if not found and sounds[raw] not in sounding:
            return found
        same = normals.get(text.normalise(raw, normaliser))
        if same is None or not sounds[raw] or not targets[same]:
            return found
        return sorted([(same, -1.0), *(one for one in found if one[0] != same)])

    of_raw = {raw: of_span(raw) for raw in sounds}
    return [
        [
            Replacement(
                start=i,
                stop=j,
                phrase=raw if distance < 0 else phrases[n],
                distance=max(distance, 0.0),
                evidence=len(targets[n]) * (max_distance - max(distance, 0.0)) + (_WRITTEN if distance < 0 else 0.0),
            )
            for i, j, raw in row
            for n, distance in of_raw[raw]
        ]
        for row in spans
    ]


def best_together(found: Sequence[Replacement], num_words: int) -> list[Replacement]:
    """The replacements that do not overlap and have the largest evidence together, left to right."""
    by_stop: dict[int, list[Replacement]] = {}
    for replacement in found:
        by_stop.setdefault(replacement.stop, []).append(replacement)
    best: list[tuple[float, tuple[Replacement, ...]]] = [(0.0, ())]
    for stop in range(1, num_words + 1):
        ways = [best[stop - 1]]
        ways += [(best[r.start][0] + r.evidence, (*best[r.start][1], r)) for r in by_stop.get(stop, ())]
        best.append(max(ways, key=lambda way: way[0]))
    return list(best[-1][1])


def replaced(words: Sequence[str], chosen: Sequence[Replacement]) -> str:
    """The text with phrases in place of spans.

    Args:
        words: Raw words of the text.
        chosen: Left to right, without overlaps.
    """
    parts: list[str] = []
    at = 0
    for replacement in chosen:
        parts += [*words[at : replacement.start], replacement.phrase]
        at = replacement.stop
    return " ".join([*parts, *words[at:]])
