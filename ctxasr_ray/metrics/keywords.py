"""UTTERANCES, TRANSCRIPTS, CONTEXT -> ERRORS: which phrases of a catalogue were written, and which were said.

The phrases of a text are its leftmost-longest, non-overlapping matches of the whole catalogue on normalised words; the
catalogue of an utterance is its own true phrases, its context list and the global list. Truth is a multiset:

- a true phrase (UTTERANCES.keywords) counts as often as it is listed, or as often as it matches in the reference where
  that is more;
- a true phrase that the reference holds only inside a longer phrase of the catalogue is not asked for;
- a phrase of the catalogue that the reference holds, though nobody listed it, is neither asked for nor charged.

True positives are the intersection of the written and the true multiset; every other phrase written is a false
positive, and a false alarm where it is none of that utterance's true phrases. Without a reference the listed phrases
alone decide; without listed phrases (null) an utterance is not counted.

Some false positives are leaks, see `keyword_leaks`; without a reference, or without espeak-ng, they are not counted.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from ctxasr_ray import align, text
from ctxasr_ray.keywords.catalogue import Catalogue, CatalogueOptions
from ctxasr_ray.keywords.context import COLUMNS, RowPhrases, row_phrases
from ctxasr_ray.metrics.counts import MetricCounts, errors_table, same_rows
from ctxasr_ray.metrics.joined_windows import WINDOW_COLUMNS, WORD_COLUMNS, join_windows
from ctxasr_ray.metrics.keyword_leaks import engine, leaks
from ctxasr_ray.metrics.phrase_trie import Phrase, PhraseTrie, find_phrases
from ctxasr_ray.stage import Costs, Resources, Stage, light


@dataclass(frozen=True, kw_only=True, slots=True)
class PhraseCounts:
    """One utterance's matches: phrase -> how often."""

    truth: Counter[Phrase]
    written: Counter[Phrase]
    said: Counter[Phrase]
    """In the reference; empty without one."""

    @property
    def true_positives(self) -> Counter[Phrase]:
        """Written and true."""
        return self.written & self.truth

    @property
    def false_negatives(self) -> Counter[Phrase]:
        """True and not written."""
        return self.truth - self.written

    @property
    def false_positives(self) -> Counter[Phrase]:
        """Written more often than true or said."""
        return self.written - (self.truth | self.said)

    @property
    def false_alarms(self) -> Counter[Phrase]:
        """False positives of phrases that are none of the utterance's true ones."""
        return Counter({phrase: count for phrase, count in self.false_positives.items() if phrase not in self.truth})


class KeywordCounter:
    """Counts the phrases of one utterance at a time against a global catalogue, whose trie is built once."""

    def __init__(self, catalogue: Catalogue | None, normaliser: str) -> None:
        self._normaliser = normaliser
        phrases = [tuple(normal.split()) for normal in catalogue.normalised] if catalogue else []
        self._trie = PhraseTrie(phrases)
        self._ids = {phrase: number for number, phrase in enumerate(phrases)}

    def phrase(self, raw: str) -> Phrase:
        """The normalised words of a raw phrase; empty where nothing is left."""
        return tuple(text.words(raw, self._normaliser))

    def count(
        self,
        hypothesis: str,
        reference: str | None,
        keywords: Sequence[str],
        context: Sequence[str] = (),
        num_shared: int | None = None,
    ) -> PhraseCounts:
        """Matches of one utterance.

        Args:
            hypothesis: Raw.
            reference: Raw; None: unknown, the keywords alone decide.
            keywords: True phrases, raw; one that normalises to nothing cannot be asked for and is left out.
            context: Phrases of the utterance's own list, raw.
            num_shared: So many phrases of the global catalogue take part, in its order; None: all.
        """
        return self.count_list([hypothesis], reference, keywords, context, num_shared)[0]

    def count_list(
        self,
        hypotheses: Sequence[str],
        reference: str | None,
        keywords: Sequence[str],
        context: Sequence[str] = (),
        num_shared: int | None = None,
    ) -> list[PhraseCounts]:
        """Matches of every hypothesis of one utterance, as `count` gives them; what was said is looked up once."""
        listed = Counter(phrase for raw in keywords if (phrase := self.phrase(raw)))
        written_words = [text.words(hypothesis, self._normaliser) for hypothesis in hypotheses]
        said_words = [] if reference is None else text.words(reference, self._normaliser)
        present = {*said_words, *(word for words in written_words for word in words)}
        own = PhraseTrie(listed)
        for raw in context:
            phrase = self.phrase(raw)
            if phrase and phrase[0] in present:
                own.add(phrase)
        tries = [self._trie, own]
        is_allowed = None if num_shared is None else lambda phrase: self._ids[phrase] < num_shared
        said = find_phrases(said_words, tries, is_allowed)
        truth = Counter(
            {
                phrase: max(count, said[phrase])
                for phrase, count in listed.items()
                if phrase in said or not _holds(said_words, phrase)
            }
        )
        return [
            PhraseCounts(truth=truth, written=find_phrases(words, tries, is_allowed), said=said)
            for words in written_words
        ]


def _holds(words: Sequence[str], phrase: Phrase) -> bool:
    size = len(phrase)
    return any(tuple(words[at : at + size]) == phrase for at in range(len(words) - size + 1))


def by_phrase(counts: Iterable[PhraseCounts]) -> list[dict[str, Any]]:
    """Recall, precision and F1 of every phrase that was true or written, most frequent first: a table for people.

    Returns:
        Rows of phrase (normalised), true_positives, false_positives, false_negatives, recall, precision and f1; a
        rate without a denominator is None.
    """
    columns: dict[str, Counter[Phrase]] = {
        name: Counter() for name in ("true_positives", "false_positives", "false_negatives")
    }
    for one in counts:
        for name, total in columns.items():
            total.update(getattr(one, name))
    phrases = set().union(*columns.values())
    rows = []
    for phrase in phrases:
        hits, extra, missed = (columns[name][phrase] for name in columns)
        rows.append(
            {"phrase": " ".join(phrase), "true_positives": hits, "false_positives": extra, "false_negatives": missed}
            | {"recall": _ratio(hits, hits + missed), "precision": _ratio(hits, hits + extra)}
            | {"f1": _ratio(2 * hits, 2 * hits + extra + missed)}
        )
    return sorted(rows, key=lambda row: (-row["true_positives"] - row["false_negatives"], row["phrase"]))


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


@dataclass(frozen=True, kw_only=True, slots=True)
class KeywordCountsConfig(CatalogueOptions):
    """Counts the catalogue's phrases in transcripts: keyword_recall, _precision, _f1, distractor_false_alarms, _leaks.

    Reads UTTERANCES, TRANSCRIPTS and, where given, CONTEXT. Without CONTEXT every phrase of the global catalogue may
    raise a false alarm; with it, those that the row's list holds.
    """

    NAME: ClassVar[str] = "keyword_counts"
    STAGE_VERSION: ClassVar[int] = 2
    READS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "utterances": (*WINDOW_COLUMNS, "keywords"),
        "transcripts": WORD_COLUMNS,
        "context": COLUMNS,
    }
    WRITES: ClassVar[str] = "errors"

    voice: str = "en-us"
    """Of espeak-ng, which says what leaks sound like."""
    resources: Resources = field(default_factory=light)
    """Actors of the pool."""

    def fingerprint(self) -> Mapping[str, str]:
        """The normaliser's version and the digest of the catalogue.

        Raises:
            ValueError: an unknown normaliser, or a list that is missing or refused.
        """
        return {**self.phrases_fingerprint(), **({"phonemes": engine()} if engine() else {})}

    def build(self) -> Stage:
        """Reads the catalogue and builds its trie."""
        self.fingerprint()
        catalogue = self.phrases()
        return _KeywordCounts(self, catalogue, KeywordCounter(catalogue, self.normaliser))


@dataclass(frozen=True, slots=True)
class _KeywordCounts:
    config: KeywordCountsConfig
    catalogue: Catalogue | None
    counter: KeywordCounter

    def __call__(self, *tables: pa.Table, costs: Costs) -> pa.Table:
        utterances = tables[0]
        with costs.timed("match"):
            found = self.counts(*tables)
        numbers = np.zeros((3, len(found)), np.int64)
        false_alarms = np.zeros(len(found), np.int64)
        for row, one in enumerate(found):
            if one is not None:
                parts = (one.true_positives, one.false_negatives, one.false_positives)
                numbers[:, row] = [part.total() for part in parts]
                false_alarms[row] = one.false_alarms.total()
        costs.count("texts_matched", sum(one is not None for one in found))
        nothing = np.zeros(len(found), np.int64)
        true_positives, false_negatives, false_positives = numbers
        label: dict[str, Any] = {
            "unit": "phrase",
            "normaliser": self.config.normaliser,
            "word_class": "keyword",
            "alignment": f"catalogue:{self.catalogue.digest[:8]}" if self.catalogue else "none",
            "counted": np.array([one is not None for one in found], bool),
        }
        counts = align.Counts(true_positives, nothing, false_negatives, false_positives)
        alarms = align.Counts(nothing, nothing, nothing, false_alarms)
        metrics = [
            MetricCounts(metric="keyword", counts=counts, **label),
            MetricCounts(metric="distractor_false_alarms", counts=alarms, **label),
        ]
        if engine():
            metrics.append(self._leaks(utterances, found, label))
        return errors_table(utterances.column("utterance_id").to_pylist(), metrics)

    def _leaks(
        self, utterances: pa.Table, found: Sequence[PhraseCounts | None], label: Mapping[str, Any]
    ) -> MetricCounts:
        references = utterances.column("reference").to_pylist()
        counted = np.array([one is not None and r is not None for one, r in zip(found, references, strict=True)], bool)
        number = np.zeros(len(found), np.int64)
        for row in np.flatnonzero(counted).tolist():
            one = found[row]
            assert one is not None, "counted"
            number[row] = leaks(one.false_positives, references[row], self.config.voice)
        nothing = np.zeros(len(found), np.int64)
        counts = align.Counts(nothing, nothing, nothing, number)
        return MetricCounts(metric="keyword_leaks", **{**label, "counted": counted}, counts=counts)

    def counts(
        self, utterances: pa.Table, transcripts: pa.Table, context: pa.Table | None = None
    ) -> list[PhraseCounts | None]:
        """Per utterance its `PhraseCounts`, None where its true phrases are unknown."""
        same_rows("transcripts", transcripts, "utterances", utterances)
        transcripts = join_windows(utterances, transcripts)
        lists: list[RowPhrases | None] = [None] * utterances.num_rows
        if context is not None:
            same_rows("context", context, "utterances", utterances)
            lists = [*row_phrases(context, self.catalogue)]
        rows = utterances.select(["reference", "keywords"]).to_pylist()
        heard = transcripts.select(["text", "error_type"]).to_pylist()
        return [
            None
            if row["keywords"] is None
            else self.counter.count(
                "" if said["error_type"] is not None else said["text"],
                row["reference"],
                row["keywords"],
                () if own is None else [phrase.text for phrase in own.own],
                None if own is None else own.num_shared,
            )
            for row, own, said in zip(rows, lists, heard, strict=True)
        ]


def phrase_table(config: KeywordCountsConfig, *tables: pa.Table) -> list[dict[str, Any]]:
    """Per phrase its matches over a whole corpus, see `by_phrase`.

    Args:
        config: As the run had it.
        tables: UTTERANCES, TRANSCRIPTS and, where the run had it, CONTEXT, row for row.
    """
    stage = config.build()
    assert isinstance(stage, _KeywordCounts)
    return by_phrase(one for one in stage.counts(*tables) if one is not None)
