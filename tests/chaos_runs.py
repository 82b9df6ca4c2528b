"""Seeded runs that are hit at random points: workers, LM actors, nodes, drivers, and a store that fails.

A run is a driver process on a standing cluster of a head without work and two nodes. What is done to it follows from
its seed: which faults, and after how many calls of a stage each strikes. The stages are fakes, one of which asks a
language model in a pool of its own; its scores do not depend on batches, so that tables are equal to the bit.
"""

import dataclasses
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from fakes import Behaviour, FirstPassConfig, _number, line, utterances
from object_storage import Proxy
from processes_below import children

from ctxasr_ray import schema
from ctxasr_ray.stage import Costs, Resources, Stage, Step, TreeNodes, TreeScorerHost, runtime_field
from ctxasr_ray.storage.store import Shard, Store

HERE = Path(__file__).parent
FAULTS = ("worker", "lm_actor", "node", "driver")
NUM_UTTERANCES = 4
"""Per split; two to a shard."""
STAGES = 5
"""Per-shard stages of the line."""
ROUNDS = 3
"""Calls of the language model per shard."""
MAX_DRIVERS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class PathLmConfig:
    """A language model whose log-prob of a token follows from the path above it alone, whatever else is asked."""

    def host(self) -> "PathLm":
        return PathLm()


@dataclass(slots=True)
class PathLm:
    """Loaded model and session keeper in one."""

    eos_token_id: int | None = None
    max_positions: int | None = None
    position_bytes: int = 0
    paths: dict[int, list[tuple[int, ...]]] = field(default_factory=dict)
    costs: Costs = field(default_factory=Costs)

    def sessions(self, costs: Costs) -> "PathLm":
        return PathLm(costs=costs)

    def open(self, prefixes: Sequence[Any]) -> list[int]:
        first = len(self.paths)
        for number, prefix in enumerate(prefixes):
            self.paths[first + number] = [tuple(prefix.tolist())]
        return list(range(first, first + len(prefixes)))

    def extend(self, sessions: Sequence[int], nodes: Sequence[TreeNodes]) -> list[Any]:
        time.sleep(0.02)
        found = []
        for session, new in zip(sessions, nodes, strict=True):
            paths = self.paths[session]
            for token, parent in zip(new.tokens.tolist(), new.parents.tolist(), strict=True):
                paths.append((*paths[parent + 1], token))
            scores = [-_number(*path) for path in paths[len(paths) - len(new.tokens) :]]
            found.append((np.array(scores), np.full(len(scores), np.nan)))
            self.costs.count("nodes", len(scores))
        return found

    def retain(self, sessions: Sequence[int], nodes: Sequence[Any]) -> None:
        pass

    def close(self, sessions: Sequence[int]) -> None:
        for session in sessions:
            self.paths[session] = []


@dataclass(frozen=True, kw_only=True, slots=True)
class AskingFirstPassConfig(FirstPassConfig):
    """The fake first pass, whose scores are sums of what a language model says of a growing path."""

    NAME = "asking_first_pass"
    lm_pool: Resources | None = runtime_field(None)
    lm_connect: Callable[[], TreeScorerHost] | None = runtime_field(None)

    def asked_lm(self) -> PathLmConfig:
        return PathLmConfig()

    def build(self) -> Stage:
        return Asking(self, self.lm_connect() if self.lm_connect else self.asked_lm().host())


@dataclass(frozen=True, slots=True)
class Asking:
    config: AskingFirstPassConfig
    host: TreeScorerHost

    def __call__(self, *tables: pa.Table, costs: Costs) -> pa.Table:
        ids = tables[0]["utterance_id"].to_pylist()
        self.config.behaviour.before(self.config.NAME, ids)
        scorer = self.host.sessions(costs)
        sessions = scorer.open([np.array([len(each)], np.int32) for each in ids])
        sums = dict.fromkeys(ids, 0.0)
        for round_ in range(ROUNDS):
            tokens = [int(1e6 * _number(each, round_)) for each in ids]
            new = [TreeNodes(np.array([token], np.int32), np.array([round_ - 1], np.int32)) for token in tokens]
            for each, (log_probs, _) in zip(ids, scorer.extend(sessions, new), strict=True):
                sums[each] += float(log_probs.sum())
        scorer.close(sessions)
        rows = self.config.rows(*tables)
        for row in rows:
            for hypothesis in row["hypotheses"]:
                hypothesis["scores"][0]["log_prob"] += sums[row["utterance_id"]]
        return pa.Table.from_pylist(rows, schema=schema.HYPOTHESES)


def asking_line(log: str = "", sleep_s: float = 0.0) -> tuple[Step, ...]:
    """The fakes' line with the asking first pass, its model in a pool; scorer and counts share one light pool."""
    behaviour = Behaviour(log=log, sleep_s=sleep_s)
    steps = line(**dict.fromkeys(("lm_scores", "nbest_errors", "fused", "errors"), behaviour))
    config = AskingFirstPassConfig(behaviour=behaviour, lm_pool=Resources(num_cpus=1))
    places: dict[int, Step] = {}
    for step in steps:
        inputs = tuple(places[id(parent)] for parent in step.inputs)
        changed = dataclasses.replace(step, inputs=inputs)
        if step.name == "first_pass":
            changed = dataclasses.replace(changed, config=config)
        places[id(step)] = changed
    return tuple(places.values())


def prepared(root: str | Path) -> tuple[Store, list[Shard]]:
    store = Store(root)
    table = pa.concat_tables([utterances(NUM_UTTERANCES, split=split) for split in ("dev", "test")])
    return store, store.add_corpus(table, shard_audio_s=9, seed=1)


DRIVER = """
import sys
import chaos_runs
from ctxasr_ray.distributed.pools import run_ray
if __name__ == "__main__":
    root, log, address = sys.argv[1:]
    store, shards = chaos_runs.prepared(root)
    run_ray(store, chaos_runs.asking_line(log, 0.2), shards, address=address)
"""


@dataclass(frozen=True, slots=True)
class Fault:
    """Strikes a moment after a share of all calls of the run was made."""

    kind: str
    after: float
    wait_s: float


def faults(seed: int) -> list[Fault]:
    """One to three faults in order of time, the first of a kind that the seeds take in turn."""
    rng = random.Random(seed)
    # language models work in the first half of the run, so their fault comes early
    found = [Fault(FAULTS[seed % len(FAULTS)], rng.uniform(0.0, 0.3), rng.uniform(0, 0.4))]
    found += [Fault(rng.choice(FAULTS), rng.uniform(0, 0.9), rng.uniform(0, 0.4)) for _ in range(rng.randint(0, 2))]
    return sorted(found, key=lambda fault: fault.after)


@dataclass(slots=True)
class Survived:
    """What a run went through."""

    faults: Counter[str] = field(default_factory=Counter)
    drivers: int = 0
    shards_redone: int = 0


class Chaos:
    """Runs drivers on a standing cluster and hits them.

    Args:
        nodes: A `ray.cluster_utils.Cluster` whose head has no CPU.
        node: What each other node is started with.
    """

    def __init__(self, nodes: Any, node: Mapping[str, Any]) -> None:
        self._nodes, self._node = nodes, node
        for _ in range(2):
            nodes.add_node(**node)

    def run(self, seed: int, root: str, folder: Path) -> Survived:
        """One run from start to finish, its driver started again whenever it is killed.

        Raises:
            AssertionError: a driver failed that nobody had killed.
        """
        log = folder / "log"
        log.mkdir(parents=True)
        rng, todo, survived = random.Random(seed), faults(seed), Survived()
        total = STAGES * len(prepared(root)[1])
        while survived.drivers < MAX_DRIVERS:
            survived.drivers += 1
            driver = self._driver(root, log)
            killed = False
            while driver.poll() is None:
                time.sleep(0.02)
                if not todo or len(os.listdir(log)) < todo[0].after * total:
                    continue
                time.sleep(todo[0].wait_s)
                if driver.poll() is None and self._strike(todo[0].kind, driver, rng):
                    survived.faults[todo[0].kind] += 1
                    killed = killed or todo[0].kind == "driver"
                    todo.pop(0)
            if driver.returncode == 0:
                calls = Counter(tuple(name.split(".")[:3]) for name in os.listdir(log))
                survived.shards_redone = sum(count - 1 for count in calls.values())
                return survived
            assert killed, f"seed {seed}: {driver.stderr.read() if driver.stderr else ''}"
        raise AssertionError(f"seed {seed}: not finished by {MAX_DRIVERS} drivers")

    def _driver(self, root: str, log: Path) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", DRIVER, root, str(log), self._nodes.address]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])}
        return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)

    def _strike(self, kind: str, driver: "subprocess.Popen[str]", rng: random.Random) -> bool:
        """False while there is nothing of that kind to hit."""
        if kind == "driver":
            driver.kill()
            driver.wait()
            return True
        if kind == "node":
            self._nodes.remove_node(rng.choice(sorted(self._nodes.worker_nodes, key=id)), allow_graceful=False)
            time.sleep(rng.uniform(0, 1))
            self._nodes.add_node(**self._node)
            return True
        raylets = {each.process.pid for node in self._nodes.worker_nodes for each in node.all_processes["raylet"]}
        found = children(raylets, {"worker": "ray::MapWorker", "lm_actor": "ray::LmActor"}[kind])
        if not found:
            return False
        os.kill(rng.choice(found), signal.SIGKILL)
        return True


def disturb(proxy: Proxy, seed: int) -> None:
    """From now on the store refuses some requests and loses the answers of others."""
    rng = random.Random(seed)
    proxy.fail_every, proxy.lose_every = rng.randint(9, 31), rng.randint(23, 61)
