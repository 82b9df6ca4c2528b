"""NBEST_ERRORS -> what the weight search minimises: sums of counts first, ratios after.

Every objective is a function of corpus totals, so a sweep adds up integer counts and only then divides: error rates
are linear in the totals, a keyword F1 is not, and both come out exact.
Shapes: U utterances, H hypotheses, M counts, T terms.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ctxasr_ray.schema import ContractError

UNITS: Final[Mapping[str, tuple[str, ...]]] = {
    "wer": ("word",),
    "cer": ("character",),
    "f1_loss": ("phrase",),
}
"""Metric -> the units it counts in. f1_loss is 1 - F1."""
SHORT_NAMES: Final[Mapping[str, tuple[str, str, str]]] = {
    "wer": ("wer", "word", "all"),
    "cer": ("cer", "character", "all"),
    "biased_wer": ("wer", "word", "biased"),
    "unbiased_wer": ("wer", "word", "unbiased"),
    "rare_wer": ("wer", "word", "rare"),
    "keyword_f1_loss": ("f1_loss", "phrase", "keyword"),
}
"""Name -> metric, unit and word class."""
_TERM: Final = re.compile(r"(?:([0-9.]+(?:e-?[0-9]+)?)\s*\*\s*)?([\w.|-]+)")
_F1_COUNTS: Final = ("true_positives", "false_positives", "false_negatives")


@dataclass(frozen=True, kw_only=True, slots=True)
class Term:
    """One summand of an objective: a weight times a rate that is to be small."""

    metric: str
    """wer or cer: errors / reference length; f1_loss: 1 - F1 of keyword matches."""
    unit: str
    normaliser: str
    word_class: str
    weight: float = 1.0

    def __str__(self) -> str:
        name = f"{self.metric}|{self.unit}|{self.normaliser}|{self.word_class}"
        return name if self.weight == 1 else f"{self.weight!r}*{name}"

    @property
    def columns(self) -> tuple[str, ...]:
        """The per-hypothesis counts in NBEST_ERRORS that the term adds up."""
        return _F1_COUNTS if self.metric == "f1_loss" else ("errors",)


def parse_objective(objective: str, normaliser: str = "whisper_english") -> tuple[Term, ...]:
    """Reads a sum of terms: short names such as "wer" or "0.7*wer + 0.3*keyword_f1_loss", or full ones.

    Args:
        objective: Terms joined by " + ", each "[weight*]name" with a name of `SHORT_NAMES`, or
            "[weight*]metric|unit|normaliser|word_class" for any counts that NBEST_ERRORS may hold.
        normaliser: Of the short names.

    Raises:
        ValueError: another form, an unknown name, or a unit that is not the metric's.
    """
    terms = []
    for part in objective.split(" + "):
        match = _TERM.fullmatch(part.strip())
        name = match[2].split("|") if match else []
        if len(name) == 1 and name[0] in SHORT_NAMES:
            metric, unit, word_class = SHORT_NAMES[name[0]]
            name = [metric, unit, normaliser, word_class]
        if match is None or len(name) != 4:
            raise ValueError(
                f"objective '{objective}': '{part}' is neither one of {', '.join(SHORT_NAMES)} nor "
                "'metric|unit|normaliser|word_class'; terms are joined by ' + ' and may have a weight: '0.5*wer'."
            )
        metric, unit, its_normaliser, word_class = name
        if UNITS.get(metric) is None or unit not in UNITS[metric]:
            raise ValueError(
                f"objective '{objective}': no metric '{metric}' in unit '{unit}'; expected one of "
                f"{', '.join(f'{m} in {u}' for m, units in UNITS.items() for u in units)}."
            )
        weight = 1.0 if match[1] is None else float(match[1])
        terms.append(Term(metric=metric, unit=unit, normaliser=its_normaliser, word_class=word_class, weight=weight))
    return tuple(terms)


@dataclass(frozen=True, slots=True)
class Counts:
    """What each hypothesis would add to the corpus totals of an objective.

    Args:
        terms: (T,) terms; each owns one column of counts (errors) or three (matches of keywords).
        per_hypothesis: (H, M) float64 whole numbers, the counts of each hypothesis; zero without a reference.
        constant: (U, M) float64, counts of utterances without hypotheses: everything deleted.
        references: (U, T) float64, units (or phrases) in each reference; zero without a reference.
    """

    terms: tuple[Term, ...]
    per_hypothesis: npt.NDArray[np.float64]
    constant: npt.NDArray[np.float64]
    references: npt.NDArray[np.float64]

    def value(
        self, totals_BM: npt.NDArray[np.float64], references_T: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.float64]:
        """The objective for many corpus totals at once; lower is better.

        Args:
            totals_BM: (..., M) totals of the counts.
            references_T: Totals of the reference lengths.
        """
        value_B = np.zeros(totals_BM.shape[:-1])
        column = 0
        for t, term in enumerate(self.terms):
            if term.metric == "f1_loss":
                hits, extra, missed = (totals_BM[..., column + i] for i in range(3))
                wrong = extra + missed
                # nothing to find and nothing found is no loss
                loss = np.divide(wrong, 2 * hits + wrong, out=np.zeros_like(value_B), where=wrong > 0)
                value_B += term.weight * loss
            else:
                value_B += term.weight * totals_BM[..., column] / max(float(references_T[t]), 1.0)
            column += len(term.columns)
        return value_B


def read_counts(
    nbest_errors: pa.Table, offsets: npt.NDArray[np.int64], utterance_ids: list[str], terms: tuple[Term, ...]
) -> Counts:
    """Picks the counts of an objective out of NBEST_ERRORS.

    Args:
        nbest_errors: Rows of the same utterances in the same order as the HYPOTHESES.
        offsets: (U + 1,) of the HYPOTHESES.
        utterance_ids: (U,) of the HYPOTHESES.
        terms: From `parse_objective`.

    Raises:
        ContractError: counts that are not parallel to the hypotheses, or a term that the table does not hold.
        ValueError: no utterance has a reference for a term.
    """
    per_hypothesis: list[npt.NDArray[np.float64]] = []
    constants: list[npt.NDArray[np.float64]] = []
    references: list[npt.NDArray[np.float64]] = []
    empty_U = np.diff(offsets) == 0
    for term in terms:
        entry = Entry.find(nbest_errors, term.unit, term.normaliser, term.word_class)
        if entry.reference_lengths.sum() == 0:
            raise ValueError(
                f"objective '{term}': none of the {len(empty_U)} utterances has a reference for it; tune on a split "
                "with references."
            )
        references.append(entry.reference_lengths)
        for name in term.columns:
            per_hypothesis.append(entry.parallel(name, offsets, utterance_ids))
            lost = name in ("errors", "false_negatives")
            constants.append(np.where(empty_U & lost, entry.reference_lengths, 0.0))
    return Counts(terms, np.stack(per_hypothesis, 1), np.stack(constants, 1), np.stack(references, 1))


@dataclass(frozen=True, slots=True)
class Entry:
    """The part of NBEST_ERRORS that belongs to one (unit, normaliser, word class).

    Args:
        name: For messages.
        rows: (R,) the utterance of each struct; an utterance without a reference may have none.
        structs: (R,) HYPOTHESIS_ERRORS.
        reference_lengths: (U,) float64; zero without a reference.
    """

    name: str
    rows: npt.NDArray[np.int64]
    structs: pa.StructArray
    reference_lengths: npt.NDArray[np.float64]

    @classmethod
    def find(cls, nbest_errors: pa.Table, unit: str, normaliser: str, word_class: str) -> "Entry":
        """Selects the structs of one (unit, normaliser, word class).

        Raises:
            ContractError: no utterance has it, or one has it twice.
        """
        column = nbest_errors.column("counts").combine_chunks()
        lengths = column.value_lengths().to_numpy(zero_copy_only=False)
        flat = column.flatten()
        kinds = [pc.struct_field(flat, [name]) for name in ("unit", "normaliser", "word_class")]
        mask = np.ones(len(flat), dtype=bool)
        for kind, wanted in zip(kinds, (unit, normaliser, word_class), strict=True):
            mask &= np.asarray(pc.equal(kind, wanted))
        rows = np.repeat(np.arange(len(column)), lengths)[mask]
        name = f"{unit}|{normaliser}|{word_class}"
        if not len(rows) or len(np.unique(rows)) != len(rows):
            held = sorted({"|".join(k) for k in zip(*(kind.to_pylist() for kind in kinds), strict=True)})
            raise ContractError(
                f"nbest_errors: {'no utterance has' if not len(rows) else 'an utterance has twice'} the counts "
                f"'{name}'; got {held}. Count that class in the step that writes NBEST_ERRORS."
            )
        structs = flat.filter(pa.array(mask))
        reference_lengths_U = np.zeros(len(column))
        reference_lengths_U[rows] = pc.fill_null(pc.struct_field(structs, ["reference_length"]), 0).to_numpy()
        return cls(name, rows, structs, reference_lengths_U)

    def parallel(self, field: str, offsets: npt.NDArray[np.int64], ids: list[str]) -> npt.NDArray[np.float64]:
        """(H,) counts of each hypothesis; zero where the utterance has no reference.

        Raises:
            ContractError: another number of counts than hypotheses.
        """
        column = pc.struct_field(self.structs, [field])
        held = np.asarray(column.is_valid())
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy()
        expected = np.diff(offsets)[self.rows]
        wrong = np.flatnonzero(held & (lengths != expected))
        if len(wrong):
            row = int(wrong[0])
            raise ContractError(
                f"nbest_errors '{self.name}', utterance '{ids[self.rows[row]]}': {lengths[row]} {field} for "
                f"{expected[row]} hypotheses; count the errors of the current HYPOTHESES."
            )
        values_H = np.zeros(int(offsets[-1]))
        mine = np.zeros(len(offsets) - 1, dtype=bool)
        mine[self.rows[held]] = True
        values_H[np.repeat(mine, np.diff(offsets))] = column.flatten().to_numpy()
        return values_H
