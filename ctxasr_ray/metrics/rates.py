"""ERRORS counts -> rates: each is one sum over another, so that one bootstrap serves them all.

| counts of | give |
|---|---|
| an error rate | its errors / reference length |
| keyword | keyword_recall, keyword_precision and keyword_f1, micro-averaged |
| distractor_false_alarms | their number, phrases in all |
| keyword_leaks | their number, phrases in all |
| recall@k | share of true phrases among the first k of a shortlist |
| confidently_wrong_repairable, gate_lockout | shares, see `confident_errors` |
| harmful_edits | share of the words that the baseline had right and the system has wrong |
| helpful_edits | share of the words that the baseline had wrong and the system has right |
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ctxasr_ray import align

HIGHER_IS_BETTER: Final = frozenset(
    {
        "recall",
        "recall@1",
        "recall@8",
        "recall@64",
        "keyword_recall",
        "keyword_precision",
        "keyword_f1",
        "helpful_edits",
        "oracle_gap_closed",
        "confidence_auc",
        "confidence_nce",
        "reliability",
        "confidently_wrong_repaired",
        "confidently_wrong_repairable",
    }
)
"""Metrics of RESULTS for which a positive delta is an improvement; others are better when lower."""
COUNT_NAMES: Final = ("hits", "substitutions", "deletions", "insertions", "reference_length")
Column = Callable[[align.Counts], npt.NDArray[Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Rate:
    """One metric of RESULTS from the counts of one metric of ERRORS."""

    metric: str
    unit: str
    numerator: Column
    denominator: Column
    is_total: bool = False
    """The value is the numerator over all utterances; its interval is that of the mean times their number."""
    count_names: Mapping[str, str] = field(default_factory=lambda: dict(zip(COUNT_NAMES, COUNT_NAMES, strict=True)))
    """Count of ERRORS -> its name in RESULTS."""


def rates_of(metric: str, unit: str) -> tuple[Rate, ...]:
    """The rates that a metric of ERRORS gives; an error rate gives itself."""
    if metric in _RATES:
        return _RATES[metric]
    return (Rate(metric=metric, unit=unit, numerator=_errors, denominator=_reference_length),)


def _errors(counts: align.Counts) -> npt.NDArray[Any]:
    return counts.errors


def _reference_length(counts: align.Counts) -> npt.NDArray[Any]:
    return counts.reference_length


def _hits(counts: align.Counts) -> npt.NDArray[Any]:
    return counts.hits


def _keyword(metric: str, numerator: Column, denominator: Column) -> Rate:
    names = {"hits": "true_positives", "insertions": "false_positives", "deletions": "false_negatives"}
    return Rate(metric=metric, unit="phrase", numerator=numerator, denominator=denominator, count_names=names)


def _share(metric: str, unit: str, hits: str, others: str) -> Rate:
    names = {"hits": hits, "deletions": others, "reference_length": f"{unit}s"}
    return Rate(metric=metric, unit=unit, numerator=_hits, denominator=_reference_length, count_names=names)


def _number(metric: str, counted: str) -> Rate:
    return Rate(
        metric=metric,
        unit="phrase",
        numerator=lambda c: c.insertions,
        denominator=lambda c: np.ones_like(c.insertions),
        is_total=True,
        count_names={"insertions": counted},
    )


_EDITED: Final = {"hits": "right", "substitutions": "wrong", "reference_length": "words"}
_RATES: Final[Mapping[str, tuple[Rate, ...]]] = {
    "keyword": (
        _keyword("keyword_recall", _hits, _reference_length),
        _keyword("keyword_precision", _hits, lambda c: c.hits + c.insertions),
        _keyword("keyword_f1", lambda c: 2 * c.hits, lambda c: c.reference_length + c.hits + c.insertions),
    ),
    "distractor_false_alarms": (_number("distractor_false_alarms", "false_alarms"),),
    "keyword_leaks": (_number("keyword_leaks", "leaks"),),
    **{f"recall@{depth}": (_share(f"recall@{depth}", "phrase", "listed", "not_listed"),) for depth in (1, 8, 64)},
    "confidently_wrong_repairable": (_share("confidently_wrong_repairable", "word", "repairable", "not_repairable"),),
    "gate_lockout": (_share("gate_lockout", "token", "locked_out", "let_in"),),
    "harmful_edits": (
        Rate(
            metric="harmful_edits",
            unit="word",
            numerator=_errors,
            denominator=_reference_length,
            count_names=_EDITED,
        ),
    ),
    "helpful_edits": (
        Rate(metric="helpful_edits", unit="word", numerator=_hits, denominator=_reference_length, count_names=_EDITED),
    ),
}
