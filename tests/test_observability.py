"""What can be seen of a run: a JSON line per step and shard, `ctxasr status` while it goes on, exported metrics."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fakes import Behaviour, folder_in_memory, line
from test_pools import HERE, prepared

from ctxasr_ray.execution import planning
from ctxasr_ray.execution.events import EventLog, pace, read_events
from ctxasr_ray.execution.inline import Progress, run_inline
from ctxasr_ray.execution.worker import Report

tmp_path = pytest.fixture(folder_in_memory)


def test_every_step_and_shard_leaves_one_line_and_a_rerun_none(tmp_path: Path) -> None:
    store, shards = prepared(tmp_path, 8)
    run_inline(store, line(), shards)
    events = read_events(store.folder)
    assert sorted((e["step"], e["shard"]) for e in events if e["shard"] in {s.name for s in shards}) == sorted(
        (step.name, shard.name)
        for step in line()[1:]
        for shard in shards
        if step.config.WRITES not in ("fits", "results")
    )
    assert len({event["run"] for event in events}) == 1
    sizes = {shard.name: shard.num_rows for shard in shards}
    for event in events:
        assert (event["outcome"], event["attempt"], event["failures"]) == ("done", 1, 0)
        assert event["rows"] == sizes.get(event["shard"], event["rows"])
        assert event["seconds"] >= 0
    run_inline(store, line(), shards)
    assert read_events(store.folder) == events


def test_status_says_what_is_left_while_a_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctxasr_ray.execution.events.FLUSH_S", 0.0)
    store, shards = prepared(tmp_path, 24)
    steps = line(first_pass=Behaviour(sleep_s=0.02))
    seen: list[dict[str, object]] = []

    def look(progress: Progress) -> None:
        if progress.done == len(shards) - 2:
            seen.extend(planning.status(store, steps, shards))

    run_inline(store, steps, shards, on_progress=look)
    first_pass = next(row for row in seen if row["step"] == "first_pass")
    assert first_pass["num_committed"] == len(shards) - 2
    assert 0.04 <= float(str(first_pass["left_s"])) < 10
    assert first_pass["writer"] is not None
    assert [row["left_s"] for row in planning.status(store, steps, shards) if row["step"] == "first_pass"] == [0.0]


def test_the_pace_is_that_of_the_newest_run(tmp_path: Path) -> None:
    store, _ = prepared(tmp_path, 4)
    for run in ("old", "new"):
        log = EventLog(store.folder, run)
        for shard in "ab":
            log.add(Report("s", shard, "done", 1, 0, 0.1, 0.0))
        log.add(Report("s", "c", "skipped", 1, 0, 0.0, 0.0))
        log.flush()
    events = read_events(store.folder)
    assert [event["shard"] for event in events] == ["a", "b"] * 2
    assert pace([{**e, "at": float(i)} for i, e in enumerate(events)], "s") == 1.0
    assert pace(events, "other") is None
    assert pace([], "s") is None


@pytest.mark.slow
def test_ray_exports_counters_and_gauges_per_step(tmp_path: Path) -> None:
    code = """
import sys, time, urllib.request
from pathlib import Path
import ray
import test_pools as t
from ctxasr_ray.distributed.pools import run_ray
if __name__ == "__main__":
    ray.init(address="local", num_cpus=6, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    store, shards = t.prepared(Path(sys.argv[1]), 8)
    run_ray(store, t.line(first_pass=t.Behaviour(sleep_s=0.5)), shards)
    port = ray.nodes()[0]["MetricsExportPort"]
    until = time.monotonic() + 90
    while time.monotonic() < until:
        text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
        found = [each for each in text.splitlines() if "ctxasr_" in each and not each.startswith("#")]
        if found:
            break
        time.sleep(1)
    print("\\n".join(found))
    print(len(shards))
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "run")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    *lines, num_shards = done.stdout.splitlines()
    shards = [each for each in lines if "ctxasr_shards" in each and 'step="first_pass"' in each]
    assert sum(float(each.rpartition(" ")[2]) for each in shards) == int(num_shards)
    for name in ("ctxasr_rows", "ctxasr_busy_seconds", "ctxasr_shard_seconds"):
        assert any(name in each and 'outcome="done"' in each for each in lines), done.stdout
