"""Steps and shards -> committed tables: the plain executor, and what every executor does around the work."""

import contextlib
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ctxasr_ray import stage
from ctxasr_ray.execution.events import EventLog
from ctxasr_ray.execution.planning import Segment, is_corpus, plan, planned, segments, status
from ctxasr_ray.execution.stage_calls import RunError, package_versions
from ctxasr_ray.execution.worker import Report, Worker, gather_step
from ctxasr_ray.stage import GATHERED, Step
from ctxasr_ray.storage import processes
from ctxasr_ray.storage.attempts import Attempts
from ctxasr_ray.storage.lease import Leases
from ctxasr_ray.storage.store import Shard, Store

__all__ = ["Progress", "Report", "Run", "RunError", "RunSummary", "Segment", "plan", "run_inline", "segments", "status"]


@dataclass(frozen=True, slots=True)
class Progress:
    """One piece of work is done: a step on a shard, or a gathered step."""

    report: Report
    done: int
    """Pieces finished so far, those that were committed before included."""
    total: int


OnProgress = Callable[[Progress], None]


@dataclass(slots=True)
class RunSummary:
    """What one call of an executor did."""

    done: int = 0
    """Tables that were made: one per step and shard, or per gathered step."""
    skipped: int = 0
    """Tables that were committed before."""
    redone: int = 0
    """Tables with a further attempt at rows with errors."""
    different: int = 0
    """Tables that another writer had committed first, with other values; the first ones count."""
    rows: int = 0
    """Rows of the tables made or redone."""
    failures: int = 0
    """Rows that carry an error, in all tables of the run."""
    wall_s: float = 0.0
    load_s: dict[str, float] = field(default_factory=dict)
    """Step -> seconds of building its stage, over all workers."""
    busy_s: dict[str, float] = field(default_factory=dict)
    """Step -> seconds of work, without loading, over all workers."""


class Run:
    """What every executor does around its work: leases, counting, `_SUCCESS` and provenance."""

    def __init__(
        self,
        store: Store,
        steps: Sequence[Step],
        shards: Sequence[Shard],
        *,
        on_progress: OnProgress | None = None,
        retry_errors: bool = False,
    ) -> None:
        """Checks steps and folder; starts nothing.

        Raises:
            ValueError: steps out of order, a fit on test, no shards.
            StoreError: the folder cannot be written.
        """
        if not shards:
            raise ValueError("no shards: the corpus is empty, or was never added to this run folder.")
        self.name = uuid.uuid4().hex
        self.store, self.steps, self.shards = store, tuple(steps), tuple(shards)
        self.segments = segments(steps)
        self.summary = RunSummary()
        self._events = EventLog(store.folder, self.name)
        self._on_progress = on_progress
        self._told: set[str] = set()
        self._started = time.time()
        self._clock = time.perf_counter()
        working = [step for step in self.steps if not is_corpus(step)]
        self._total = sum(1 if step.config.WRITES in GATHERED else len(self.shards) for step in working)
        for step in working:
            if step.config.WRITES == "fits":
                store.gathered_inputs(step, self.shards)
        store.prepare()
        store.forget()
        for table in sorted({store.table_folder(step) for step in working}):
            for folder in (table, f".run/attempts/{table}", f".run/parts/{table}", ".run/leases"):
                store.folder.sweep(folder)
        self.redo = self._failed_before() if retry_errors else {}

    def _failed_before(self) -> dict[str, dict[str, int]]:
        """Step -> shard -> number of the attempt that would redo its rows with errors."""
        found: dict[str, dict[str, int]] = {}
        self.store.resolve(self.steps, self.shards)
        for step in (each for segment in self.segments for each in segment.per_shard):
            for shard in self.shards:
                key = self.store.locate(step, shard)
                if key is not None and self.store.footer(key).receipt["failures"]:
                    found.setdefault(step.name, {})[shard.name] = self.store.attempt(key) + 1
        self.store.forget()
        return found

    @contextlib.contextmanager
    def leases(self, steps: Sequence[Step]) -> Iterator[None]:
        """Holds the tables that some steps may write; waits for another run that writes one of them."""
        self.store.snapshot()
        unfinished = [
            self.store.table_folder(step)
            for step in steps
            if step.name in self.redo or not _is_complete(planned(self.store, step, self.shards))
        ]
        self.store.forget_listings()
        for table in unfinished:
            self.store.folder.delete(f"{table}/_SUCCESS")
        try:
            with Leases(self.store.folder, unfinished, self._told):
                yield
        finally:
            self._events.flush()

    def record(self, report: Report) -> None:
        """Counts a finished piece, leaves its line in the run folder and tells whoever watches."""
        self._events.add(report)
        summary = self.summary
        setattr(summary, report.outcome, getattr(summary, report.outcome) + 1)
        summary.different += report.different
        summary.rows += 0 if report.outcome == "skipped" else report.rows
        summary.failures += report.failures
        summary.load_s[report.step] = summary.load_s.get(report.step, 0.0) + report.load_s
        summary.busy_s[report.step] = summary.busy_s.get(report.step, 0.0) + report.seconds
        if self._on_progress is not None:
            done = summary.done + summary.skipped + summary.redone
            self._on_progress(Progress(report, done, self._total))

    def finish(self) -> RunSummary:
        """Writes `_SUCCESS` beside every complete table, and provenance.json."""
        self.summary.wall_s = time.perf_counter() - self._clock
        self.store.snapshot()
        for step in self.steps:
            if not is_corpus(step):
                self._succeed(step)
        provenance = {
            "run": self.name,
            "command": sys.argv,
            "started_at": self._started,
            "git_commit": git_commit(),
            "versions": {"python": sys.version.split()[0], **package_versions()},
            "steps": [self._described(step) for step in self.steps],
            "shards": [{**shard.to_dict(), "uri": self.store.key_of(shard)} for shard in self.shards],
            "summary": asdict(self.summary),
        }
        self.store.forget_listings()
        self.store.folder.replace("provenance.json", json.dumps(provenance, indent=1).encode())
        return self.summary

    def _described(self, step: Step) -> dict[str, Any]:
        return {
            "name": step.name,
            "stage": step.config.NAME,
            "config": None if is_corpus(step) else stage.identity(step.config),
            "folder": self.store.table_folder(step),
            "inputs": [parent.name for parent in step.inputs],
        }

    def _succeed(self, step: Step) -> None:
        if step.config.WRITES in GATHERED:
            keys = [self.store.gathered.get(self.store.stage_hash(step))]
        else:
            keys = [self.store.locate(step, shard) for shard in self.shards]
        if None not in keys:
            files = sorted({str(key).rpartition("/")[2] for key in keys})
            self.store.folder.replace(f"{self.store.table_folder(step)}/_SUCCESS", json.dumps(files, indent=1).encode())


def run_inline(
    store: Store,
    steps: Sequence[Step],
    shards: Sequence[Shard],
    *,
    on_progress: OnProgress | None = None,
    retry_errors: bool = False,
) -> RunSummary:
    """Runs steps in this process, one after another: for tests, notebooks, and as the measure of every overhead.

    Args:
        store: The run folder.
        steps: Every step after its parents.
        shards: Shards of the run, all splits together.
        on_progress: Called after each piece of work.
        retry_errors: Redo rows that carry an error, as a further attempt of their shard.

    Raises:
        RunError, StoreError: a fault of the world; what is committed stays, the same command goes on from there.
        ValueError, ContractError: a config, model or stage is refused.
    """
    run = Run(store, steps, shards, on_progress=on_progress, retry_errors=retry_errors)
    attempts = Attempts(store.folder, run=run.name, node=processes.host(), is_alive=lambda node: True)
    for segment in run.segments:
        for step in segment.per_shard:
            with run.leases([step]):
                worker = Worker(store, step, attempts, redo=run.redo.get(step.name, {}))
                for shard in shards:
                    run.record(worker.process(shard))
        for step in segment.gathered:
            with run.leases([step]):
                run.record(gather_step(store, step, shards))
    return run.finish()


def _is_complete(row: dict[str, Any]) -> bool:
    return bool(row["num_committed"] == row["num_shards"])


def git_commit() -> str | None:
    """Commit of the checkout that this package runs from, with "+" where it has changes; None outside of one."""
    folder = Path(__file__).parent
    command = ["git", "-C", os.fspath(folder), "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()
