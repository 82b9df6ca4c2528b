"""Exactly once on Ray: workers, drivers and nodes killed with SIGKILL, then the tables of an undisturbed inline run."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes import POINTS, Behaviour, FirstPassConfig, Trap, folder_in_memory, line
from object_storage import BUCKET, Proxy, object_storage
from test_pools import HERE, cluster, files, prepared, tables

from ctxasr_ray.execution.inline import RunSummary, run_inline
from ctxasr_ray.stage import Resources, Step
from ctxasr_ray.storage.store import Shard, Store

pytestmark = pytest.mark.slow
tmp_path = pytest.fixture(folder_in_memory)
proxy = pytest.fixture(object_storage)
__all__ = ["cluster"]


def undisturbed(root: Path, num: int = 24) -> tuple[Store, list[Shard]]:
    store, shards = prepared(root, num)
    run_inline(store, line(), shards)
    return store, shards


def nothing_was_done_after_its_commit(log: Path, store: Store, steps: tuple[Step, ...], shards: list[Shard]) -> bool:
    """Every call of a stage on a shard began before the commit of that shard's table."""
    committed = {}
    for step in steps[1:]:
        if step.config.WRITES not in ("fits", "results"):
            for shard in shards:
                first = store.read(step, shard)["utterance_id"][0].as_py()
                committed[step.config.NAME, first] = store.read_receipt(step, shard)["committed_at"]
    begun = [name.split(".") for name in os.listdir(log)]
    return all(int(when) / 1e9 <= committed[stage, first] for stage, _, first, when in begun)


def test_workers_killed_at_every_point_of_the_commit(cluster: None, tmp_path: Path) -> None:
    from ctxasr_ray.distributed.pools import run_ray

    log, tokens = tmp_path / "log", tmp_path / "tokens"
    log.mkdir()
    tokens.mkdir()
    names = ("first_pass", "lm_scores", "nbest_errors", "fused", "errors", "first_pass")
    traps: dict[str, tuple[Trap, ...]] = {}
    for number, (point, name) in enumerate(zip(POINTS, names, strict=True)):
        trap = Trap(point=point, utterance_id=f"tiny-test-{4 * number:04d}", tokens=str(tokens))
        traps[name] = (*traps.get(name, ()), trap)
    steps = line(**{name: Behaviour(log=str(log), traps=each) for name, each in traps.items()})
    store, shards = prepared(tmp_path / "run")
    summary = run_ray(store, steps, shards)
    assert len(os.listdir(tokens)) == len(POINTS)  # every trap sprang
    assert summary.failures == 0
    reference, reference_shards = undisturbed(tmp_path / "inline")
    assert tables(store, steps, shards) == tables(reference, line(), reference_shards)
    assert files(store) == files(reference)
    assert nothing_was_done_after_its_commit(log, store, steps, shards)
    again = Counter(tuple(name.split(".")[:3]) for name in os.listdir(log))
    assert sum(count - 1 for count in again.values()) <= len(POINTS) + 2  # a dead actor's queue holds few


def test_a_poison_utterance_ends_quarantined_and_not_in_a_loop(cluster: None, tmp_path: Path) -> None:
    from ctxasr_ray.distributed.pools import run_ray

    poison = "tiny-test-0005"
    steps = line(lm_scores=Behaviour(poison=poison))
    store, shards = prepared(tmp_path / "run", 8)
    summary = run_ray(store, steps[:3], shards)
    assert summary.failures == 1
    found = {row["utterance_id"]: row for row in store.gather(steps[2], shards).to_pylist()}
    assert found[poison]["error_type"] == "quarantined"
    assert "died 2 times" in found[poison]["error"]
    reference, reference_shards = undisturbed(tmp_path / "inline", 8)
    expected = {row["utterance_id"]: row for row in reference.gather(line()[2], reference_shards).to_pylist()}
    assert {i: row for i, row in found.items() if i != poison} == {i: r for i, r in expected.items() if i != poison}
    assert run_ray(store, steps[:3], shards).done == 0


DRIVER = """
import sys
from pathlib import Path
import test_chaos as t
from ctxasr_ray.distributed.pools import run_ray
if __name__ == "__main__":
    root, log = sys.argv[1:]
    slow = t.Behaviour(sleep_s=0.4, log=log)
    store, shards = t.prepared(Path(root), 40)
    run_ray(store, t.line(first_pass=slow, lm_scores=slow, fused=slow), shards)
"""


def test_a_driver_killed_and_started_again_finishes_the_rest(tmp_path: Path) -> None:
    log, root = tmp_path / "log", tmp_path / "run"
    log.mkdir()
    command = [sys.executable, "-c", DRIVER, str(root), str(log)]
    environment = {**os.environ, "PYTHONPATH": str(HERE)}
    first = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 200
    while len(list(root.glob("scores/*/*.parquet"))) < 2:
        assert first.poll() is None
        assert time.monotonic() < until
        time.sleep(0.05)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    second = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert second.returncode == 0, second.stderr
    store, shards = prepared(root, 40)
    reference, reference_shards = undisturbed(tmp_path / "inline", 40)
    assert tables(store, line(), shards) == tables(reference, line(), reference_shards)
    assert files(store) == files(reference)
    assert nothing_was_done_after_its_commit(log, store, line(), shards)


def test_ray_workers_commit_to_s3(proxy: Proxy, tmp_path: Path) -> None:
    """In a driver of its own: workers inherit the address of the store when their cluster starts."""
    code = """
import sys
import test_s3 as t
from ctxasr_ray.distributed.pools import run_ray
if __name__ == "__main__":
    store, shards = t.prepared(sys.argv[1])
    run_ray(store, t.line(), shards)
"""
    proxy.fail_every = 29
    root = f"s3://{BUCKET}/run"
    environment = {**os.environ, "PYTHONPATH": str(HERE)}
    done = subprocess.run(
        [sys.executable, "-c", code, root], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    proxy.fail_every = 0
    store, shards = prepared(Path(root) if "://" not in root else root, 12)  # type: ignore[arg-type]  # also a URL
    reference, reference_shards = undisturbed(tmp_path / "inline", 12)
    assert tables(store, line(), shards) == tables(reference, line(), reference_shards)


@pytest.fixture
def two_nodes() -> Iterator[Any]:
    """A cluster of two nodes on this host; the second one may be taken away."""
    os.environ["PYTHONPATH"] = str(HERE)
    from ray.cluster_utils import Cluster

    from ctxasr_ray.distributed.cluster import ray

    ray.shutdown()
    try:
        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    except Exception:  # a busy machine can miss Ray's 30 s for a node
        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    yield nodes
    ray.shutdown()
    nodes.shutdown()


def test_a_node_that_dies_is_a_preemption_and_no_attempt(two_nodes: Any, tmp_path: Path) -> None:
    """The first pass runs on the node that goes; its work is done again on the one that comes."""
    from ctxasr_ray.distributed.cluster import ray
    from ctxasr_ray.distributed.pools import run_ray

    role = {"role": "first-pass"}
    doomed = two_nodes.add_node(num_cpus=2, labels=role)
    log = tmp_path / "log"
    log.mkdir()
    config = FirstPassConfig(
        behaviour=Behaviour(sleep_s=1.0, log=str(log)), resources=Resources(num_cpus=1, label_selector=role)
    )
    step = Step(name="first_pass", config=config, inputs=line()[:1])
    store, shards = prepared(tmp_path / "run", 40)
    ray.init(address=two_nodes.address, log_to_driver=False, logging_level="ERROR")
    summaries: list[RunSummary] = []
    thread = threading.Thread(target=lambda: summaries.append(run_ray(store, [step], shards)))
    thread.start()
    while len(os.listdir(log)) < 3:
        time.sleep(0.05)
    two_nodes.remove_node(doomed, allow_graceful=False)
    assert thread.is_alive()
    assert len(os.listdir(log)) < len(shards)
    two_nodes.add_node(num_cpus=2, labels=role)
    thread.join(timeout=300)
    assert [each.failures for each in summaries] == [0]
    reference, reference_shards = undisturbed(tmp_path / "inline", 40)
    assert store.gather(step, shards).equals(reference.gather(line()[1], reference_shards))
    assert len(os.listdir(log)) > len(shards)  # what the node was at was begun again, and not counted against a row
