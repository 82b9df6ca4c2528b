"""Ray's own memory monitor as killer: the utterance that takes all memory is set aside, nothing else is lost.

A module of its own, because the monitor is set where Ray starts.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes import Behaviour, folder_in_memory, line
from test_chaos import undisturbed
from test_pools import HERE, prepared

pytestmark = pytest.mark.slow
tmp_path = pytest.fixture(folder_in_memory)


@pytest.fixture
def watched_for_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A Ray whose memory monitor kills workers as soon as the machine holds 1.5 GiB more than now."""
    import psutil
    import ray

    monkeypatch.setenv("PYTHONPATH", str(HERE))
    memory = psutil.virtual_memory()
    threshold = (memory.total - memory.available + 1.5 * 2**30) / memory.total
    monitored = {"memory_usage_threshold": threshold, "memory_monitor_refresh_ms": 100}
    ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False, _system_config=monitored)
    yield
    ray.shutdown()


def test_an_utterance_that_takes_all_memory_is_quarantined_by_rays_own_memory_monitor(
    watched_for_memory: None, tmp_path: Path
) -> None:
    from ctxasr_ray.distributed.pools import run_ray

    hog = "tiny-test-0005"
    store, shards = prepared(tmp_path / "run", 8)
    steps = line(lm_scores=Behaviour(hog=hog))
    assert run_ray(store, steps[:3], shards).failures == 1
    found = {row["utterance_id"]: row for row in store.gather(steps[2], shards).to_pylist()}
    assert found[hog]["error_type"] == "quarantined"
    assert "memory" in found[hog]["error"]
    reference, reference_shards = undisturbed(tmp_path / "inline", 8)
    expected = {row["utterance_id"]: row for row in reference.gather(line()[2], reference_shards).to_pylist()}
    assert {i: row for i, row in found.items() if i != hog} == {i: r for i, r in expected.items() if i != hog}
