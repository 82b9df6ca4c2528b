"""HYPOTHESES, CONTEXT -> HYPOTHESES: spans that sound like a phrase of the list become candidates with the phrase.

For any recogniser, black boxes included: nothing is asked of it. In each of the best hypotheses, spans of words and
phrases of the utterance's list are compared by sound. What a phrase explains is its evidence: its phones, times how far
its distance stays below the largest one. Replacements that do not overlap and have the largest evidence together make
one candidate of each hypothesis; those of the first one make further candidates alone.

Candidates have origin `keyword`. The recogniser's own scores become records of the search, because candidates have
none: forced scorers (CTC forward, teacher forcing, PocketSphinx alignment) and language models give all texts theirs.
Every text has one score from here, the bonus `keyword_bonus`: phones of the list's phrases that it writes; its weight
is fitted like any other. The list is in the order of evidence, less a little for each rank of the recogniser, so that
without any scorer its first text is the answer by sound alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

import numpy as np
import pyarrow as pa

from ctxasr_ray import text
from ctxasr_ray.keywords.catalogue import Catalogue, CatalogueOptions
from ctxasr_ray.keywords.context import COLUMNS, row_phrases
from ctxasr_ray.metrics.counts import same_rows
from ctxasr_ray.metrics.phrase_trie import PhraseTrie, find_phrases
from ctxasr_ray.schema import HYPOTHESES, conform
from ctxasr_ray.stage import Costs, Resources, light

_WRITTEN: Final = 0.5
"""Phones by which a phrase that is written already outweighs one that merely sounds like it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KeywordCandidatesConfig(CatalogueOptions):
    """Puts phrases of the list where the N-best holds something that sounds like them.

    Inputs: HYPOTHESES, CONTEXT. Every text of the list stays, at another place. The defaults of the distances are
    those of the best keyword F1 on 120 utterances of the synthetic dev part with the shipped CTC model (0.79, from 0.19
    without candidates).
    """

    NAME: ClassVar[str] = "keyword_candidates"
    STAGE_VERSION: ClassVar[int] = 2
    READS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "hypotheses": ("hypotheses", "error_type", "error"),
        "context": COLUMNS,
    }
    WRITES: ClassVar[str] = "hypotheses"

    max_distance: float = 0.6
    """Of a span from a phrase, per phone of the phrase, 0 (same sound) to 1; see `keywords.phonetic`."""
    min_evidence: float = 1.5
    """Phones times (max_distance - distance) that a replacement needs, so that short phrases must be nearly exact."""
    rank_cost: float = 0.05
    """Evidence that a hypothesis must have beyond the one that the recogniser ranks before it."""
    num_hypotheses: int = 20
    """Hypotheses, best first, that candidates are made of."""
    max_words: int = 6
    """Words of the longest span."""
    max_candidates: int = 16
    """New texts per utterance, those of most evidence."""
    voice: str = "en-us"
    """Of espeak-ng, which pronounces words and phrases alike."""
    source: str = "keyword_bonus"
    """Name of the bonus in `scores`."""
    resources: Resources = field(default_factory=light)
    """Actors of the pool."""

    def __post_init__(self) -> None:
        """Refuses sizes that make nothing."""
        if not 0.0 <= self.max_distance <= 1.0:
            raise ValueError(f"max_distance is {self.max_distance}; expected 0 (same sound) to 1.")
        if not (self.min_evidence >= 0.0 and self.rank_cost >= 0.0):
            raise ValueError(f"min_evidence is {self.min_evidence}, rank_cost {self.rank_cost}; expected 0 or more.")
        if min(self.num_hypotheses, self.max_words, self.max_candidates) < 1:
            raise ValueError("num_hypotheses, max_words and max_candidates must be at least 1.")

    def fingerprint(self) -> Mapping[str, str]:
        """The catalogue's digest, and what pronounces."""
        from ctxasr_ray.keywords.phonetic import engine

        return {**self.phrases_fingerprint(), "phonemes": engine()}

    def build(self) -> "KeywordCandidates":
        """Reads the catalogue."""
        return KeywordCandidates(self, self.phrases())


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
    distinct = list(dict.fromkeys(one for one in sounds.values() if one))
    largest = [max_distance - min_evidence / max(len(target), 1) + 1e-9 for target in targets]
    near: dict[str, list[tuple[int, float]]] = {one: [] for one in distinct}
    if distinct and targets:
        distance_SN = distances(distinct, targets, np.asarray(largest))
        for s, n in zip(*(places.tolist() for places in np.nonzero(distance_SN <= max_distance)), strict=True):
            if targets[n] and len(targets[n]) * (max_distance - float(distance_SN[s, n])) >= min_evidence:
                near[distinct[s]].append((n, float(distance_SN[s, n])))

    def of_span(raw: str) -> list[tuple[int, float]]:
        """Phrases near a span; the one that it is already at distance 0."""
        found = near.get(sounds[raw], [])
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


@dataclass(frozen=True, slots=True)
class KeywordCandidates:
    """The built stage."""

    config: KeywordCandidatesConfig
    catalogue: Catalogue | None

    def __call__(self, *tables: pa.Table, costs: Costs) -> pa.Table:
        """HYPOTHESES and CONTEXT in, HYPOTHESES out.

        Args:
            tables: HYPOTHESES, CONTEXT of the same rows.
            costs: Counts `candidates` (new texts) and `phrases_compared`.

        Raises:
            ContractError: other rows, or rows made with another catalogue.
            RuntimeError: espeakng-loader is not installed.
        """
        hypotheses, context = tables
        same_rows("context", context, "hypotheses", hypotheses)
        rows = []
        for row, known in zip(hypotheses.to_pylist(), row_phrases(context, self.catalogue), strict=True):
            phrases = known.texts(self.catalogue)
            costs.count("phrases_compared", len(phrases))
            rows.append({**row, "hypotheses": self._with_candidates(row["hypotheses"], phrases, costs)})
        return conform(pa.Table.from_pylist(rows, schema=HYPOTHESES), "hypotheses")

    def _with_candidates(
        self, hypotheses: Sequence[dict[str, Any]], phrases: Sequence[str], costs: Costs
    ) -> list[dict[str, Any]]:
        config = self.config
        originals: dict[str, dict[str, Any]] = {}
        for hypothesis in hypotheses:
            originals.setdefault(text.normalise(hypothesis["text"], config.normaliser), hypothesis)
        ranked: list[dict[str, Any]] = []
        made: set[str] = set()
        for candidate in self._texts([h["text"] for h in hypotheses[: config.num_hypotheses]], phrases):
            normal = text.normalise(candidate, config.normaliser)
            if normal in originals:
                ranked.append(originals[normal])
            elif normal not in made and len(made) < config.max_candidates:
                made.add(normal)
                ranked.append(_synthesised(candidate))
        costs.count("candidates", len(made))
        placed = {id(hypothesis) for hypothesis in ranked}
        unique = list({id(hypothesis): hypothesis for hypothesis in ranked}.values())
        unique += [hypothesis for hypothesis in hypotheses if id(hypothesis) not in placed]
        return self._scored(unique, phrases)

    def _scored(self, hypotheses: Sequence[dict[str, Any]], phrases: Sequence[str]) -> list[dict[str, Any]]:
        """The same texts with the bonus as their only score, and their own scores as records."""
        from ctxasr_ray.keywords.phonetic import sound

        normaliser = self.config.normaliser
        words = {tuple(text.normalise(phrase, normaliser).split()): phrase for phrase in phrases}
        trie = PhraseTrie(phrase for phrase in words if phrase)
        scored = []
        for hypothesis in hypotheses:
            found = find_phrases(text.normalise(hypothesis["text"], normaliser).split(), [trie])
            phones = sum(
                times * len(sound(text.normalise(words[phrase], "basic"), self.config.voice))
                for phrase, times in found.items()
            )
            bonus = {"source": self.config.source, "kind": "bonus", "log_prob": float(phones)}
            records = [{**score, "kind": "search"} for score in hypothesis["scores"]]
            scored.append({**hypothesis, "scores": [bonus, *records]})
        return scored

    def _texts(self, raws: Sequence[str], phrases: Sequence[str]) -> list[str]:
        """Each hypothesis and what it becomes, most evidence first, then the first with each replacement alone."""
        config = self.config
        ways: list[tuple[float, str]] = []
        alone: list[tuple[float, str]] = []
        texts = [raw.split() for raw in raws]
        every = replacements(
            texts,
            phrases,
            max_distance=config.max_distance,
            min_evidence=config.min_evidence,
            max_words=config.max_words,
            normaliser=config.normaliser,
            voice=config.voice,
        )
        for rank, (words, found) in enumerate(zip(texts, every, strict=True)):
            written = [r for r in found if r.phrase == " ".join(words[r.start : r.stop])]
            for chosen in (best_together(found, len(words)), best_together(written, len(words))):
                evidence = sum(replacement.evidence for replacement in chosen) - config.rank_cost * rank
                ways.append((evidence, replaced(words, chosen)))
            if rank == 0:
                kept = best_together(written, len(words))
                free = [r for r in found if all(r.stop <= w.start or w.stop <= r.start for w in kept)]
                alone = [(replacement.evidence, replaced(words, [replacement])) for replacement in free]
        order = [*sorted(ways, key=lambda way: -way[0]), *sorted(alone, key=lambda way: -way[0])]
        return [candidate for _, candidate in order]


def _synthesised(candidate: str) -> dict[str, Any]:
    """A hypothesis that no recogniser has written."""
    nothing = dict.fromkeys(
        ("token_ids", "token_log_probs", "token_entropies", "token_start_s", "token_end_s", "token_words")
    )
    return {"text": candidate, **nothing, "scores": [], "search_score": None, "origin": "keyword"}
