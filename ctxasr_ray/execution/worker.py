"""One step on one shard: committed tables in, a committed table out; the same code in every executor.

The stage is built here, from its config, at the first shard that needs it. A step that was committed before is
skipped; one whose worker dies again and again is halved until the utterance is found and quarantined.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from ctxasr_ray.execution.quarantine import Quarantine
from ctxasr_ray.execution.stage_calls import (
    RunError,
    build,
    call,
    make_receipt,
    read_inputs,
    some_rows,
)
from ctxasr_ray.schema import ContractError
from ctxasr_ray.stage import Costs, SpentProcessError, Stage, Step
from ctxasr_ray.storage.attempts import Attempts
from ctxasr_ray.storage.store import Shard, Store, StoreError, splits_of

MAX_LOAD_DEATHS: Final = 3
"""Workers of one node that may die in a row while they build the stage; no shard is blamed for these."""
RETRY_WAITS_S: Final = (0.5, 2.0)
"""Pauses before a stage that raised a fault of the world (OSError, RuntimeError) is built and called again."""
log = logging.getLogger("ctxasr_ray")


@dataclass(frozen=True, slots=True)
class Report:
    """What became of one step on one shard; plain values."""

    step: str
    shard: str
    outcome: str
    """"done", "skipped" (committed before) or "redone" (a further attempt at rows with errors)."""
    rows: int
    failures: int
    seconds: float
    """Busy seconds of the stage, without loading."""
    load_s: float
    """Seconds of building the stage, where this shard was the first."""
    different: bool = False
    """Another writer had committed a different table first, which counts."""
    attempt: int = 1
    """Of the table that stands now; above 1 it redid rows with errors."""


@dataclass(slots=True)
class Worker:
    """Works on one step; keeps the built stage between shards."""

    store: Store
    step: Step
    attempts: Attempts
    redo: Mapping[str, int] = field(default_factory=dict)
    """Shard name -> number of the attempt that `--retry-errors` asks for."""
    stage: Stage | None = None
    load_s: float = 0.0
    quarantine: Quarantine = field(init=False)

    def __post_init__(self) -> None:
        """Readies the careful way."""
        self.quarantine = Quarantine(self.store, self.attempts, self.step.config.WRITES)

    def process(self, shard: Shard) -> Report:
        """Brings one shard to its committed table, unless it is there.

        Raises:
            RunError: the stage failed, also after retries; what is committed is intact.
            ValueError: the stage's config or model is refused.
            ContractError: the stage broke its contract.
        """
        try:
            found = self.store.base(self.step, shard)
            if found is None:
                raise StoreError(f"an input of step '{self.step.name}' is not committed")
            base, identity = found
            key = self.store.highest(base)
            if key is None:
                return self._first(shard, base, identity)
            attempt = self.redo.get(shard.name, 1)
            if attempt > self.store.attempt(key) and self.store.footer(key).receipt["failures"]:
                return self._again(shard, base, identity, key, attempt)
            return Report(self.step.name, shard.name, "skipped", shard.num_rows, self._failures(key), 0.0, 0.0)
        except Exception as error:
            raise explained(error, self.step, shard.name) from error

    def _first(self, shard: Shard, base: str, identity: str) -> Report:
        tables = read_inputs(self.store, self.step, [[key] for key in self.store.inputs(self.step, shard) or []])
        costs, loaded_before = Costs(), self.load_s
        self._load()
        table = self.quarantine.run(base, tables, lambda pieces: self._call(pieces, costs))
        return self._commit(f"{base}.parquet", identity, table, costs, self.load_s - loaded_before, 1, shard)

    def _again(self, shard: Shard, base: str, identity: str, key: str, attempt: int) -> Report:
        """Redoes the rows that carry an error, and only those."""
        old = self.store.read_key(key)
        bad = pc.is_valid(old["error_type"]).to_pylist()
        rows = [row for row, is_bad in enumerate(bad) if is_bad]
        inputs = read_inputs(self.store, self.step, [[each] for each in self.store.inputs(self.step, shard) or []])
        tables = [some_rows(table, rows) for table in inputs]
        costs, loaded_before = Costs(), self.load_s
        self._load()
        new = self.quarantine.run(f"{base}.{attempt}", tables, lambda pieces: self._call(pieces, costs))
        order = [old.num_rows + rows.index(row) if is_bad else row for row, is_bad in enumerate(bad)]
        table = pa.concat_tables([old, new]).take(order).combine_chunks()
        if table.equals(old):
            busy_s = costs.seconds.get("busy", 0.0)
            return Report(self.step.name, shard.name, "redone", shard.num_rows, len(rows), busy_s, 0.0)
        load_s = self.load_s - loaded_before
        return self._commit(f"{base}.{attempt}.parquet", identity, table, costs, load_s, attempt, shard)

    def _load(self) -> Stage:
        """The stage, built if need be; before any row is touched, so that a death here blames none."""
        if self.stage is None:
            place = f".run/attempts/{self.store.table_folder(self.step)}/load.{self.attempts.node}"
            deaths = self.attempts.begin(place)
            try:
                if deaths >= MAX_LOAD_DEATHS:
                    raise RunError(
                        f"{deaths} workers have died while they built the stage (memory, or a crash in a library)."
                    )
                self.stage, seconds = build(self.step)
                self.load_s += seconds
            finally:
                self.attempts.end(place)
        return self.stage

    def _call(self, tables: Sequence[pa.Table], costs: Costs) -> pa.Table:
        for wait_s in (*RETRY_WAITS_S, None):
            try:
                return call(self.step, self._load(), tables, costs)
            except SpentProcessError:
                raise
            except (OSError, RuntimeError) as error:
                if wait_s is None:
                    raise
                log.warning("step '%s': %s: %s; trying again", self.step.name, type(error).__name__, error)
                self.stage = None
                time.sleep(wait_s)
        raise AssertionError("unreachable")

    def _commit(
        self, key: str, identity: str, table: pa.Table, costs: Costs, load_s: float, attempt: int, shard: Shard
    ) -> Report:
        receipt = make_receipt(table, costs, load_s, attempt)
        committed = self.store.commit(key, table, self.step.config.WRITES, identity, receipt)
        outcome = "redone" if attempt > 1 else "done"
        different = committed.outcome == "different"
        self.quarantine.committed()
        if different:
            log.warning(
                "step '%s', shard %s: another writer had committed a different table; the first one counts.",
                self.step.name,
                shard.name,
            )
        return Report(
            self.step.name,
            shard.name,
            outcome,
            table.num_rows,
            receipt["failures"],
            receipt["seconds"]["busy"],
            load_s,
            different,
            attempt,
        )

    def _failures(self, key: str) -> int:
        return int(self.store.footer(key).receipt["failures"])


def gather_step(store: Store, step: Step, shards: Sequence[Shard]) -> Report:
    """Brings a gathered step (fits, results) to its one committed artefact, in the calling process.

    Raises:
        ValueError: no shard of the step's splits, or a fit that would read a test row.
        RunError, ContractError: as `Worker.process`.
    """
    try:
        found = store.gathered_base(step, shards)
        if found is None:
            raise StoreError(f"an input of step '{step.name}' is not committed")
        base, identity = found
        key, seconds, load_s, failures, rows = store.highest(base), 0.0, 0.0, 0, 0
        if key is None:
            tables = read_inputs(store, step, store.gathered_inputs(step, shards) or [])
            costs = Costs()
            stage, load_s = build(step)
            table = call(step, stage, tables, costs)
            receipt = make_receipt(table, costs, load_s, 1)
            committed = store.commit(f"{base}.parquet", table, step.config.WRITES, identity, receipt)
            key, seconds, rows = committed.key, costs.seconds["busy"], table.num_rows
            outcome = "done"
        else:
            outcome = "skipped"
        store.gathered[store.stage_hash(step)] = key
        return Report(step.name, "+".join(splits_of(step)), outcome, rows, failures, seconds, load_s)
    except Exception as error:
        raise explained(error, step, "all") from error


def explained(error: Exception, step: Step, shard: str) -> Exception:
    """The same fault, of a kind that says who can mend it, with step, shard and the way on."""
    if isinstance(error, RunError) and "run the same command again" in str(error):
        return error
    text = str(error) or type(error).__name__
    message = f"step '{step.name}' ({step.config.NAME}), shard {shard}: {text}"
    if isinstance(error, ContractError):
        return ContractError(message)
    if isinstance(error, ValueError):
        return ValueError(message)
    kind = "" if isinstance(error, RunError | StoreError) else f"{type(error).__name__}: "
    return RunError(
        f"step '{step.name}' ({step.config.NAME}), shard {shard}: {kind}{text}\n"
        "What is committed stays; when the cause is mended, run the same command again to go on from there."
    )
