"""The Ray Data executor: one actor pool per model, side by side; only descriptions of shards travel.

Each segment is one dataset per wave, a chain of `map_batches`; every stage reads its inputs from committed tables and
commits its own, so that whatever dies is simply done again, unless it was committed.
"""

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import pyarrow as pa

from ctxasr_ray.distributed.cluster import (
    JOIN_S,
    Pool,
    alive_nodes,
    connected,
    options,
    ray,
    refuse_unfit,
    refuse_unshared,
)
from ctxasr_ray.distributed.stage_metrics import StageMetrics
from ctxasr_ray.distributed.tree_scorers import host_pools, hosted
from ctxasr_ray.execution.inline import OnProgress, Run, RunSummary, Segment
from ctxasr_ray.execution.planning import segments
from ctxasr_ray.execution.stage_calls import RunError
from ctxasr_ray.execution.worker import Report, Worker, gather_step
from ctxasr_ray.schema import ContractError
from ctxasr_ray.stage import Resources, SpentProcessError, Step
from ctxasr_ray.storage.attempts import Attempts
from ctxasr_ray.storage.store import Shard, Store

SILENCE_S: Final = 4 * 3600
"""A dataset without a finished shard for so long has failed; one large shard can outlast Ray's 30 minutes."""
SPARE_CPUS: Final = 1.0
"""By which the pools of a local Ray may ask for more than the machine has: light ones mostly wait."""
MAX_INIT_DEATHS: Final = 3
"""Actors of a pool that may die in a row before their first shard, where Ray's default gives up at the first."""
WAVE: Final = 5000
"""Shards per dataset: bounds the driver's memory; a further dataset costs seconds and a model load."""
_ROW: Final = pa.schema(
    [("shard", pa.string()), ("reports", pa.string()), ("fault", pa.string()), ("why", pa.string())]
)
_FAULTS: Final = {"ValueError": ValueError, "ContractError": ContractError, "RunError": RunError}


@dataclass(frozen=True, slots=True)
class Assignment:
    """All that an actor must know; travels once."""

    root: str
    steps: tuple[Step, ...]
    stage_hashes: Mapping[str, str]
    gathered: Mapping[str, str]
    run: str
    redo: Mapping[str, Mapping[str, int]]


class ShardWorker:
    """An actor: a few steps on one shard after another."""

    def __init__(self, assignment: Assignment) -> None:
        """Opens the run folder; models are born at the first shard that needs them."""
        store = Store(assignment.root, stage_hashes=assignment.stage_hashes)
        store.gathered = dict(assignment.gathered)
        node = ray.get_runtime_context().get_node_id()
        attempts = Attempts(store.folder, run=assignment.run, node=node, is_alive=lambda name: name in alive_nodes())
        self._metrics = StageMetrics()
        self._workers = [
            Worker(store, step, attempts, redo=assignment.redo.get(step.name, {})) for step in assignment.steps
        ]

    def __call__(self, batch: pa.Table) -> pa.Table:
        """One row: a shard's description, the reports of the steps that it has been through, and what stopped it.

        A fault travels as a value, because Ray hands an exception on as text only, twice wrapped.
        """
        return pa.Table.from_pylist([self._advance(row) for row in batch.to_pylist()], schema=_ROW)

    def _advance(self, row: dict[str, Any]) -> dict[str, Any]:
        shard = Shard(**json.loads(row["shard"]))
        reports = json.loads(row["reports"])
        if row["fault"]:
            return row
        try:
            for worker in self._workers:
                report = worker.process(shard)
                self._metrics.count(report)
                reports.append(asdict(report))
        except RunError as error:
            if isinstance(error.__cause__, SpentProcessError):
                logging.getLogger("ctxasr_ray").error("%s\nThis actor ends, and Ray starts another.", error)
                os._exit(1)  # exit_actor would be an exception that Ray does not answer with a new actor
            return {**row, "reports": json.dumps(reports), "fault": type(error).__name__, "why": str(error)}
        except (ValueError, ContractError) as error:
            return {**row, "reports": json.dumps(reports), "fault": type(error).__name__, "why": str(error)}
        return {**row, "reports": json.dumps(reports)}


def run_ray(
    store: Store,
    steps: Sequence[Step],
    shards: Sequence[Shard],
    *,
    on_progress: OnProgress | None = None,
    address: str | None = None,
    retry_errors: bool = False,
) -> RunSummary:
    """Runs steps on actor pools of a Ray cluster; the tables are those of `execution.run_inline`.

    Args:
        store: The run folder.
        steps: Every step after its parents.
        shards: Shards of the run, all splits together.
        on_progress: Called in the driver after each piece of work.
        address: Of a cluster, as `ray.init` takes it; None for a local one.
        retry_errors: Redo rows that carry an error, as a further attempt of their shard.

    Raises:
        RunError, StoreError, ContractError: as `execution.run_inline`.
        ValueError: also pools that the cluster cannot hold, and a local folder that some node does not see.
    """
    run = Run(store, steps, shards, on_progress=on_progress, retry_errors=retry_errors)
    given = address is not None or "RAY_ADDRESS" in os.environ
    turns = [turn for segment in run.segments for turn in ([segment] if given else in_turns(segment))]
    with connected(address, max((_cpus(turn.per_shard) for turn in turns), default=1.0)):
        refuse_unshared(store.folder)
        for turn in turns:
            refuse_unfit(_all_pools(turn.per_shard), wait_s=JOIN_S if given else 0.0)
        for turn in turns:
            with run.leases(turn.steps):
                _run_segment(run, turn)
                for step in turn.gathered:
                    run.record(gather_step(store, step, shards))
        return run.finish()


def in_turns(segment: Segment) -> list[Segment]:
    """Cuts a segment so that the pools of this machine's own Ray do not ask for many more CPUs than it has.

    One dataset runs after the other then: twenty models side by side would fill the memory and win no time. A cluster
    that somebody gave runs all pools side by side, or is refused.
    """
    budget = (os.cpu_count() or 1) + SPARE_CPUS
    parts: list[list[Step]] = [[]]
    for step in _light_ones_late(segment.per_shard):
        if parts[-1] and _cpus([*parts[-1], step]) > budget:
            parts.append([])
        parts[-1].append(step)
    return [replace(segment, per_shard=tuple(part), gathered=()) for part in parts[:-1]] + [
        replace(segment, per_shard=tuple(parts[-1]))
    ]


def needed_cpus(steps: Sequence[Step]) -> float:
    """Logical CPUs that this machine's own Ray must have for the largest dataset of a run."""
    return max((_cpus(turn.per_shard) for segment in segments(steps) for turn in in_turns(segment)), default=1.0)


def simultaneous_pools(steps: Sequence[Step]) -> list[list[Pool]]:
    """The pools of a run on a given cluster, those that live at the same time together."""
    return [_all_pools(segment.per_shard) for segment in segments(steps) if segment.per_shard]


def _cpus(steps: Sequence[Step]) -> float:
    return sum(pool.resources.num_cpus * pool.resources.num_actors for pool in _all_pools(steps))


def _all_pools(steps: Sequence[Step]) -> list[Pool]:
    """Pools that live at the same time: those of the steps, and those of language models inside them."""
    return [pool for pool, _ in _pools(steps)] + host_pools(steps)


def _pools(steps: Sequence[Step]) -> list[tuple[Pool, tuple[Step, ...]]]:
    """One pool per step; neighbours that ask for less than one CPU share one, because a pool costs a second."""
    groups: list[list[Step]] = []
    for step in _light_ones_late(steps):
        if groups and _is_light(step) and _is_light(groups[-1][-1]):
            groups[-1].append(step)
        else:
            groups.append([step])
    found = []
    for group in groups:
        asked: Resources = group[0].config.resources
        actors = max(step.config.resources.num_actors for step in group)
        cpus = max(step.config.resources.num_cpus for step in group)
        name = " + ".join(step.name for step in group)
        found.append((Pool(name, replace(asked, num_actors=actors, num_cpus=cpus)), tuple(group)))
    return found


def _is_light(step: Step) -> bool:
    resources = step.config.resources
    return resources.num_cpus < 1 and resources.num_gpus == 0 and not resources.label_selector


def _light_ones_late(steps: Sequence[Step]) -> list[Step]:
    """The same steps, parents first, light ones put off until a heavy one needs them: so they become neighbours."""
    order: list[Step] = []

    def place(step: Step) -> None:
        for parent in step.inputs:
            if any(parent is each for each in steps):
                place(parent)
        if not any(step is each for each in order):
            order.append(step)

    for step in sorted(steps, key=_is_light):
        place(step)
    return order


def _run_segment(run: Run, segment: Segment) -> None:
    """One dataset per wave over the shards with something to do; the others are only counted."""
    store = run.store
    pending = []
    store.snapshot()
    for step in segment.per_shard:
        store.prefetch(store.locate(parent, shard) for parent in step.inputs for shard in run.shards)
    for shard in run.shards:
        reports = [_committed(run, step, shard) for step in segment.per_shard]
        if None in reports:
            pending.append(shard)
        else:
            for report in reports:
                run.record(report)  # type: ignore[arg-type]  # none is None here
    store.forget_listings()
    if not pending:
        return
    with hosted(segment.per_shard) as connect:
        for first in range(0, len(pending), WAVE):
            _run_wave(run, segment, pending[first : first + WAVE], connect)


def _committed(run: Run, step: Step, shard: Shard) -> Report | None:
    key = run.store.locate(step, shard)
    if key is None or run.redo.get(step.name, {}).get(shard.name, 1) > run.store.attempt(key):
        return None
    failures = int(run.store.footer(key).receipt["failures"])
    return Report(step.name, shard.name, "skipped", shard.num_rows, failures, 0.0, 0.0)


def _run_wave(run: Run, segment: Segment, shards: Sequence[Shard], connect: Callable[[Step], Step]) -> None:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = SILENCE_S
    context.max_consecutive_actor_init_deaths = MAX_INIT_DEATHS
    rows = [{"shard": json.dumps(shard.to_dict()), "reports": "[]", "fault": "", "why": ""} for shard in shards]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    hashes = {step.name: run.store.stage_hash(step) for step in _with_parents(segment.per_shard)}
    for pool, steps in _pools(segment.per_shard):
        connected_steps = tuple(connect(step) for step in steps)
        assignment = Assignment(run.store.root, connected_steps, hashes, run.store.gathered, run.name, run.redo)
        dataset = dataset.map_batches(
            ShardWorker,
            fn_constructor_args=(assignment,),
            batch_size=1,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=pool.resources.num_actors),
            **options(pool.resources),
        )
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for row in batch.to_pylist():
                for report in json.loads(row["reports"]):
                    run.record(Report(**report))
                if row["fault"]:
                    raise _FAULTS[row["fault"]](row["why"])
    except ray.exceptions.RayError as error:
        raise RunError(
            f"Ray stopped the run: {error}\nWhat is committed stays; run the same command again to go on from there."
        ) from error


def _with_parents(steps: Sequence[Step]) -> list[Step]:
    found: dict[str, Step] = {}
    for step in steps:
        for each in (*_with_parents(step.inputs), step):
            found[each.name] = each
    return list(found.values())
