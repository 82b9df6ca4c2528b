"""A run on several nodes that share a bucket and no disk: pools go where their labels and GPUs are."""

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chaos_runs import HERE
from fakes import Behaviour, folder_in_memory, line
from object_storage import BUCKET, Proxy, object_storage
from test_pools import prepared, tables

from ctxasr_ray.execution.inline import run_inline
from ctxasr_ray.stage import Resources, Step

pytestmark = pytest.mark.slow
tmp_path = pytest.fixture(folder_in_memory)
proxy = pytest.fixture(object_storage)
STORE_BYTES = 80 * 2**20
"""Of each node's object store, near the least that Ray takes: only descriptions of shards travel."""
POOLS = {
    "first_pass": Resources(num_gpus=1, label_selector={"role": "first-pass"}),
    "lm_scores": Resources(num_gpus=0.5, label_selector={"role": "lm"}),
}


@pytest.fixture
def nodes(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """Role -> pid of the node's raylet, the parent of its workers; its GPU is a number that only the plan sees."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]))
    from ray.cluster_utils import Cluster

    from ctxasr_ray.distributed.cluster import ray

    ray.shutdown()
    size = {"object_store_memory": STORE_BYTES}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "labels": {"role": "rest"}, **size})
    found = {"rest": cluster.head_node}
    for role in ("first-pass", "lm"):
        found[role] = cluster.add_node(num_cpus=1, num_gpus=1, labels={"role": role}, **size)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    yield {role: node.all_processes["raylet"][0].process.pid for role, node in found.items()}
    ray.shutdown()
    cluster.shutdown()


def placed(steps: tuple[Step, ...]) -> tuple[Step, ...]:
    """The same steps, those with a pool of their own on their nodes."""
    places: dict[int, Step] = {}
    for step in steps:
        config: Any = step.config
        if step.name in POOLS:
            config = dataclasses.replace(config, resources=POOLS[step.name])
        inputs = tuple(places[id(parent)] for parent in step.inputs)
        places[id(step)] = dataclasses.replace(step, config=config, inputs=inputs)
    return tuple(places.values())


def test_pools_work_on_the_nodes_of_their_labels_and_meet_in_a_bucket(nodes: dict[str, int], tmp_path: Path) -> None:
    from ctxasr_ray.distributed.pools import run_ray

    log = tmp_path / "log"
    log.mkdir()
    steps = placed(line(**dict.fromkeys(("first_pass", "lm_scores", "fused"), Behaviour(log=str(log)))))
    store, shards = prepared(f"s3://{BUCKET}/run")  # type: ignore[arg-type]  # also a URL
    summary = run_ray(store, steps, shards, address="auto")
    assert (summary.done, summary.failures) == (5 * len(shards) + 2, 0)
    reference, reference_shards = prepared(tmp_path / "inline")
    run_inline(reference, line(), reference_shards)
    assert tables(store, steps, shards) == tables(reference, line(), reference_shards)
    homes: dict[str, set[int]] = {}
    for path in log.iterdir():
        homes.setdefault(path.name.partition(".")[0], set()).add(int(path.read_text()))
    assert len(homes) == 3
    assert homes["fake_first_pass"] == {nodes["first-pass"]}
    assert homes["fake_scorer"] == {nodes["lm"]}
