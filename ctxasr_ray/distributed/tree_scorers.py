"""Language models in pools of their own: stages are handed a proxy that survives the death of an LM actor.

A session of a search stays with one actor, whose caches it fills. When that dies, the proxy opens the session on the
actor with the fewest sessions and gives it all nodes that may still have children; Ray starts a new actor meanwhile.
"""

import contextlib
import dataclasses
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ctxasr_ray.distributed.cluster import Pool, options, ray
from ctxasr_ray.distributed.remote_sessions import START_S, RemoteHost, Scores, value_of
from ctxasr_ray.stage import AsksLm, Costs, HostConfig, NextScorer, Resources, Step, TreeNodes, TreeScorer

Int32 = npt.NDArray[np.int32]

IDLE_S: Final = 1800.0
"""Sessions of a client that was silent for so long are closed; if it lives after all, it opens them again."""


def host_pools(steps: Sequence[Step]) -> list[Pool]:
    """What the LMs of these steps ask of the cluster; equal LMs of several steps share a pool."""
    return [Pool(f"{name}, language model", pool) for name, _, pool in _asked(steps)]


@contextlib.contextmanager
def hosted(steps: Sequence[Step]) -> Iterator[Callable[[Step], Step]]:
    """Starts the pools of all LMs that these steps ask; they live as long as the block.

    Yields:
        What gives for a step the same one, connected to the pool of its LM.
    """
    pools = [(lm, pool, _start(lm, pool)) for _, lm, pool in _asked(steps)]

    def connected(step: Step) -> Step:
        config: Any = step.config
        for _, lm, pool in _asked([step]):
            actors = next(actors for known, size, actors in pools if (known, size) == (lm, pool))
            config = dataclasses.replace(config, lm_connect=Connection(actors))
        return dataclasses.replace(step, config=config)

    try:
        yield connected
    finally:
        for _, _, actors in pools:
            for actor in actors:
                ray.kill(actor)


def _asked(steps: Sequence[Step]) -> list[tuple[str, HostConfig, Resources]]:
    found: list[tuple[str, HostConfig, Resources]] = []
    for step in steps:
        config: Any = step.config
        if isinstance(config, AsksLm) and config.lm_pool is not None:
            lm, pool = config.asked_lm(), config.lm_pool
            if all((lm, pool) != known[1:] for known in found):
                found.append((step.name, lm, pool))
    return found


def _start(lm: HostConfig, pool: Resources) -> tuple[Any, ...]:
    kind = ray.remote(concurrency_groups={"load": 1})(LmActor)
    placed = kind.options(**options(pool), max_restarts=-1, max_task_retries=0)
    return tuple(placed.remote(lm, max(1, int(pool.num_cpus))) for _ in range(pool.num_actors))


@dataclass(slots=True)
class _Client:
    scorer: TreeScorer
    costs: Costs
    open: set[int] = field(default_factory=set)
    last_used: float = 0.0


class LmActor:
    """One model, asked by any number of clients, one call after another."""

    def __init__(self, lm: HostConfig, threads: int) -> None:
        """Loads the model."""
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            os.environ[name] = str(threads)
        self._host = lm.host()
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(threads)
        self._life = uuid.uuid4().hex
        self._clients: dict[str, _Client] = {}

    def facts(self) -> tuple[int | None, int | None, int]:
        """End of sequence, the longest sequence, bytes of a position."""
        return self._host.eos_token_id, self._host.max_positions, self._host.position_bytes

    @ray.method(concurrency_group="load")  # type: ignore[untyped-decorator]  # ray is not followed
    def num_sessions(self) -> int:
        """Open sessions of all clients; answered while the model works."""
        return sum(len(client.open) for client in list(self._clients.values()))

    def open(
        self, name: str, prefixes: Sequence[Int32], nodes: Sequence[TreeNodes]
    ) -> tuple[str, list[int], Mapping[str, int]]:
        """Opens sessions and brings them to where they were: this life of the actor, handles, counters."""
        for idle in [n for n, c in self._clients.items() if time.monotonic() - c.last_used > IDLE_S]:
            client = self._clients.pop(idle)
            client.scorer.close(sorted(client.open))
        if name not in self._clients:
            costs = Costs()
            self._clients[name] = _Client(self._host.sessions(costs), costs)
        client = self._clients[name]
        client.last_used = time.monotonic()
        handles = client.scorer.open(prefixes)
        client.open.update(handles)
        old = [(handle, new) for handle, new in zip(handles, nodes, strict=True) if len(new.tokens)]
        if old:
            client.scorer.extend([handle for handle, _ in old], [new for _, new in old])
        return self._life, handles, _taken(client.costs)

    def extend(
        self,
        name: str,
        life: str,
        sessions: Sequence[int],
        nodes: Sequence[TreeNodes],
        kept: Mapping[int, Int32],
    ) -> tuple[list[Scores], Mapping[str, int]] | None:
        """Scores new nodes, after dropping old ones; None where the sessions are of an earlier life, or expired."""
        client = self._client_with(name, life, sessions)
        if client is None:
            return None
        if kept:
            client.scorer.retain(list(kept), list(kept.values()))
        scores = client.scorer.extend(sessions, nodes)
        return scores, _taken(client.costs)

    def next_log_probs(
        self, name: str, life: str, sessions: Sequence[int], nodes: Sequence[Int32], tokens: Sequence[Int32]
    ) -> tuple[list[npt.NDArray[np.float64]], Mapping[str, int]] | None:
        """Log-probs of tokens behind nodes; None as in `extend`."""
        client = self._client_with(name, life, sessions)
        if client is None:
            return None
        assert isinstance(client.scorer, NextScorer), "only such a scorer is asked for next tokens"
        return client.scorer.next_log_probs(sessions, nodes, tokens), _taken(client.costs)

    def _client_with(self, name: str, life: str, sessions: Sequence[int]) -> _Client | None:
        client = self._clients.get(name)
        if client is None or life != self._life or not client.open.issuperset(sessions):
            return None
        client.last_used = time.monotonic()
        return client

    def close(self, name: str, life: str, sessions: Sequence[int]) -> None:
        """Forgets sessions, unless they are gone already."""
        client = self._clients.get(name)
        if client is None or life != self._life:
            return
        known = [handle for handle in sessions if handle in client.open]
        client.scorer.close(known)
        client.open.difference_update(known)


def _taken(costs: Costs) -> Mapping[str, int]:
    counters = dict(costs.counters)
    costs.counters.clear()
    return counters


@dataclass(frozen=True, slots=True)
class Connection:
    """Gives a stage the proxy to a pool; travels with the stage's config."""

    actors: tuple[Any, ...]

    def __call__(self) -> RemoteHost:
        """Waits for the first actor that has its model."""
        ready, _ = ray.wait([actor.facts.remote() for actor in self.actors], timeout=START_S)
        if not ready:
            raise RuntimeError(f"no language model of a pool of {len(self.actors)} was loaded within {START_S:.0f} s.")
        return RemoteHost(self.actors, *value_of(ready[0]))
