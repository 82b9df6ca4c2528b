"""What a run would do and how far it is: steps in segments, and what is committed of each.

The per-shard steps of a segment need no gathered step (fits, results) of the same segment; between two segments the
gathered steps run in the driver, once everything that they read is committed.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ctxasr_ray.execution.events import pace, read_events
from ctxasr_ray.stage import GATHERED, AsksLm, Resources, Step
from ctxasr_ray.storage.lease import Leases
from ctxasr_ray.storage.store import Shard, Store


@dataclass(frozen=True, slots=True)
class Segment:
    """Steps between two barriers."""

    per_shard: tuple[Step, ...]
    gathered: tuple[Step, ...]

    @property
    def steps(self) -> tuple[Step, ...]:
        """All of them, in order of work."""
        return self.per_shard + self.gathered


def segments(steps: Sequence[Step]) -> list[Segment]:
    """Orders steps into as few segments as their inputs allow.

    Args:
        steps: Every step of a run after its parents; the corpus may stand among them or only among the inputs.

    Raises:
        ValueError: a step before its parent, a parent that is missing, or two steps of one name.
    """
    levels: dict[int, int] = {}
    names: set[str] = set()
    for step in steps:
        if step.name in names:
            raise ValueError(f"two steps are named '{step.name}'; give each its own name.")
        names.add(step.name)
        for parent in step.inputs:
            if id(parent) not in levels and not is_corpus(parent):
                raise ValueError(
                    f"step '{step.name}' reads '{parent.name}', which does not stand before it in the run."
                )
        below = [levels.get(id(parent), 0) + (parent.config.WRITES in GATHERED) for parent in step.inputs]
        levels[id(step)] = max(below, default=0)
    found = []
    for level in range(max(levels.values(), default=-1) + 1):
        here = [step for step in steps if levels[id(step)] == level and not is_corpus(step)]
        own = [step for step in here if step.config.WRITES not in GATHERED]
        found.append(Segment(tuple(own), tuple(step for step in here if step.config.WRITES in GATHERED)))
    return found


def is_corpus(step: Step) -> bool:
    """Whether a step stands for the corpus: its table is committed by `Store.add_corpus`, before the run."""
    return step.config.WRITES == "utterances"


def plan(store: Store, steps: Sequence[Step], shards: Sequence[Shard]) -> list[dict[str, Any]]:
    """What a run would do: one row per step, touching nothing.

    Returns:
        Rows with step, stage, table, num_shards, num_committed, num_pending, num_unknown (a parent is pending, so that
        nobody can know yet), num_failures (rows with an error in what is committed), resources (a dict), lm_pool (a
        dict of the same kind where the stage asks an LM in a pool of its own, else None).

    Raises:
        ValueError: steps out of order, or a fit on test.
    """
    store.forget()
    store.snapshot()
    try:
        store.resolve(steps, shards)  # stays after the plan, so that tables made with a fit can be read
        return [planned(store, step, shards) for segment in segments(steps) for step in segment.steps]
    finally:
        store.forget_listings()


def planned(store: Store, step: Step, shards: Sequence[Shard]) -> dict[str, Any]:
    """The row of one step in `plan`; wants the gathered artefacts that it reads resolved."""
    store.prefetch(store.locate(parent, shard) for parent in step.inputs for shard in shards)
    if step.config.WRITES in GATHERED:
        bases = [store.gathered_base(step, shards)]
    else:
        bases = [store.base(step, shard) for shard in shards]
    keys = [None if base is None else store.highest(base[0]) for base in bases]
    committed = [key for key in keys if key is not None]
    store.prefetch(committed)
    unknown = sum(base is None for base in bases)
    pool = step.config.lm_pool if isinstance(step.config, AsksLm) else None
    return {
        "step": step.name,
        "stage": step.config.NAME,
        "table": step.config.WRITES,
        "num_shards": len(bases),
        "num_committed": len(committed),
        "num_pending": len(bases) - len(committed) - unknown,
        "num_unknown": unknown,
        "num_failures": sum(store.footer(key).receipt["failures"] for key in committed),
        "resources": _asked(step.config.resources),
        "lm_pool": None if pool is None else _asked(pool),
    }


def _asked(resources: Resources) -> dict[str, Any]:
    return {**asdict(resources), "label_selector": dict(resources.label_selector)}


def status(store: Store, steps: Sequence[Step], shards: Sequence[Shard]) -> list[dict[str, Any]]:
    """How far a run is, from its receipts, while it goes on or after: one row per step.

    Returns:
        The rows of `plan` without resources, and rows, busy_s, last_commit (seconds since the epoch, or None),
        left_s (seconds that the pending shards take at the newest run's pace, or None), writer (the process that
        holds the table's lease now, or None).
    """
    rows = []
    costs = store.costs(steps, shards)
    events = read_events(store.folder)
    leases = {step.name: Leases.holder(store.folder, store.table_folder(step)) for step in steps}
    for row in plan(store, steps, shards):
        own = [cost for cost in costs if cost["step"] == row["step"]]
        del row["resources"], row["lm_pool"]
        shards_per_s = pace(events, row["step"])
        todo = row["num_shards"] - row["num_committed"]
        rows.append(
            {
                **row,
                "rows": sum(cost["rows"] for cost in own),
                "busy_s": sum(cost["seconds"]["busy"] for cost in own),
                "last_commit": max((cost["committed_at"] for cost in own), default=None),
                "left_s": None if shards_per_s is None else todo / shards_per_s,
                "writer": leases[row["step"]],
            }
        )
    return rows
