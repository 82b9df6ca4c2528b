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
from typing import Any, ClassVar, NamedTuple

import pyarrow as pa

from ctxasr_ray import text
from ctxasr_ray.candidates.replacements import best_together, replaced, replacements
from ctxasr_ray.keywords.catalogue import Catalogue, CatalogueOptions
from ctxasr_ray.keywords.context import COLUMNS, row_phrases
from ctxasr_ray.metrics.counts import same_rows
from ctxasr_ray.metrics.phrase_trie import PhraseTrie, find_phrases
from ctxasr_ray.nbest import flatten
from ctxasr_ray.schema import conform
from ctxasr_ray.stage import Costs, Resources, light


@dataclass(frozen=True, kw_only=True, slots=True)
class KeywordCandidatesConfig(CatalogueOptions):
    """Puts phrases of the list where the N-best holds something that sounds like them.

    Inputs: HYPOTHESES, CONTEXT. Every text of the list stays, at another place. The defaults of the distances are
    those of the best keyword F1 on 120 utterances of the synthetic dev part with the shipped CTC model (0.79, from 0.19
    without candidates).
    """

    NAME: ClassVar[str] = "keyword_candidates"
    STAGE_VERSION: ClassVar[int] = 3
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
        flat = flatten(hypotheses)
        given = hypotheses.column("hypotheses").combine_chunks().flatten()
        scores = given.field("scores").to_pylist()
        made: list[_Listed] = []
        offsets = [0]
        for row, known in enumerate(row_phrases(context, self.catalogue)):
            phrases = known.texts(self.catalogue)
            costs.count("phrases_compared", len(phrases))
            own = range(flat.offsets[row], flat.offsets[row + 1])
            listed = [_Listed(flat.texts[place], scores[place], place) for place in own]
            made += self._with_candidates(listed, phrases, costs)
            offsets.append(len(made))
        column = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), _structs(given, made))
        place = hypotheses.column_names.index("hypotheses")
        return conform(hypotheses.set_column(place, "hypotheses", column), "hypotheses")

    def _with_candidates(
        self, hypotheses: Sequence["_Listed"], phrases: Sequence[str], costs: Costs
    ) -> "list[_Listed]":
        config = self.config
        originals: dict[str, _Listed] = {}
        for hypothesis in hypotheses:
            originals.setdefault(text.normalise(hypothesis.text, config.normaliser), hypothesis)
        ranked: list[_Listed] = []
        made: set[str] = set()
        for candidate in self._texts([h.text for h in hypotheses[: config.num_hypotheses]], phrases):
            normal = text.normalise(candidate, config.normaliser)
            if normal in originals:
                ranked.append(originals[normal])
            elif normal not in made and len(made) < config.max_candidates:
                made.add(normal)
                ranked.append(_Listed(candidate))
        costs.count("candidates", len(made))
        placed = {id(hypothesis) for hypothesis in ranked}
        unique = list({id(hypothesis): hypothesis for hypothesis in ranked}.values())
        unique += [hypothesis for hypothesis in hypotheses if id(hypothesis) not in placed]
        return self._scored(unique, phrases)

    def _scored(self, hypotheses: Sequence["_Listed"], phrases: Sequence[str]) -> "list[_Listed]":
        """The same texts with the bonus as their only score, and their own scores as records."""
        from ctxasr_ray.keywords.phonetic import sound

        normaliser = self.config.normaliser
        words = {tuple(text.normalise(phrase, normaliser).split()): phrase for phrase in phrases}
        trie = PhraseTrie(phrase for phrase in words if phrase)
        scored = []
        for hypothesis in hypotheses:
            found = find_phrases(text.normalise(hypothesis.text, normaliser).split(), [trie])
            phones = sum(
                times * len(sound(text.normalise(words[phrase], "basic"), self.config.voice))
                for phrase, times in found.items()
            )
            bonus = {"source": self.config.source, "kind": "bonus", "log_prob": float(phones)}
            records = [{**score, "kind": "search"} for score in hypothesis.scores]
            scored.append(hypothesis._replace(scores=[bonus, *records]))
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


class _Listed(NamedTuple):
    """A text of the new list."""

    text: str
    scores: Sequence[dict[str, Any]] = ()
    place: int | None = None
    """Of the hypothesis that it is, among all that were given; None for one that no recogniser has written."""


def _structs(given: pa.StructArray, made: Sequence[_Listed]) -> pa.StructArray:
    """Hypotheses with new scores in a new order; what else they hold never becomes Python objects.

    Args:
        given: Every hypothesis of the table.
        made: The new list of every row, one after the other.
    """
    taken = given.take(pa.array([listed.place for listed in made], pa.int64()))
    fields = dict(zip(given.type.names, taken.flatten(), strict=True))
    kind = {field.name: field.type for field in given.type}
    fields["text"] = pa.array([listed.text for listed in made], kind["text"])
    fields["scores"] = pa.array([list(listed.scores) for listed in made], kind["scores"])
    fields["origin"] = fields["origin"].fill_null("keyword")
    return pa.StructArray.from_arrays(list(fields.values()), fields=list(given.type))
