"""NBEST_ERRORS -> ERRORS: the hypothesis with fewest errors of each list, the best that rescoring could reach."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from ctxasr_ray import align
from ctxasr_ray.metrics.counts import METRIC_NAMES, MetricCounts, errors_table
from ctxasr_ray.schema import ContractError
from ctxasr_ray.stage import Costs, Resources, Stage, light


@dataclass(frozen=True, kw_only=True, slots=True)
class OracleConfig:
    """Takes the fewest errors of each list, per unit and word class by itself; the better-ranked one on ties.

    An empty list is all deletions; a row without reference is left out.
    """

    NAME: ClassVar[str] = "oracle"
    STAGE_VERSION: ClassVar[int] = 1
    READS: ClassVar[Mapping[str, tuple[str, ...]]] = {"nbest_errors": ("counts",)}
    WRITES: ClassVar[str] = "errors"

    resources: Resources = field(default_factory=light)
    """Actors of the pool."""

    def fingerprint(self) -> Mapping[str, str]:
        """Nothing outside the config."""
        return {}

    def build(self) -> Stage:
        """Returns the choosing function; there is no model to load."""
        return _oracle


def _oracle(*tables: pa.Table, costs: Costs) -> pa.Table:
    (nbest_errors,) = tables
    ids = nbest_errors.column("utterance_id").to_pylist()
    chosen: dict[tuple[str, str], dict[int, tuple[int, int, int, int]]] = {}
    labels: dict[tuple[str, str], tuple[str, str]] = {}
    for row, counts in enumerate(nbest_errors.column("counts").to_pylist()):
        for entry in counts or ():
            key = (entry["unit"], entry["word_class"])
            if key not in METRIC_NAMES:
                continue  # keyword counts have no error rate of their own
            if entry["reference_length"] is not None:
                chosen.setdefault(key, {})[row] = _fewest(entry, ids[row])
                labels[key] = (entry["normaliser"], entry["alignment"] or "unit")
    metrics = []
    for key, found in chosen.items():
        rows = np.array(list(found))
        counted = np.zeros(len(ids), bool)
        counted[rows] = True
        arrays = np.zeros((4, len(ids)), np.int64)
        arrays[:, rows] = np.array(list(found.values())).T
        metrics.append(
            MetricCounts(
                metric=METRIC_NAMES[key],
                unit=key[0],
                word_class=key[1],
                normaliser=labels[key][0],
                alignment=labels[key][1],
                counted=counted,
                counts=align.Counts(*arrays),
            )
        )
    costs.count("lists", len(ids))
    return errors_table(ids, metrics)


def _fewest(entry: Mapping[str, Any], utterance_id: str) -> tuple[int, int, int, int]:
    """Hits, substitutions, deletions and insertions of the first hypothesis with fewest errors."""
    length = int(entry["reference_length"])
    if not entry["errors"]:
        return 0, 0, length, 0
    best = int(np.argmin(entry["errors"]))
    if entry["num_units"] is None or entry["substitutions"] is None or entry["substitutions"][best] is None:
        raise ContractError(
            f"nbest_errors, utterance '{utterance_id}', {entry['unit']} of {entry['word_class']}: substitutions or "
            "num_units are null; the oracle needs both to split its errors. Write the table with NbestErrorsConfig."
        )
    errors, substitutions = int(entry["errors"][best]), int(entry["substitutions"][best])
    insertions = (errors - substitutions + int(entry["num_units"][best]) - length) // 2
    deletions = errors - substitutions - insertions
    return length - substitutions - deletions, substitutions, deletions, insertions
