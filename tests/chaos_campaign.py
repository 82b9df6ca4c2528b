"""Many seeded runs that are hit, on one standing cluster, each compared with an undisturbed inline run."""

import contextlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from chaos_runs import HERE, Chaos, asking_line, disturb, prepared
from object_storage import BUCKET, object_storage
from test_pools import tables

from ctxasr_ray.execution.inline import run_inline
from ctxasr_ray.stage import GATHERED

ON_S3 = (1, 3)
"""Seeds modulo 5 whose run folder is on a failing S3 server."""
QUICK = {
    "health_check_initial_delay_ms": 0,  # Ray misses a node that is gone after half a minute; these runs take seconds
    "health_check_period_ms": 1000,
    "health_check_failure_threshold": 4,
    "prestart_worker_first_driver": False,
}


@dataclass(slots=True)
class Totals:
    """What all runs went through, and what came of it."""

    struck: Counter[str] = field(default_factory=Counter)
    """Kind of fault -> how many were survived."""
    untouched: list[int] = field(default_factory=list)
    """Seeds whose run nothing struck."""
    unequal: list[int] = field(default_factory=list)
    """Seeds whose tables are not those of the undisturbed run."""
    runs: int = 0
    drivers: int = 0
    shards_redone: int = 0
    requests_failed: int = 0
    """Of the store: refused, or their answer lost."""
    rows_lost: int = 0
    rows_doubled: int = 0


@contextlib.contextmanager
def standing_cluster() -> Iterator[Chaos]:
    """A head without work and two nodes, whose workers find the fakes; start the S3 server first, they inherit it."""
    from ray.cluster_utils import Cluster

    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), before or ""])
    head = {"num_cpus": 0, "include_dashboard": False, "_system_config": QUICK}
    try:
        nodes = Cluster(initialize_head=True, head_node_args=head)
    except Exception:  # a busy machine can miss Ray's 30 s for a node
        nodes = Cluster(initialize_head=True, head_node_args=head)
    try:
        yield Chaos(nodes, {"num_cpus": 3})
    finally:
        nodes.shutdown()
        os.environ.pop("PYTHONPATH") if before is None else os.environ.__setitem__("PYTHONPATH", before)


def campaign(seeds: Iterable[int], folder: Path) -> Totals:
    """Does the runs of some seeds one after another and prints a line for each.

    Args:
        seeds: Each decides its faults, and whether its run folder is on S3.
        folder: For run folders and logs.

    Raises:
        AssertionError: a driver failed that nobody had killed.
    """
    totals = Totals()
    reference, shards = prepared(folder / "inline")
    run_inline(reference, asking_line(), shards)
    expected = tables(reference, asking_line(), shards)
    with contextlib.contextmanager(object_storage)() as proxy, standing_cluster() as chaos:
        for seed in seeds:
            own = folder / f"run-{seed}"
            own.mkdir()
            root = f"s3://{BUCKET}/run-{seed}" if seed % 5 in ON_S3 else str(own / "tables")
            if "://" in root:
                disturb(proxy, seed)
            survived = chaos.run(seed, root, own)
            proxy.fail_every = proxy.lose_every = 0
            store, own_shards = prepared(root)
            found = tables(store, asking_line(), own_shards)
            totals.runs += 1
            totals.struck += survived.faults
            totals.drivers += survived.drivers
            totals.shards_redone += survived.shards_redone
            _compare(totals, seed, found, expected)
            if not survived.faults:
                totals.untouched.append(seed)
            print(f"seed {seed}: {dict(survived.faults)}, {survived.drivers} drivers, {root}", flush=True)
        totals.requests_failed = proxy.num_failed
    return totals


def _compare(totals: Totals, seed: int, found: dict[str, pa.Table], expected: dict[str, Any]) -> None:
    if found != expected:
        totals.unequal.append(seed)
    for step in asking_line():
        if step.config.WRITES not in GATHERED:
            here, there = (Counter(each[step.name]["utterance_id"].to_pylist()) for each in (found, expected))
            totals.rows_lost += (there - here).total()
            totals.rows_doubled += (here - there).total()
