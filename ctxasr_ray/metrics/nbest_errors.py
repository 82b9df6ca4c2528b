"""HYPOTHESES, UTTERANCES, CONTEXT -> NBEST_ERRORS: every hypothesis against the reference, once.

Oracle, weight search, minimum-WER training and harmful edits all read this table; nobody aligns a list again.
Shape letters: U utterances, H hypotheses of all of them.
"""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ctxasr_ray import align, text
from ctxasr_ray.keywords.catalogue import CatalogueOptions
from ctxasr_ray.keywords.context import COLUMNS
from ctxasr_ray.metrics.counts import METRIC_NAMES, same_rows
from ctxasr_ray.metrics.joined_windows import references_of_whole_rows
from ctxasr_ray.metrics.nbest_keywords import MATCHES, NbestKeywords
from ctxasr_ray.metrics.word_classes import WordClasses, WordLists, class_counts
from ctxasr_ray.nbest import FlatNBest, flatten
from ctxasr_ray.schema import HYPOTHESIS_ERRORS, conform
from ctxasr_ray.stage import Costs, Resources, Stage, light

KEYWORDS: Final = ("phrase", "keyword")
"""Unit and word class of a catalogue's phrases: matches in place of errors."""
_NOT_COUNTED: Final = -1


@dataclass(frozen=True, kw_only=True, slots=True)
class NbestErrorsConfig(CatalogueOptions):
    """Counts the errors of every hypothesis, per unit and word class, and its keyword matches where asked.

    Reads HYPOTHESES, UTTERANCES and, for keywords, CONTEXT where given, which then limits the catalogue.

    A row without reference, or with that of a recording in several windows, to which no one list can be held (counted
    as `recordings_in_windows_left_out`), has null errors and reference_length, and still the number of units of each
    hypothesis, which the length bonus needs.
    """

    NAME: ClassVar[str] = "nbest_errors"
    STAGE_VERSION: ClassVar[int] = 3
    READS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "hypotheses": ("hypotheses",),
        "utterances": ("reference", "keywords", "recording_id", "window_index", "channel"),
        "context": COLUMNS,
    }
    WRITES: ClassVar[str] = "nbest_errors"

    classes: tuple[tuple[str, str], ...] = (("word", "all"), ("character", "all"))
    """(unit, word class) pairs: word or character of all; word of biased, unbiased and rare (`word_classes`); phrase of
    keyword (`metrics.keywords`)."""
    alignment: str = "unit"
    """Costs of the alignment: unit (1/1/1) or nist (4/3/3)."""
    word_lists: WordLists = field(default_factory=WordLists)
    """Common and rare words."""
    resources: Resources = field(default_factory=light)
    """Actors of the pool."""

    def fingerprint(self) -> Mapping[str, str]:
        """The normaliser's version and the digests of the word lists and, for keywords, of the catalogue.

        Raises:
            ValueError: an unknown class, normaliser or alignment, or a file that is not there.
        """
        known = [*METRIC_NAMES, KEYWORDS]
        unknown = [c for c in self.classes if tuple(c) not in known]
        if unknown:
            raise ValueError(f"classes: {unknown} are unknown; choose some of {known}.")
        align.check_alignment(self.alignment)
        found = {"normaliser": text.versioned(self.normaliser), **self.word_lists.fingerprint()}
        keywords = self._keywords()
        if keywords is not None and keywords.catalogue is not None:
            found["catalogue"] = keywords.catalogue.digest
        return found

    def _keywords(self) -> NbestKeywords | None:
        if KEYWORDS not in map(tuple, self.classes):
            return None
        return NbestKeywords(self.phrases(), self.normaliser)

    def build(self) -> Stage:
        """Reads the word lists and the catalogue."""
        self.fingerprint()
        return _NbestErrors(self, self.word_lists.load(self.normaliser), self._keywords())


class _NbestErrors:
    def __init__(self, config: NbestErrorsConfig, word_classes: WordClasses, keywords: NbestKeywords | None) -> None:
        self._config = config
        self._word_classes = word_classes
        self._keywords = keywords

    def __call__(self, *tables: pa.Table, costs: Costs) -> pa.Table:
        hypotheses, utterances, *context = tables
        same_rows("hypotheses", hypotheses, "utterances", utterances)
        flat = flatten(hypotheses)
        references = references_of_whole_rows(utterances)
        left_out = sum(r is None for r in references) - utterances.column("reference").null_count
        costs.count("recordings_in_windows_left_out", left_out)
        keywords = utterances.column("keywords").to_pylist()
        aligned = dict.fromkeys(unit for unit, word_class in self._config.classes if (unit, word_class) != KEYWORDS)
        with costs.timed("align"):
            entries = []
            for unit in aligned:
                classes = [c for u, c in self._config.classes if u == unit]
                entries += self._entries(unit, classes, flat, references, keywords)
        costs.count("pairs_aligned", len(flat.texts) * len(aligned))
        if self._keywords is not None:
            with costs.timed("match"):
                found = self._keywords.matches(flat, utterances, context[0] if context else None)
            label = {"unit": KEYWORDS[0], "normaliser": self._config.normaliser, "word_class": KEYWORDS[1]}
            entries.append({**label, "alignment": None, **found})
        order = {key: i for i, key in enumerate(self._config.classes)}
        entries.sort(key=lambda entry: order[entry["unit"], entry["word_class"]])
        return conform(_table(flat, entries), "nbest_errors")

    def _entries(
        self,
        unit: Any,
        word_classes: list[str],
        flat: FlatNBest,
        references: list[str | None],
        keywords: list[list[str] | None],
    ) -> list[dict[str, Any]]:
        rows = flat.rows()
        known = text.units(["" if r is None else r for r in references], self._config.normaliser, unit)
        heard = text.units(flat.texts, self._config.normaliser, unit)
        reference_units, hypothesis_units = align.encode(unit, known, heard)
        repeated = reference_units[rows]
        has_reference = np.array([r is not None for r in references], bool)
        entries = []
        label = {"unit": unit, "normaliser": self._config.normaliser}
        if "all" in word_classes:
            entries.append(
                {**label, "word_class": "all", "known": has_reference, "lengths": reference_units.lengths}
                | self._totals(repeated, hypothesis_units, flat)
            )
        classed = [c for c in word_classes if c != "all"]
        if classed:
            edits = align.edits(repeated, hypothesis_units, self._config.alignment)
            has_keywords = np.array([k is not None for k in keywords], bool)
            biased = [self._word_classes.biased(k) for k in keywords]
            for word_class in classed:
                own: Sequence[Container[str]]
                own = [self._word_classes.rare] * len(known) if word_class == "rare" else biased
                pairs = class_counts([known[r] for r in rows], heard, [own[r] for r in rows], edits)
                lengths = np.array(
                    [sum(w in ws for w in r.split()) for r, ws in zip(known, own, strict=True)], np.int64
                )
                entries.append(
                    {
                        **label,
                        "word_class": word_class,
                        "known": has_reference if word_class == "rare" else has_reference & has_keywords,
                        "lengths": reference_units.lengths - lengths if word_class == "unbiased" else lengths,
                    }
                    | _per_hypothesis(pairs[int(word_class == "unbiased")])
                )
        for entry in entries:
            entry["alignment"] = self._config.alignment
        return entries

    def _totals(self, references: align.Encoded, hypotheses: align.Encoded, flat: FlatNBest) -> dict[str, Any]:
        """Under unit costs only totals are counted in bulk; the split is made where the oracle needs it."""
        if self._config.alignment != "unit":
            return _per_hypothesis(align.count(references, hypotheses, self._config.alignment))
        errors = align.distances(references, hypotheses)
        fewest = np.lexsort((errors, flat.rows()))[flat.offsets[:-1][np.diff(flat.offsets) > 0]]
        substitutions = np.full(len(errors), _NOT_COUNTED)
        substitutions[fewest] = align.count(references[fewest], hypotheses[fewest]).substitutions
        return {"errors": errors, "substitutions": substitutions, "num_units": hypotheses.lengths}


def _per_hypothesis(counts: align.Counts) -> dict[str, npt.NDArray[np.int64]]:
    return {
        "errors": counts.errors,
        "substitutions": counts.substitutions,
        "num_units": counts.hits + counts.substitutions + counts.insertions,
    }


def _integers(values: npt.NDArray[Any]) -> pa.Array:
    return pa.array(values.astype(np.int32), mask=values == _NOT_COUNTED)


def _table(flat: FlatNBest, entries: list[dict[str, Any]]) -> pa.Table:
    """NBEST_ERRORS with one struct per entry in each row, built from flat arrays."""
    num_utterances, num_entries = len(flat.utterance_ids), len(entries)
    interleave = np.arange(num_utterances * num_entries).reshape(num_entries, num_utterances).T.ravel()

    def labels(name: str) -> pa.Array:
        return pa.array([entry[name] for entry in entries for _ in range(num_utterances)], pa.string()).take(order)

    def lists(name: str, nullable: bool) -> pa.Array:
        columns = []
        for entry in entries:
            if name not in entry:
                columns.append(pa.nulls(num_utterances, pa.list_(pa.int32())))
                continue
            offsets = pa.array(flat.offsets.astype(np.int32))
            missing = pa.array(~entry["known"]) if nullable else None
            columns.append(pa.ListArray.from_arrays(offsets, _integers(entry[name]), mask=missing))
        return pa.concat_arrays(columns).take(order)

    order = pa.array(interleave)
    lengths = [pa.array(e["lengths"].astype(np.int32), mask=~e["known"]) for e in entries]
    columns = {
        "unit": labels("unit"),
        "normaliser": labels("normaliser"),
        "word_class": labels("word_class"),
        "alignment": labels("alignment"),
        "reference_length": pa.concat_arrays(lengths).take(order),
        "errors": lists("errors", True),
        "substitutions": lists("substitutions", True),
        "num_units": lists("num_units", False),
        **{name: lists(name, True) for name in MATCHES},
    }
    arrays = [columns[f.name] for f in HYPOTHESIS_ERRORS]
    structs = pa.StructArray.from_arrays(arrays, fields=list(HYPOTHESIS_ERRORS))
    offsets = pa.array(np.arange(num_utterances + 1, dtype=np.int32) * num_entries)
    return pa.table(
        {
            "utterance_id": pa.array(flat.utterance_ids, pa.string()),
            "counts": pa.ListArray.from_arrays(offsets, structs),
        }
    )
