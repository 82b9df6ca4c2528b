"""The Ray executor: the same tables as the plain one, one pool per model, and refusals in words."""

import contextlib
import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pytest
from fakes import LIGHT, Behaviour, FirstPassConfig, ScorerConfig, folder_in_memory, line, utterances
from processes_below import descendants

from ctxasr_ray.audit import audit_steps
from ctxasr_ray.execution.inline import Progress, run_inline
from ctxasr_ray.schema import ContractError
from ctxasr_ray.stage import Resources, Step
from ctxasr_ray.storage.store import Shard, Store

HERE = Path(__file__).parent
tmp_path = pytest.fixture(folder_in_memory)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One local cluster for the module; its workers can import the fakes."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(HERE)
    from ctxasr_ray.distributed.cluster import connected

    with connected(None, 6):
        yield
    os.environ.pop("PYTHONPATH") if before is None else os.environ.__setitem__("PYTHONPATH", before)


def prepared(root: Path, num: int = 24) -> tuple[Store, list[Shard]]:
    store = Store(root)
    table = pa.concat_tables([utterances(num, split=split) for split in ("dev", "test")])
    return store, store.add_corpus(table, shard_audio_s=40, seed=1)


def tables(store: Store, steps: tuple[Step, ...], shards: list[Shard]) -> dict[str, pa.Table]:
    return {step.name: store.gather(step, shards) for step in steps}


def files(store: Store) -> list[str]:
    return sorted(path.relative_to(store.root).as_posix() for path in Path(store.root).rglob("*.parquet"))


def test_ray_and_inline_give_the_same_tables(cluster: None, tmp_path: Path) -> None:
    from ctxasr_ray.distributed.pools import run_ray

    (tmp_path / "log").mkdir()
    log = Behaviour(log=str(tmp_path / "log"))
    steps = line(first_pass=log, lm_scores=log, fused=log)
    inline_store, inline_shards = prepared(tmp_path / "inline")
    run_inline(inline_store, line(), inline_shards)
    store, shards = prepared(tmp_path / "ray")
    seen: list[Progress] = []
    summary = run_ray(store, steps, shards, on_progress=seen.append)
    assert tables(store, steps, shards) == tables(inline_store, line(), inline_shards)
    assert files(store) == files(inline_store)
    assert (summary.done, summary.skipped) == (5 * len(shards) + 2, 0)
    assert [each.done for each in seen] == list(range(1, seen[-1].total + 1))
    assert len(os.listdir(tmp_path / "log")) == 3 * len(shards)
    # the inline executor finds nothing left to do, and so does Ray, without starting a pool
    assert run_inline(store, steps, shards).done == 0
    again = run_ray(store, steps, shards)
    assert (again.done, again.skipped) == (0, summary.done)
    assert len(os.listdir(tmp_path / "log")) == 3 * len(shards)


def listening(ancestor: int) -> dict[str, str]:
    """Addresses that a process and all below it listen on, in hex as the kernel writes them, with who listens."""
    sockets = {}
    for table in ("tcp", "tcp6"):
        for row in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            address, state, inode = (row.split()[place] for place in (1, 3, 9))
            if state == "0A":
                sockets[f"socket:[{inode}]"] = address.partition(":")[0]
    found = {}
    for pid in (ancestor, *descendants(ancestor)):
        with contextlib.suppress(OSError):
            for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                if (address := sockets.get(os.readlink(descriptor))) is not None:
                    found[address] = Path(f"/proc/{pid}/cmdline").read_text()[:80]
    return found


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="listening sockets are read from /proc")
def test_nothing_of_a_local_cluster_listens_beyond_loopback(cluster: None) -> None:
    from ctxasr_ray.distributed.cluster import ray

    def worker() -> int:
        return os.getpid()

    assert ray.get(ray.remote(worker).remote()) != os.getpid()  # it listens too
    loopback = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
    found = listening(os.getpid())
    assert found
    assert {address: who for address, who in found.items() if address not in loopback} == {}


class ThreadsConfig(FirstPassConfig):
    """Writes the thread settings that its process has, in place of hypotheses."""

    def rows(self, *tables: pa.Table) -> list[dict[str, Any]]:
        text = f"{os.environ.get('OMP_NUM_THREADS')} {os.environ.get('MKL_NUM_THREADS')}"
        hypothesis = {"text": text, "scores": [], "origin": "search"}
        return [{"utterance_id": i, "hypotheses": [hypothesis]} for i in tables[0]["utterance_id"].to_pylist()]


class RefusesConfig(FirstPassConfig):
    def rows(self, *tables: pa.Table) -> list[dict[str, Any]]:
        raise ValueError("the model has no weights")


class DropsConfig(FirstPassConfig):
    def rows(self, *tables: pa.Table) -> list[dict[str, Any]]:
        return FirstPassConfig.rows(self, *tables)[1:]


def test_threads_are_equal_and_faults_keep_their_type(cluster: None, tmp_path: Path) -> None:
    from ctxasr_ray.distributed.pools import run_ray

    corpus = line()[:1]
    step = Step(name="threads", config=ThreadsConfig(resources=Resources(num_cpus=2)), inputs=corpus)
    seen = []
    for executor, name in ((run_inline, "inline"), (run_ray, "ray")):
        store, shards = prepared(tmp_path / name, 4)
        executor(store, [step], shards)
        seen.append({h[0]["text"] for h in store.gather(step, shards)["hypotheses"].to_pylist()})
    assert seen == [{"2 2"}, {"2 2"}]
    store, shards = prepared(tmp_path / "refused", 4)
    with pytest.raises(ValueError, match=r"step 'bad' \(fake_first_pass\), shard tiny-.*: the model has no weights"):
        run_ray(store, [Step(name="bad", config=RefusesConfig(), inputs=corpus)], shards)
    with pytest.raises(ContractError, match="expected exactly the rows of the shard"):
        run_ray(store, [Step(name="bad", config=DropsConfig(), inputs=corpus)], shards)


def test_pools_that_do_not_fit_are_refused_before_any_work(cluster: None, tmp_path: Path) -> None:
    from ctxasr_ray.distributed.pools import run_ray

    store, shards = prepared(tmp_path / "run", 4)
    config = FirstPassConfig(resources=Resources(num_gpus=1, num_actors=2), behaviour=Behaviour(log="/nonexistent"))
    with pytest.raises(
        ValueError, match=r"'first_pass' finds no place(.|\n)*2 actors with 1 CPU, 1 GPU each(.|\n)*Nothing"
    ):
        run_ray(store, [Step(name="first_pass", config=config, inputs=line()[:1])], shards)


NODE = {"CPU": 4.0, "GPU": 2.0, "memory": 8e9}


@pytest.mark.parametrize(
    ("asked", "nodes", "fits"),
    [
        ([Resources(num_cpus=4)], [(NODE, {})], True),
        ([Resources(num_cpus=2, num_actors=3)], [(NODE, {})], False),
        ([Resources(num_cpus=2, num_actors=3)], [(NODE, {}), (NODE, {})], True),
        ([Resources(num_gpus=0.5, num_actors=4)], [(NODE, {})], True),
        ([Resources(num_gpus=3)], [(NODE, {}), (NODE, {})], False),  # four GPUs in all, but no node has three
        ([Resources(num_cpus=3), Resources(num_cpus=2)], [(NODE, {})], False),
        ([Resources(memory_bytes=9 * 10**9)], [(NODE, {})], False),
        ([Resources(label_selector={"role": "lm"})], [(NODE, {"role": "asr"})], False),
        ([Resources(label_selector={"role": "lm"})], [(NODE, {}), (NODE, {"role": "lm"})], True),
    ],
)
def test_actors_are_placed_on_whole_nodes(
    asked: list[Resources], nodes: list[tuple[dict[str, float], dict[str, str]]], fits: bool
) -> None:
    from ctxasr_ray.distributed.cluster import Pool, unplaced

    pools = [Pool(f"pool {i}", each) for i, each in enumerate(asked)]
    assert (unplaced(pools, nodes) is None) == fits


class OtherConfig(ScorerConfig):
    NAME: ClassVar[str] = "other_scorer"


def test_light_neighbours_share_a_pool_and_wait_for_heavy_ones() -> None:
    from ctxasr_ray.distributed.pools import _pools

    _, first_pass, scores, nbest_errors, *_ = line()
    second = Step(name="second", config=OtherConfig(), inputs=(first_pass,))
    light = Step(name="light", config=ScorerConfig(resources=LIGHT), inputs=(first_pass,))
    found = [pool.name for pool, _ in _pools((first_pass, nbest_errors, scores, light, second))]
    assert found == ["first_pass", "lm_scores", "second", "nbest_errors + light"]
    needs_light = dataclasses.replace(second, inputs=(first_pass, light))
    assert [pool.name for pool, _ in _pools((first_pass, nbest_errors, light, needs_light))][1] == "light"


@pytest.mark.slow
def test_no_worker_prints_and_a_run_leaves_one_line_at_most(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
import test_pools as t
from ctxasr_ray.distributed.pools import run_ray
if __name__ == "__main__":
    store, shards = t.prepared(Path(sys.argv[1]), 4)
    run_ray(store, t.line()[:2], shards)
"""
    environment = {**os.environ, "PYTHONPATH": str(HERE)}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "run")], env=environment, capture_output=True, text=True, check=True
    )
    lines = (done.stdout + done.stderr).strip().splitlines()
    assert len(lines) <= 1, lines


def test_an_audit_in_a_plain_run_does_its_sample_again_on_ray(cluster: None, tmp_path: Path) -> None:
    from ctxasr_ray.distributed.pools import run_ray

    store, shards = prepared(tmp_path)
    steps = line()
    run_inline(store, steps, shards)
    (note,) = audit_steps(store, steps, shards, run_ray, 6)
    assert note.severity == "note", note
    assert "3 in the other executor" in note.what
