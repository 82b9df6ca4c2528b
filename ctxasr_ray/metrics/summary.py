"""UTTERANCES, ERRORS..., TRANSCRIPTS..., FITS... -> RESULTS: one row per corpus, split, system and metric.

Tables are told apart by place, in the order of `Step.inputs`:

1. UTTERANCES;
2. one ERRORS table per entry of `systems` (a system may stand twice, for example with WER and with B-WER counts);
3. one TRANSCRIPTS table per entry of `systems_with_transcripts` (for failed and unscored rows);
4. one FITS table per entry of `systems_with_fits` (for the number of configurations that were tried).

Rates are sums of errors over sums of reference lengths, fractions (0.05 is 5 %), never means of utterances' rates.
UTTERANCES decides who counts: an utterance that a system leaves out is charged as all deletions and counted as
`missing_utterances`, one that only the system has is counted as `extra_utterances` and nothing else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ctxasr_ray import text
from ctxasr_ray.metrics.counts import COUNT_NAMES, MetricCounts, read_errors
from ctxasr_ray.metrics.coverage import charge_deletions, place, positions
from ctxasr_ray.metrics.significance import MAX_BLOCKS, Blocks, Comparison, choose_blocks, compare
from ctxasr_ray.metrics.word_classes import WordLists
from ctxasr_ray.schema import RESULTS, ContractError, conform
from ctxasr_ray.stage import Costs, Resources, Stage


@dataclass(frozen=True, kw_only=True, slots=True)
class SummaryConfig:
    """Adds up error counts into rates with intervals and paired tests against a baseline system."""

    NAME: ClassVar[str] = "summary"
    STAGE_VERSION: ClassVar[int] = 1
    READS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "utterances": ("corpus", "split", "speaker_id", "session_id", "reference", "keywords"),
        "errors": ("counts",),
        "transcripts": ("num_unscored", "error_type"),
        "fits": ("num_configurations",),
    }
    WRITES: ClassVar[str] = "results"

    systems: tuple[str, ...]
    """The system of each ERRORS table, in the order of the step's inputs."""
    systems_with_transcripts: tuple[str, ...] = ()
    """The system of each TRANSCRIPTS table, after the ERRORS tables."""
    systems_with_fits: tuple[str, ...] = ()
    """The system that uses each FITS table, after the TRANSCRIPTS tables; the configurations of several add up."""
    baseline: str = "first_pass"
    """The system that every other one is compared with, in pairs."""
    splits: tuple[str, ...] = ("dev", "test")
    """Splits that are read and reported."""
    num_replicates: int = 10_000
    """Bootstrap replicates."""
    seed: int = 7
    """Of the bootstrap."""
    condition: Mapping[str, str] = field(default_factory=dict)
    """Stands in every row: list size, SNR, beam, interval..."""
    word_lists: WordLists = field(default_factory=WordLists)
    """Common and rare words of the counts; read only where a system leaves utterances out."""
    resources: Resources = field(default_factory=Resources)
    """Unused: the driver runs this."""

    def fingerprint(self) -> Mapping[str, str]:
        """The digests of the word lists.

        Raises:
            ValueError: the baseline is no system, a system with transcripts or fits has no errors, no replicates, or
                a word list that is not there.
        """
        for name, asked in (
            ("baseline", (self.baseline,)),
            ("systems_with_transcripts", self.systems_with_transcripts),
            ("systems_with_fits", self.systems_with_fits),
        ):
            unknown = [system for system in asked if system not in self.systems]
            if unknown:
                raise ValueError(f"{name}: {unknown} are not among systems {list(self.systems)}; name them there.")
        if self.num_replicates < 1:
            raise ValueError(f"num_replicates is {self.num_replicates}; expected at least 1.")
        return self.word_lists.fingerprint()

    def build(self) -> Stage:
        """Returns the summing function; there is no model to load."""
        self.fingerprint()
        return _Summary(self)


@dataclass(slots=True)
class _System:
    """What one system's tables say, row for row of UTTERANCES."""

    metrics: dict[str, MetricCounts] = field(default_factory=dict)
    missing: dict[str, npt.NDArray[np.bool_]] = field(default_factory=dict)
    """Per metric (U,): the table has no such utterance, it counts as all deletions."""
    num_extra: dict[str, int] = field(default_factory=dict)
    failed: npt.NDArray[np.bool_] | None = None
    unscored: npt.NDArray[np.int64] | None = None
    num_configurations: int = 0


class _Summary:
    def __init__(self, config: SummaryConfig) -> None:
        self._config = config

    def __call__(self, *tables: pa.Table, costs: Costs) -> pa.Table:
        utterances, *rest = tables
        with costs.timed("summary"):
            systems = self._read(utterances, rest)
            rows: list[dict[str, Any]] = []
            corpus = np.asarray(utterances.column("corpus").to_pylist(), dtype=object)
            split = np.asarray(utterances.column("split").to_pylist(), dtype=object)
            for name in ((s, c) for s in self._config.splits for c in dict.fromkeys(corpus[split == s].tolist())):
                rows += self._group(utterances, name, (split == name[0]) & (corpus == name[1]), systems, costs)
        return conform(pa.Table.from_pylist(rows, schema=RESULTS), "results")

    def _read(self, utterances: pa.Table, tables: Sequence[pa.Table]) -> dict[str, _System]:
        config = self._config
        expected = len(config.systems) + len(config.systems_with_transcripts) + len(config.systems_with_fits)
        if len(tables) != expected:
            raise ContractError(
                f"summary: got {len(tables)} tables after UTTERANCES, expected {expected}: ERRORS of {config.systems}, "
                f"TRANSCRIPTS of {config.systems_with_transcripts}, FITS of {config.systems_with_fits}. "
                "Mend the step's inputs."
            )
        ids = utterances.column("utterance_id").to_pylist()
        systems: dict[str, _System] = {name: _System() for name in config.systems}
        remaining = iter(tables)
        for name in config.systems:
            self._read_errors(utterances, ids, name, next(remaining), systems[name])
        for name in config.systems_with_transcripts:
            table = next(remaining)
            at, _ = positions(table, ids)
            failed = np.append(np.asarray(table.column("error_type").is_valid()), False)
            unscored = np.append(np.asarray(table.column("num_unscored")), 0)
            systems[name].failed, systems[name].unscored = failed[at], unscored[at]
        for name in config.systems_with_fits:
            systems[name].num_configurations += sum(next(remaining).column("num_configurations").to_pylist())
        return systems

    def _read_errors(self, utterances: pa.Table, ids: list[str], name: str, table: pa.Table, system: _System) -> None:
        at, num_extra = positions(table, ids)
        missing = at < 0
        for metric in read_errors(table):
            if metric.metric in system.metrics:
                raise ContractError(f"errors of system '{name}': metric '{metric.metric}' stands in two tables.")
            placed = place(metric, at)
            if missing.any():
                charge_deletions(placed, missing, utterances, self._config.word_lists)
            system.metrics[metric.metric] = placed
            system.missing[metric.metric] = missing
            system.num_extra[metric.metric] = num_extra

    def _group(
        self,
        utterances: pa.Table,
        name: tuple[str, str],
        members: npt.NDArray[np.bool_],
        systems: dict[str, _System],
        costs: Costs,
    ) -> list[dict[str, Any]]:
        """The rows of one corpus and split: metric by metric, the systems that have it in order."""
        rows = []
        speakers, sessions = (
            np.asarray(utterances.column(c).to_pylist(), object) for c in ("speaker_id", "session_id")
        )
        has_reference = np.asarray(utterances.column("reference").is_valid())
        names = dict.fromkeys(metric for system in systems.values() for metric in system.metrics)
        order = {system: i for i, system in enumerate(systems)}
        chosen: dict[bytes, Blocks] = {}
        for metric in names:
            having = [system for system in systems if metric in systems[system].metrics]
            by_system = {system: systems[system].metrics[metric] for system in having}
            _same_way(metric, by_system)
            counted = members & np.logical_or.reduce([m.counted for m in by_system.values()])
            key = counted.tobytes()
            if key not in chosen:
                chosen[key] = choose_blocks(speakers[counted].tolist(), sessions[counted].tolist())
            blocks = chosen[key]
            errors = np.stack([m.counts.errors[counted] for m in by_system.values()], axis=1)
            lengths = np.stack([m.counts.reference_length[counted] for m in by_system.values()], axis=1)
            baseline = having.index(self._config.baseline) if self._config.baseline in having else None
            result = compare(
                errors,
                lengths,
                blocks,
                baseline=baseline or 0,
                num_replicates=self._config.num_replicates,
                seed=self._config.seed,
            )
            costs.count("bootstrap_replicates", self._config.num_replicates)
            for column, system in enumerate(having):
                row = self._row(name, system, by_system[system], result, column, baseline, blocks)
                row["counts"] = list(
                    _counts(by_system[system], systems[system], counted, members & ~has_reference).items()
                )
                row |= _failures(systems[system], members)
                row["num_utterances"] = int(counted.sum())
                rows.append((order[system], row))
        rows.sort(key=lambda entry: entry[0])
        return [row for _, row in rows]

    def _row(
        self,
        name: tuple[str, str],
        system: str,
        metric: MetricCounts,
        result: Comparison,
        column: int,
        baseline: int | None,
        blocks: Blocks,
    ) -> dict[str, Any]:
        compared = baseline is not None and column != baseline

        def number(values: npt.NDArray[np.float64]) -> float | None:
            return None if np.isnan(values[column]) else float(values[column])

        return {
            "corpus": name[1],
            "split": name[0],
            "system": system,
            "condition": list(self._config.condition.items()),
            "metric": metric.metric,
            "unit": metric.unit,
            "value": number(result.value),
            "ci_low": number(result.ci_low),
            "ci_high": number(result.ci_high),
            "baseline": self._config.baseline if compared else None,
            "delta": number(result.delta) if compared else None,
            "delta_ci_low": number(result.delta_ci_low) if compared else None,
            "delta_ci_high": number(result.delta_ci_high) if compared else None,
            "p_value": number(result.p_value) if compared else None,
            "num_blocks": min(blocks.num_blocks, MAX_BLOCKS),
            "signature": signature(
                metric,
                split=name[0],
                num_utterances=len(blocks.index),
                block=blocks.kind,
                num_replicates=self._config.num_replicates,
                seed=self._config.seed,
            ),
        }


def signature(
    metric: MetricCounts, *, split: str, num_utterances: int, block: str, num_replicates: int, seed: int
) -> str:
    """All that one must know to compute the same number again, in one line without spaces."""
    parts = (
        metric.metric,
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


def _counts(
    metric: MetricCounts, system: _System, counted: npt.NDArray[np.bool_], unreferenced: npt.NDArray[np.bool_]
) -> dict[str, int]:
    sums = {name: int(getattr(metric.counts, name)[counted].sum()) for name in COUNT_NAMES}
    if metric.word_class == "all":
        sums["empty_references"] = int((metric.counts.reference_length[counted] == 0).sum())
    return sums | {
        "unreferenced_utterances": int(unreferenced.sum()),
        "missing_utterances": int((system.missing[metric.metric] & counted).sum()),
        "extra_utterances": system.num_extra[metric.metric],
    }


def _failures(system: _System, members: npt.NDArray[np.bool_]) -> dict[str, int]:
    return {
        "num_failed": 0 if system.failed is None else int(system.failed[members].sum()),
        "num_unscored": 0 if system.unscored is None else int((system.unscored[members] > 0).sum()),
        "num_configurations": max(1, system.num_configurations),
    }
