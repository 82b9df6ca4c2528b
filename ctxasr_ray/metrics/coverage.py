"""Tables of a system beside UTTERANCES: an id that the system lacks is charged, never dropped.

Shape letter: U utterances.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ctxasr_ray import align, text
from ctxasr_ray.metrics.counts import METRICS, MetricCounts
from ctxasr_ray.metrics.word_classes import WordLists


def positions(table: pa.Table, ids: list[str]) -> tuple[npt.NDArray[np.int64], int]:
    """(U,) row of each utterance in a table, -1 where it has none; and how many rows are nobody's."""
    own = table.column("utterance_id").to_pylist()
    if own == ids:
        return np.arange(len(ids)), 0
    where = {utterance_id: row for row, utterance_id in enumerate(own)}
    at = np.array([where.get(utterance_id, -1) for utterance_id in ids], np.int64)
    return at, len(own) - int((at >= 0).sum())


def place(metric: MetricCounts, at: npt.NDArray[np.int64]) -> MetricCounts:
    """The same counts in the order of UTTERANCES; zero and not counted where `at` is -1."""

    def take(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.append(values, np.zeros(1, values.dtype))[at]

    counts = align.Counts(*map(take, metric.counts.columns()))
    return MetricCounts(
        metric=metric.metric,
        unit=metric.unit,
        normaliser=metric.normaliser,
        word_class=metric.word_class,
        alignment=metric.alignment,
        counted=take(metric.counted),
        counts=counts,
    )


def charge_deletions(
    metric: MetricCounts, missing: npt.NDArray[np.bool_], utterances: pa.Table, lists: WordLists
) -> None:
    """Every unit of a missing utterance's reference becomes a deletion, as if the system had said nothing.

    A metric that compares with another system's words (harmful and helpful edits) cannot be charged and stays as it is.
    """
    if metric.word_class == "keyword":
        _charge_keywords(metric, missing, utterances)
    if metric.metric not in METRICS:
        return
    classes = lists.load(metric.normaliser)
    for row in np.flatnonzero(missing).tolist():
        reference = utterances.column("reference")[row].as_py()
        phrases = utterances.column("keywords")[row].as_py()
        if reference is None or (metric.word_class in ("biased", "unbiased") and phrases is None):
            continue
        (normal,) = text.units([reference], metric.normaliser, metric.unit)
        units: Sequence[str] = normal.split() if metric.unit == "word" else normal
        if metric.word_class == "rare":
            units = [word for word in units if word in classes.rare]
        elif metric.word_class != "all":
            biased = classes.biased(phrases)
            units = [word for word in units if (word in biased) == (metric.word_class == "biased")]
        metric.counts.deletions[row] = len(units)
        metric.counted[row] = True


def _charge_keywords(metric: MetricCounts, missing: npt.NDArray[np.bool_], utterances: pa.Table) -> None:
    for row in np.flatnonzero(missing).tolist():
        phrases = utterances.column("keywords")[row].as_py()
        if phrases is None:
            continue
        if metric.metric == "keyword":
            metric.counts.deletions[row] = sum(bool(text.words(phrase, metric.normaliser)) for phrase in phrases)
        metric.counted[row] = True
