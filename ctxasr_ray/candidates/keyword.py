"""HYPOTHESES, CONTEXT -> HYPOTHESES: spans that sound like a phrase of the list become candidates with the phrase.

For any recogniser, black boxes included: nothing is asked of it. In each of the best hypotheses, spans of words and
phrases of the utterance's list are compared by sound; the set of replacements that do not overlap and explain most is
one candidate, each replacement alone is another. They stand in front of the hypothesis that they come from, with origin
`keyword` and without scores: forced scorers (CTC forward, teacher forcing, PocketSphinx alignment) and language models
give all candidates theirs, and fusion chooses. Without any scorer the first candidate is the answer, so the distance
alone decides.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from ctxasr_ray import text
from ctxasr_ray.keywords.catalogue import Catalogue, load
from ctxasr_ray.keywords.context import COLUMNS, row_phrases
from ctxasr_ray.metrics.counts import same_rows
from ctxasr_ray.schema import HYPOTHESES, conform
from ctxasr_ray.stage import Costs, Resources, light


@dataclass(frozen=True, kw_only=True, slots=True)
class KeywordCandidatesConfig:
    """Puts phrases of the list where the N-best holds something that sounds like them.

    Inputs: HYPOTHESES, CONTEXT. Every hypothesis stays as it is; candidates come in front of it.
    """

    NAME: ClassVar[str] = "keyword_candidates"
    STAGE_VERSION: ClassVar[int] = 1
    READS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "hypotheses": ("hypotheses", "error_type", "error"),
        "context": COLUMNS,
    }
    WRITES: ClassVar[str] = "hypotheses"

    catalogue: str | None = field(default=None, metadata={"identity": False})
    """The file that CONTEXT names by its digest; None where rows bring all their phrases (a shortlist does)."""
    catalogue_format: str | None = field(default=None, metadata={"identity": False})
    """One of `phrase_files.FORMATS`; None: the extension tells."""
    normaliser: str = "whisper_english"
    """The one that CONTEXT was made with; a span that equals a phrase under it is left as it is."""
    max_distance: float = 0.35
    """Of a span from a phrase, per phone of the phrase, 0 (same sound) to 1; see `keywords.phonetic`."""
    num_hypotheses: int = 5
    """Hypotheses, best first, that candidates are made of."""
    max_words: int = 6
    """Words of the longest span."""
    max_candidates: int = 8
    """Candidates per hypothesis: all replacements together, then each alone, the nearest sounds first."""
    voice: str = "en-us"
    """Of espeak-ng, which pronounces words and phrases alike."""
    resources: Resources = field(default_factory=light)
    """Actors of the pool."""

    def __post_init__(self) -> None:
        """Refuses sizes that make nothing."""
        if not 0.0 <= self.max_distance <= 1.0:
            raise ValueError(f"max_distance is {self.max_distance}; expected 0 (same sound) to 1.")
        if min(self.num_hypotheses, self.max_words, self.max_candidates) < 1:
            raise ValueError("num_hypotheses, max_words and max_candidates must be at least 1.")

    def fingerprint(self) -> Mapping[str, str]:
        """The catalogue's digest, and what pronounces."""
        from ctxasr_ray.keywords.phonetic import engine

        found = {"normaliser": text.versioned(self.normaliser), "phonemes": engine()}
        phrases = self._catalogue()
        return found if phrases is None else {**found, "catalogue": phrases.digest}

    def build(self) -> "KeywordCandidates":
        """Reads the catalogue."""
        return KeywordCandidates(self, self._catalogue())

    def _catalogue(self) -> Catalogue | None:
        if self.catalogue is None:
            return None
        return load(self.catalogue, format=self.catalogue_format, normaliser=self.normaliser)


@dataclass(frozen=True, kw_only=True, slots=True)
class Replacement:
    """A phrase in place of the words `start` to `stop` of a hypothesis."""

    start: int
    stop: int
    phrase: str
    """Raw; equal to the words where they are the phrase already."""
    distance: float
    gain: float
    """Phones of the phrase times what is left to the largest distance: how much of the text it explains."""


def replacements(
    words: Sequence[str], phrases: Sequence[str], *, max_distance: float, max_words: int, normaliser: str, voice: str
) -> list[Replacement]:
    """Every span of a text that sounds like a phrase, near enough.

    Args:
        words: Raw words of the text.
        phrases: Raw; those without a sound are passed over.
        max_distance: Largest distance, included.
        max_words: Words of the longest span.
        normaliser: Under which a span is a phrase already.
        voice: Of espeak-ng.
    """
    from ctxasr_ray.keywords.phonetic import distances, sound

    spans = [(i, j) for i in range(len(words)) for j in range(i + 1, min(i + max_words, len(words)) + 1)]
    if not spans or not phrases:
        return []
    heard = [sound(text.normalise(word, "basic"), voice) for word in words]
    sounds = ["".join(heard[i:j]) for i, j in spans]
    targets = [sound(text.normalise(phrase, "basic"), voice) for phrase in phrases]
    normals = {text.normalise(phrase, normaliser): n for n, phrase in enumerate(phrases)}
    distance_SN = distances(sounds, targets)
    for s, (i, j) in enumerate(spans):
        same = normals.get(text.normalise(" ".join(words[i:j]), normaliser))
        if same is not None:
            distance_SN[s, same] = 0.0
    found = []
    for s, n in zip(*np.nonzero(distance_SN <= max_distance), strict=True):
        if not sounds[s] or not targets[n]:
            continue
        i, j = spans[s]
        same = normals.get(text.normalise(" ".join(words[i:j]), normaliser)) == n
        found.append(
            Replacement(
                start=i,
                stop=j,
                phrase=" ".join(words[i:j]) if same else phrases[n],
                distance=float(distance_SN[s, n]),
                # a phrase that is written already outweighs what sounds exactly like it
                gain=len(targets[n]) * (max_distance - float(distance_SN[s, n]) + 1e-3 + 1e-3 * same),
            )
        )
    return found


def best_together(found: Sequence[Replacement], num_words: int) -> list[Replacement]:
    """The replacements that do not overlap and have the largest gain together, left to right."""
    by_stop: dict[int, list[Replacement]] = {}
    for replacement in found:
        by_stop.setdefault(replacement.stop, []).append(replacement)
    best: list[tuple[float, tuple[Replacement, ...]]] = [(0.0, ())]
    for stop in range(1, num_words + 1):
        ways = [best[stop - 1]]
        ways += [(best[r.start][0] + r.gain, (*best[r.start][1], r)) for r in by_stop.get(stop, ())]
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
            costs: Counts `spans_replaced`, `candidates` (new texts) and `phrases_compared`.

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
        known = {text.normalise(hypothesis["text"], self.config.normaliser) for hypothesis in hypotheses}
        made: list[dict[str, Any]] = []
        for rank, hypothesis in enumerate(hypotheses):
            if rank < self.config.num_hypotheses:
                for candidate in self._candidates(hypothesis["text"], phrases):
                    normal = text.normalise(candidate, self.config.normaliser)
                    if normal not in known:
                        known.add(normal)
                        made.append(_synthesised(candidate))
                        costs.count("candidates")
            made.append(hypothesis)
        return made

    def _candidates(self, raw: str, phrases: Sequence[str]) -> list[str]:
        """All replacements together, then each alone, nearest first."""
        config, words = self.config, raw.split()
        found = replacements(
            words,
            phrases,
            max_distance=config.max_distance,
            max_words=config.max_words,
            normaliser=config.normaliser,
            voice=config.voice,
        )
        together = best_together(found, len(words))
        alone = sorted(found, key=lambda replacement: -replacement.gain)
        texts = [replaced(words, together), *(replaced(words, [replacement]) for replacement in alone)]
        return list(dict.fromkeys(texts))[: config.max_candidates + 1]


def _synthesised(candidate: str) -> dict[str, Any]:
    """A hypothesis that no recogniser has written: nothing is known of it but its text."""
    nothing = dict.fromkeys(
        ("token_ids", "token_log_probs", "token_entropies", "token_start_s", "token_end_s", "token_words")
    )
    return {"text": candidate, **nothing, "scores": [], "search_score": None, "origin": "keyword"}
