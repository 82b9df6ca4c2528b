"""ERRORS between Arrow and numpy: one set of counts per metric, one row per utterance.

Shape letter: U utterances.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ctxasr_ray import align, text
from ctxasr_ray.schema import ERROR_COUNT, ERRORS, ContractError, conform
from ctxasr_ray.stage import Resources, light

METRICS: Final[Mapping[str, tuple[str, str]]] = {
    "wer": ("word", "all"),
    "cer": ("character", "all"),
    "biased_wer": ("word", "biased"),
    "unbiased_wer": ("word", "unbiased"),
    "rare_wer": ("word", "rare"),
    "orthographic_wer": ("word", "all"),
    "mer": ("word", "all"),
}
"""Error rate -> (unit, word class)."""
OWN_NORMALISERS: Final[Mapping[str, str]] = {"orthographic_wer": "none", "mer": "mandarin"}
"""Error rates that are defined by their normaliser: O-WER keeps case and punctuation, the mixed error rate counts each
Han or kana character and each Latin word."""
METRIC_NAMES: Final[Mapping[tuple[str, str], str]] = {
    key: name for name, key in METRICS.items() if name not in OWN_NORMALISERS
}
"""(unit, word class) -> error rate under the normaliser that a config names."""
PAIRS_PER_STEP: Final = 1 << 16
"""Pairs that are aligned in one call, so that a million utterances need little memory and no vocabulary overflows."""
COUNT_NAMES: Final = ("hits", "substitutions", "deletions", "insertions", "reference_length")


@dataclass(frozen=True, kw_only=True, slots=True)
class CountOptions:
    """How a system's words are held against the reference, in the config of every stage that counts them."""

    normaliser: str = "whisper_english"
    """One of `text.NORMALISERS`, for all sides."""
    alignment: str = "unit"
    """Costs of the alignment: unit (1/1/1) or nist (4/3/3)."""
    resources: Resources = field(default_factory=light)
    """Actors of the pool."""

    def fingerprint(self) -> Mapping[str, str]:
        """The normaliser's version.

        Raises:
            ValueError: an unknown normaliser or alignment.
        """
        align.check_alignment(self.alignment)
        return {"normaliser": text.versioned(self.normaliser)}


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricCounts:
    """One metric's counts over U utterances."""

    metric: str
    unit: str
    normaliser: str
    """Its name; the signature adds its version."""
    word_class: str
    alignment: str
    counted: npt.NDArray[np.bool_]
    """(U,) False where the utterance has no reference; its counts are zero and mean nothing."""
    counts: align.Counts
    """(U,) each."""


def errors_table(utterance_ids: Sequence[str], metrics: Sequence[MetricCounts]) -> pa.Table:
    """One ERRORS row per utterance, metrics in the order given, without those that do not count it."""
    num_utterances = len(utterance_ids)
    if not metrics:
        empty = pa.array([[] for _ in utterance_ids], ERRORS.field("counts").type)
        return conform(pa.table({"utterance_id": pa.array(utterance_ids, pa.string()), "counts": empty}), "errors")
    counted = np.stack([m.counted for m in metrics], axis=1)  # (U, metrics)
    chosen = np.flatnonzero(counted.ravel())
    labels = [
        pa.array([getattr(m, name) for m in metrics]).take(pa.array(chosen % len(metrics)))
        for name in ("metric", "unit", "normaliser", "word_class", "alignment")
    ]
    numbers = [
        pa.array(np.stack([getattr(m.counts, name) for m in metrics], axis=1).ravel()[chosen].astype(np.int64))
        for name in COUNT_NAMES
    ]
    structs = pa.StructArray.from_arrays([*labels, *numbers], fields=list(ERROR_COUNT))
    offsets = np.concatenate([[0], np.cumsum(counted.sum(axis=1))]).astype(np.int32)
    lists = pa.ListArray.from_arrays(pa.array(offsets), structs)
    assert len(lists) == num_utterances
    return conform(pa.table({"utterance_id": pa.array(utterance_ids, pa.string()), "counts": lists}), "errors")


def read_errors(errors: pa.Table) -> list[MetricCounts]:
    """The metrics of an ERRORS table, in the order in which they first appear.

    Raises:
        ContractError: a metric that stands twice in one utterance, or under two normalisers or alignments.
    """
    column = errors.column("counts").combine_chunks()
    rows = np.repeat(np.arange(len(column)), np.asarray(column.value_lengths()))
    structs = column.flatten()
    values = {field.name: structs.field(i) for i, field in enumerate(structs.type)}
    names = np.asarray(values["metric"]).astype(str)
    ids = errors.column("utterance_id")
    found = []
    for metric in dict.fromkeys(names.tolist()):
        mine = np.flatnonzero(names == metric)
        labels = {}
        for label in ("unit", "normaliser", "word_class", "alignment"):
            distinct = values[label].take(pa.array(mine)).unique().to_pylist()
            if len(distinct) > 1:
                raise ContractError(
                    f"errors, metric '{metric}': {label} is {distinct[0]} in some rows and {distinct[1]} in others; "
                    "counts made in different ways do not add up. Count all of them with one config."
                )
            labels[label] = distinct[0]
        if len(np.unique(rows[mine])) < len(mine):
            twice = int(rows[mine][np.flatnonzero(np.diff(rows[mine]) == 0)[0]])
            raise ContractError(f"errors, utterance '{ids[twice].as_py()}': metric '{metric}' stands twice.")
        arrays = []
        for name in ("hits", "substitutions", "deletions", "insertions"):
            array = np.zeros(len(column), np.int64)
            array[rows[mine]] = np.asarray(values[name])[mine]
            arrays.append(array)
        counted = np.zeros(len(column), bool)
        counted[rows[mine]] = True
        found.append(MetricCounts(metric=metric, counted=counted, counts=align.Counts(*arrays), **labels))
    return found


def same_rows(name: str, table: pa.Table, parent_name: str, parent: pa.Table) -> None:
    """Refuses two tables of a shard that are not row for row of the same utterances.

    Raises:
        ContractError: other ids, or another order.
    """
    if not table.column("utterance_id").equals(parent.column("utterance_id")):
        got, expected = (t.column("utterance_id").to_pylist() for t in (table, parent))
        at = next(
            (i for i, (a, b) in enumerate(zip(got, expected, strict=False)) if a != b), min(len(got), len(expected))
        )
        raise ContractError(
            f"{name}, row {at}: ids differ from {parent_name} ({len(got)} rows for {len(expected)}); "
            "a shard's tables have the same utterances in the same order."
        )


def count_metric(
    metric: str, references: Sequence[str | None], hypotheses: Sequence[str], normaliser: str, alignment: str
) -> MetricCounts:
    """Counts a metric of all words over U utterances; a null reference is not counted, an empty one counts insertions.

    Args:
        metric: One of `METRICS` whose word class is `all`; one that has its own normaliser ignores the given one.
        references: (U,) raw.
        hypotheses: (U,) raw; a failed utterance is the empty string.
        normaliser: One of `text.NORMALISERS`.
        alignment: One of `align.ALIGNMENTS`.

    Raises:
        ValueError: an unknown metric, normaliser or alignment.
    """
    unit, word_class = METRICS.get(metric, ("", ""))
    if word_class != "all":
        known_here = [name for name, (_, of) in METRICS.items() if of == "all"]
        raise ValueError(f"metric '{metric}' is unknown here; choose one of {', '.join(known_here)}.")
    normaliser = OWN_NORMALISERS.get(metric, normaliser)
    counted = np.array([r is not None for r in references], bool)
    known = ["" if r is None else r for r in references]
    heard = [h if ok else "" for h, ok in zip(hypotheses, counted.tolist(), strict=True)]
    parts = []
    for start in range(0, len(known), PAIRS_PER_STEP) or (0,):
        sides = [side[start : start + PAIRS_PER_STEP] for side in (known, heard)]
        reference_units, hypothesis_units = align.encode(unit, *(text.units(s, normaliser, unit) for s in sides))
        parts.append(align.count(reference_units, hypothesis_units, alignment))
    return MetricCounts(
        metric=metric,
        unit=unit,
        normaliser=normaliser,
        word_class=word_class,
        alignment=alignment,
        counted=counted,
        counts=align.Counts.joined(parts),
    )
