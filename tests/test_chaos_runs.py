"""Seeded runs that are killed at random points end with the tables of an undisturbed one."""

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chaos_runs import FAULTS, HERE, Chaos, asking_line, disturb, prepared
from fakes import folder_in_memory
from object_storage import BUCKET, Proxy, object_storage
from test_pools import tables

from ctxasr_ray.execution.inline import run_inline

pytestmark = pytest.mark.slow
tmp_path = pytest.fixture(folder_in_memory)
proxy = pytest.fixture(object_storage)
SEEDS = range(8)
ON_S3 = (1, 3)
"""Seeds modulo 5 whose run folder is on a failing S3 server."""
QUICK = {
    "health_check_initial_delay_ms": 0,  # Ray misses a node that is gone after half a minute; these runs take seconds
    "health_check_period_ms": 1000,
    "health_check_failure_threshold": 4,
    "prestart_worker_first_driver": False,
}


@pytest.fixture
def chaos(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[Chaos]:
    """After the S3 server: nodes, and the workers below them, inherit its address when they start."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]))
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "include_dashboard": False, "_system_config": QUICK}
    try:
        nodes = Cluster(initialize_head=True, head_node_args=head)
    except Exception:  # a busy machine can miss Ray's 30 s for a node
        nodes = Cluster(initialize_head=True, head_node_args=head)
    yield Chaos(nodes, {"num_cpus": 3})
    nodes.shutdown()


def test_disturbed_runs_give_the_tables_of_an_undisturbed_one(
    chaos: Chaos, proxy: Proxy, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    reference, reference_shards = prepared(tmp_path / "inline")
    run_inline(reference, asking_line(), reference_shards)
    expected = tables(reference, asking_line(), reference_shards)
    ids = Counter(expected["corpus"]["utterance_id"].to_pylist())
    struck: Counter[str] = Counter()
    drivers = shards_redone = 0
    for seed in SEEDS:
        root = f"s3://{BUCKET}/run-{seed}" if seed % 5 in ON_S3 else str(tmp_path / f"run-{seed}" / "tables")
        (tmp_path / f"run-{seed}").mkdir()
        if "://" in root:
            disturb(proxy, seed)
        survived = chaos.run(seed, root, tmp_path / f"run-{seed}")
        proxy.fail_every = proxy.lose_every = 0
        struck += survived.faults
        drivers += survived.drivers
        shards_redone += survived.shards_redone
        print(f"seed {seed}: {dict(survived.faults)}, {survived.drivers} drivers, {root}", flush=True)
        assert survived.faults, f"seed {seed}: nothing struck"
        store, shards = prepared(root)
        found: dict[str, Any] = tables(store, asking_line(), shards)
        assert found == expected, f"seed {seed}"
        for step in asking_line()[1:]:
            if step.config.WRITES not in ("fits", "results"):
                assert Counter(found[step.name]["utterance_id"].to_pylist()) == ids, "no row lost, none doubled"
    assert set(struck) == set(FAULTS)
    counters = {**struck, "s3_requests_failed": proxy.num_failed, "drivers": drivers, "shards_redone": shards_redone}
    figures = {"faults_survived": sum(struck.values()), "rows_lost": 0, "rows_doubled": 0}
    with capfd.disabled():
        for name, value in figures.items():
            print(json.dumps({"name": f"chaos_{name}", "value": value, "unit": "", "counters": counters}))
