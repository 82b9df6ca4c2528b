"""The counts of every system on one corpus and split -> rows of RESULTS, metric by metric.

Shape letters: U utterances, S systems.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ctxasr_ray import text
from ctxasr_ray.metrics.counts import METRICS, MetricCounts
from ctxasr_ray.metrics.rates import HIGHER_IS_BETTER, Rate, rates_of
from ctxasr_ray.metrics.significance import (
    MAX_BLOCKS,
    Blocks,
    Comparison,
    adjusted_p_values,
    choose_blocks,
    compare,
    matched_pairs_p,
)
from ctxasr_ray.schema import ContractError
from ctxasr_ray.stage import Costs

_GAP_METRICS: Final = ("wer", "mer")


class Options(Protocol):
    """What rows need to know of `SummaryConfig`."""

    @property
    def baseline(self) -> str:
        """The system that every other one is compared with."""
        ...

    @property
    def gaps(self) -> Mapping[str, tuple[str, str]]:
        """System -> its 1-best and its oracle."""
        ...

    @property
    def condition(self) -> Mapping[str, str]:
        """Stands in every row."""
        ...

    @property
    def num_replicates(self) -> int:
        """Of the bootstrap."""
        ...

    @property
    def seed(self) -> int:
        """Of the bootstrap."""
        ...


@dataclass(slots=True)
class SystemCounts:
    """What one system's tables say, row for row of UTTERANCES."""

    metrics: dict[str, MetricCounts] = field(default_factory=dict)
    missing: dict[str, npt.NDArray[np.bool_]] = field(default_factory=dict)
    """Per metric (U,): the table has no such utterance, it counts as all deletions."""
    num_extra: dict[str, int] = field(default_factory=dict)
    failed: npt.NDArray[np.bool_] | None = None
    unscored: npt.NDArray[np.int64] | None = None
    num_configurations: int = 0


class GroupRows:
    """The rows of one corpus and split: system by system, metric by metric."""

    def __init__(
        self,
        options: Options,
        utterances: pa.Table,
        name: tuple[str, str],
        members: npt.NDArray[np.bool_],
        systems: Mapping[str, SystemCounts],
    ) -> None:
        self._options, self._systems, self._members = options, systems, members
        self._split, self._corpus = name
        self._has_reference = np.asarray(utterances.column("reference").is_valid())
        self._speakers, self._sessions = (
            np.asarray(utterances.column(c).to_pylist(), object) for c in ("speaker_id", "session_id")
        )
        self._blocks: dict[bytes, Blocks] = {}

    def rows(self, costs: Costs) -> list[dict[str, Any]]:
        """RESULTS rows in the order of the systems."""
        order = {system: i for i, system in enumerate(self._systems)}
        rows = []
        for metric in dict.fromkeys(metric for system in self._systems.values() for metric in system.metrics):
            found = {name: s.metrics[metric] for name, s in self._systems.items() if metric in s.metrics}
            _same_way(metric, found)
            counted = self._members & np.logical_or.reduce([m.counted for m in found.values()])
            if metric not in METRICS and not counted.any():
                continue  # no utterance of this corpus has keywords: no such row
            whole = {name: m for name, m in found.items() if (m.counted | ~counted).all()}
            unit = next(iter(found.values())).unit
            for rate in rates_of(metric, unit):
                rows += self._rate_rows(rate, whole, counted) if whole else []
                for name in found.keys() - whole.keys():
                    rows += self._row_alone(rate, name, found[name], counted)
                costs.count("bootstrap_replicates", self._options.num_replicates)
            if metric in _GAP_METRICS:
                rows += self._gap_rows(whole, counted)
        return sorted(rows, key=lambda row: order[row["system"]])

    @property
    def num_single(self) -> int:
        """Utterances that were resampled one by one since too few speakers and sessions are known."""
        return max((own.num_blocks for own in self._blocks.values() if own.kind == "utterance"), default=0)

    def _rate_rows(
        self, rate: Rate, found: Mapping[str, MetricCounts], counted: npt.NDArray[np.bool_]
    ) -> list[dict[str, Any]]:
        blocks = self._blocks_of(counted)
        systems = list(found)
        parts_US = np.stack([rate.numerator(m.counts)[counted] for m in found.values()], axis=1)
        wholes_US = np.stack([rate.denominator(m.counts)[counted] for m in found.values()], axis=1)
        baseline = systems.index(self._options.baseline) if self._options.baseline in systems else None
        result = compare(
            parts_US,
            wholes_US,
            blocks,
            baseline=baseline or 0,
            num_replicates=self._options.num_replicates,
            seed=self._options.seed,
            higher_is_better=rate.metric in HIGHER_IS_BETTER,
        )
        scale = int(counted.sum()) if rate.is_total else 1
        others = [i for i in range(len(systems)) if baseline is not None and i != baseline]
        tried = [max(1, self._systems[systems[i]].num_configurations) for i in others]
        adjusted = dict(zip(others, adjusted_p_values(result.p_value[others].tolist(), tried), strict=True))
        rows = []
        for column, (system, metric) in enumerate(found.items()):
            row = self._row(rate.metric, rate.unit, metric, blocks, system, counted)
            row |= _values(result, column, scale)
            if column in adjusted:
                row |= _comparison(result, column, scale) | {
                    "baseline": self._options.baseline,
                    "p_value_adjusted": _known(adjusted[column]),
                    "p_value_matched_pairs": _matched_pairs(rate, parts_US, wholes_US, column, baseline or 0),
                }
            row["counts"] = [*self._counts(rate, metric, system, counted).items()]
            rows.append(row)
        return rows

    def _row_alone(
        self, rate: Rate, system: str, metric: MetricCounts, counted: npt.NDArray[np.bool_]
    ) -> list[dict[str, Any]]:
        """The row of a system that cannot count some utterances: its rate does not compare with the others'."""
        rows = self._rate_rows(rate, {system: metric}, counted & metric.counted)
        rows[0]["counts"].append(("left_out_utterances", int((counted & ~metric.counted).sum())))
        return rows

    def _gap_rows(self, found: Mapping[str, MetricCounts], counted: npt.NDArray[np.bool_]) -> list[dict[str, Any]]:
        """Share of the way from the 1-best to the oracle; none where the oracle is not better than the 1-best."""
        rows = []
        blocks = self._blocks_of(counted)
        for system, (first, oracle) in self._options.gaps.items():
            if not {system, first, oracle} <= found.keys():
                continue
            errors = {name: found[name].counts.errors[counted] for name in (system, first, oracle)}
            repaired, possible = errors[first] - errors[system], errors[first] - errors[oracle]
            if possible.sum() <= 0:
                continue
            result = compare(
                repaired[:, None],
                possible[:, None],
                blocks,
                baseline=0,
                num_replicates=self._options.num_replicates,
                seed=self._options.seed,
            )
            row = self._row("oracle_gap_closed", "word", found[system], blocks, system, counted)
            row["counts"] = [("repaired", int(repaired.sum())), ("possible", int(possible.sum()))]
            rows.append(row | _values(result, 0, 1))
        return rows

    def _blocks_of(self, counted: npt.NDArray[np.bool_]) -> Blocks:
        key = counted.tobytes()
        if key not in self._blocks:
            self._blocks[key] = choose_blocks(self._speakers[counted].tolist(), self._sessions[counted].tolist())
        return self._blocks[key]

    def _row(
        self,
        name: str,
        unit: str,
        metric: MetricCounts,
        blocks: Blocks,
        system: str,
        counted: npt.NDArray[np.bool_],
    ) -> dict[str, Any]:
        options, own = self._options, self._systems[system]
        return {
            "corpus": self._corpus,
            "split": self._split,
            "system": system,
            "condition": list(options.condition.items()),
            "metric": name,
            "unit": unit,
            "num_utterances": int(counted.sum()),
            "num_failed": 0 if own.failed is None else int(own.failed[self._members].sum()),
            "num_unscored": 0 if own.unscored is None else int((own.unscored[self._members] > 0).sum()),
            "num_blocks": min(blocks.num_blocks, MAX_BLOCKS),
            "num_configurations": max(1, own.num_configurations),
            "signature": signature(
                name,
                metric,
                split=self._split,
                num_utterances=len(blocks.index),
                block=blocks.kind,
                num_replicates=options.num_replicates,
                seed=options.seed,
            ),
        }

    def _counts(self, rate: Rate, metric: MetricCounts, system: str, counted: npt.NDArray[np.bool_]) -> dict[str, int]:
        own = self._systems[system]
        sums = {to: int(getattr(metric.counts, name)[counted].sum()) for name, to in rate.count_names.items()}
        if metric.metric in METRICS and metric.word_class == "all":
            sums["empty_references"] = int((metric.counts.reference_length[counted] == 0).sum())
        return sums | {
            "unreferenced_utterances": int((self._members & ~self._has_reference).sum()),
            "missing_utterances": int((own.missing[metric.metric] & counted).sum()),
            "extra_utterances": own.num_extra[metric.metric],
        }


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _values(result: Comparison, column: int, scale: int) -> dict[str, float | None]:
    return {name: _known(getattr(result, name)[column] * scale) for name in ("value", "ci_low", "ci_high")}


def _comparison(result: Comparison, column: int, scale: int) -> dict[str, float | None]:
    scaled = {
        name: _known(getattr(result, name)[column] * scale) for name in ("delta", "delta_ci_low", "delta_ci_high")
    }
    return scaled | {name: _known(getattr(result, name)[column]) for name in ("p_value", "probability_of_improvement")}


def _matched_pairs(
    rate: Rate, parts_US: npt.NDArray[Any], wholes_US: npt.NDArray[Any], column: int, baseline: int
) -> float | None:
    """The second opinion is about errors on the same words; other rates have none."""
    if rate.metric not in METRICS or not np.array_equal(wholes_US[:, column], wholes_US[:, baseline]):
        return None
    return _known(matched_pairs_p(parts_US[:, column], parts_US[:, baseline]))


def signature(
    name: str, metric: MetricCounts, *, split: str, num_utterances: int, block: str, num_replicates: int, seed: int
) -> str:
    """All that one must know to compute the same number again, in one line without spaces."""
    parts = (
        name,
        f"norm:{text.versioned(metric.normaliser)}",
        f"align:{metric.alignment}",
        f"boot:{num_replicates},seed:{seed}",
        f"block:{block}",
        f"split:{split}",
        f"n:{num_utterances}",
        f"v{version('ctxasr-ray')}",
    )
    return "|".join(parts)


def _same_way(metric: str, by_system: Mapping[str, MetricCounts]) -> None:
    ways = {(m.unit, m.normaliser, m.word_class, m.alignment): system for system, m in by_system.items()}
    if len(ways) > 1:
        (a, first), (b, second) = list(ways.items())[:2]
        raise ContractError(
            f"errors, metric '{metric}': counted as {a} for '{first}' and as {b} for '{second}'; "
            "rates made in different ways cannot be compared. Give both systems the same config."
        )
