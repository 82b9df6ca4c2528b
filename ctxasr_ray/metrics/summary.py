"""UTTERANCES, ERRORS..., TRANSCRIPTS..., FITS... -> RESULTS: one row per corpus, split, system and metric.

Tables are told apart by place, in the order of `Step.inputs`:

1. UTTERANCES;
2. one ERRORS table per entry of `systems` (a system may stand twice, for example with WER and with B-WER counts);
3. one TRANSCRIPTS table per entry of `systems_with_transcripts` (for failed and unscored rows);
4. one FITS table per entry of `systems_with_fits` (for the number of configurations that were tried).

Rates are sums of errors over sums of reference lengths, fractions (0.05 is 5 %), never means of utterances' rates.
UTTERANCES decides who counts: an utterance that a system leaves out is charged as all deletions and counted as
`missing_utterances`, one that only the system has is counted as `extra_utterances` and nothing else. A recording in
windows is one utterance, at its window 0; a system that cannot count it (an oracle of lists) is not compared with the
others, and has `left_out_utterances`.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from ctxasr_ray.metrics.counts import read_errors
from ctxasr_ray.metrics.coverage import charge_deletions, place, positions
from ctxasr_ray.metrics.joined_windows import later_windows
from ctxasr_ray.metrics.significance import MIN_BLOCKS
from ctxasr_ray.metrics.summary_rows import GroupRows, SystemCounts
from ctxasr_ray.metrics.word_classes import WordLists
from ctxasr_ray.schema import RESULTS, ContractError, conform
from ctxasr_ray.stage import Costs, Resources, Stage


@dataclass(frozen=True, kw_only=True, slots=True)
class SummaryConfig:
    """Adds up error counts into rates with intervals and paired tests against a baseline system."""

    NAME: ClassVar[str] = "summary"
    STAGE_VERSION: ClassVar[int] = 3
    READS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "utterances": (
            *("corpus", "split", "speaker_id", "session_id", "reference", "keywords"),
            *("recording_id", "window_index", "channel"),
        ),
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
    gaps: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """System -> the 1-best and the oracle of the lists that it chose from, both among `systems`; gives it a row
    `oracle_gap_closed`: the share of the words wrong in the 1-best but not in the oracle that it puts right."""
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
            ("gaps", (*self.gaps, *(system for gap in self.gaps.values() for system in gap))),
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
            later = later_windows(utterances)
            narrow: list[str] = []
            for name in ((s, c) for s in self._config.splits for c in dict.fromkeys(corpus[split == s].tolist())):
                members = (split == name[0]) & (corpus == name[1]) & ~later
                group = GroupRows(self._config, utterances, name, members, systems)
                rows += group.rows(costs)
                if group.num_single:
                    narrow.append(f"{group.num_single:,} single utterances of {name[1]}, {name[0]}")
        if narrow:
            warnings.warn(
                f"fewer than {MIN_BLOCKS} speakers and sessions are known: intervals resample {' and '.join(narrow)}; "
                "they may be too narrow. Give speaker_id or session_id in the manifest.",
                stacklevel=2,
            )
        return conform(pa.Table.from_pylist(rows, schema=RESULTS), "results")

    def _read(self, utterances: pa.Table, tables: Sequence[pa.Table]) -> dict[str, SystemCounts]:
        config = self._config
        expected = len(config.systems) + len(config.systems_with_transcripts) + len(config.systems_with_fits)
        if len(tables) != expected:
            raise ContractError(
                f"summary: got {len(tables)} tables after UTTERANCES, expected {expected}: ERRORS of {config.systems}, "
                f"TRANSCRIPTS of {config.systems_with_transcripts}, FITS of {config.systems_with_fits}. "
                "Mend the step's inputs."
            )
        ids = utterances.column("utterance_id").to_pylist()
        systems: dict[str, SystemCounts] = {name: SystemCounts() for name in config.systems}
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

    def _read_errors(
        self, utterances: pa.Table, ids: list[str], name: str, table: pa.Table, system: SystemCounts
    ) -> None:
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
