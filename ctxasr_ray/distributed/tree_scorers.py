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
from ctxasr_ray.stage import AsksLm, Costs, HostConfig, Resources, Step, TreeNodes, TreeScorer

Int32 = npt.NDArray[np.int32]
Scores = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]

MAX_DEATHS: Final = 5
"""LM actors that may die under one call, one after another, before the call fails."""
START_S: Final = 1800.0
"""How long a proxy waits for some actor of the pool to have its model loaded."""
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
        if not isinstance(config, AsksLm) or config.lm_pool is None:
            return step
        actors = next(actors for lm, pool, actors in pools if (lm, pool) == (config.asked_lm(), config.lm_pool))
        return dataclasses.replace(step, config=dataclasses.replace(config, lm_connect=Connection(actors)))

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

    def facts(self) -> tuple[int | None, int | None]:
        """End of sequence and the longest sequence."""
        return self._host.eos_token_id, self._host.max_positions

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
        client = self._clients.get(name)
        if client is None or life != self._life or not client.open.issuperset(sessions):
            return None
        client.last_used = time.monotonic()
        if kept:
            client.scorer.retain(list(kept), list(kept.values()))
        scores = client.scorer.extend(sessions, nodes)
        return scores, _taken(client.costs)

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

    def __call__(self) -> "RemoteHost":
        """Waits for the first actor that has its model."""
        ready, _ = ray.wait([actor.facts.remote() for actor in self.actors], timeout=START_S)
        if not ready:
            raise RuntimeError(f"no language model of a pool of {len(self.actors)} was loaded within {START_S:.0f} s.")
        return RemoteHost(self.actors, *_got(ready[0]))


@dataclass(frozen=True, slots=True)
class RemoteHost:
    """A model in a pool of its own; a `stage.TreeScorerHost`."""

    actors: tuple[Any, ...]
    eos_token_id: int | None
    max_positions: int | None

    def sessions(self, costs: Costs) -> TreeScorer:
        """Token trees of one search, on whichever actor has the fewest."""
        return RemoteSessions(self.actors, costs)


@dataclass(slots=True)
class _Session:
    """What the client remembers, so that a dead actor's session can be opened again."""

    prefix: Int32
    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    alive: list[bool] = field(default_factory=list)
    places: list[int] = field(default_factory=list)  # the actor's number of each node, -1 for one it never had
    kept: Int32 | None = None  # the actor has not been told yet
    actor: int = -1
    life: str = ""
    handle: int | None = None  # None: open nowhere

    def grow(self, nodes: TreeNodes) -> None:
        gone = [node for node in nodes.parents.tolist() if 0 <= node < len(self.alive) and not self.alive[node]]
        if gone:
            raise ValueError(f"tree session: node {gone[0]} was not retained; open a new session.")
        self.tokens += nodes.tokens.tolist()
        self.parents += nodes.parents.tolist()
        self.alive += [True] * len(nodes.tokens)

    def retain(self, nodes: Int32) -> None:
        alive = [False] * len(self.tokens)
        for node in nodes.tolist():
            while node >= 0 and not alive[node]:
                alive[node] = True
                node = self.parents[node]
        self.alive = [a and b for a, b in zip(self.alive, alive, strict=True)]
        self.kept = nodes

    def placed(self, first: int, end: int) -> TreeNodes:
        """Live nodes of a range in the actor's numbers, which they get now."""
        num_placed = sum(place >= 0 for place in self.places)
        tokens, parents = [], []
        for node in range(first, end):
            above = self.parents[node]
            if not self.alive[node]:
                self.places.append(-1)
                continue
            self.places.append(num_placed + len(tokens))
            tokens.append(self.tokens[node])
            parents.append(self.places[above] if above >= 0 else -1)
        return TreeNodes(np.array(tokens, np.int32), np.array(parents, np.int32))


class RemoteSessions:
    """A `stage.TreeScorer` whose model is in other processes; not for several threads.

    Sessions that are opened together stay together, because they share forward passes.

    Args:
        actors: The pool.
        costs: Counts what the scorer there counts, and `llm_actor_deaths`, `sessions_replayed`, `tokens_replayed`.
    """

    def __init__(self, actors: Sequence[Any], costs: Costs) -> None:
        self.costs = costs
        self._actors, self._name = actors, uuid.uuid4().hex
        self._sessions: dict[int, _Session] = {}
        self._next = 0

    def open(self, prefixes: Sequence[Int32]) -> list[int]:
        """Opens a session per prefix, all on one actor.

        Raises:
            ValueError: a prefix longer than the model takes.
        """
        handles = list(range(self._next, self._next + len(prefixes)))
        self._next += len(prefixes)
        new = [_Session(np.asarray(prefix, np.int32)) for prefix in prefixes]
        self._until_done(new, lambda: self._connect(new, {id(session): 0 for session in new}) or True)
        self._sessions.update(zip(handles, new, strict=True))
        return handles

    def extend(self, sessions: Sequence[int], nodes: Sequence[TreeNodes]) -> list[Scores]:
        """Scores new nodes; as `TreeScorer.extend`.

        Raises:
            ValueError: as the scorer there.
            RuntimeError: one actor after another died.
        """
        asked = [self._sessions[handle] for handle in sessions]
        firsts = {id(session): len(session.tokens) for session in asked}
        for session, new in zip(asked, nodes, strict=True):
            session.grow(new)
        results: dict[int, Scores] = {}

        def attempt() -> bool:
            self._connect([session for session in asked if session.handle is None], firsts)
            self._ask([session for session in asked if id(session) not in results], firsts, results)
            return len(results) == len(asked)

        self._until_done(asked, attempt)
        return [results[id(session)] for session in asked]

    def retain(self, sessions: Sequence[int], nodes: Sequence[Int32]) -> None:
        """Says below which nodes children may still come; the actor hears of it with the next `extend`."""
        for handle, kept in zip(sessions, nodes, strict=True):
            self._sessions[handle].retain(np.asarray(kept, np.int32))

    def close(self, sessions: Sequence[int]) -> None:
        """Forgets sessions; nobody waits for the actor."""
        for (actor, life), mine in _by_place([self._sessions.pop(handle) for handle in sessions]).items():
            self._actors[actor].close.remote(self._name, life, [session.handle for session in mine])

    def _until_done(self, sessions: Sequence[_Session], attempt: Callable[[], bool]) -> None:
        for deaths in range(MAX_DEATHS + 1):
            try:
                if attempt():
                    return
            except ray.exceptions.RayActorError:
                self.costs.count("llm_actor_deaths")
                time.sleep(0.1 * 2**deaths)  # Ray needs a moment to see what has died
        raise RuntimeError(
            f"{MAX_DEATHS + 1} language model actors died under one call with {len(sessions)} utterances (memory, or a "
            "crash in a library); ask for more memory in the LM's `pool`, or put fewer utterances in lock-step."
        )

    def _connect(self, sessions: Sequence[_Session], firsts: Mapping[int, int]) -> None:
        """Opens sessions that are open nowhere, with the nodes that they had before this call."""
        if not sessions:
            return
        actor, old = self._least_loaded(), []
        for session in sessions:
            session.places, session.kept = [], None
            old.append(session.placed(0, firsts[id(session)]))
        prefixes = [session.prefix for session in sessions]
        life, handles, counters = _got(self._actors[actor].open.remote(self._name, prefixes, old))
        self._count(counters)
        for session, handle, nodes in zip(sessions, handles, old, strict=True):
            session.actor, session.life, session.handle = actor, life, handle
            self.costs.count("sessions_replayed", firsts[id(session)] > 0)
            self.costs.count("tokens_replayed", len(nodes.tokens))

    def _ask(self, sessions: Sequence[_Session], firsts: Mapping[int, int], results: dict[int, Scores]) -> None:
        """One call per actor, at the same time; sessions of an actor that died are then open nowhere."""
        calls = []
        for (actor, life), mine in _by_place(sessions).items():
            kept, new = {}, []
            for session in mine:
                assert session.handle is not None
                if session.kept is not None:
                    places = [session.places[node] for node in session.kept.tolist()]
                    kept[session.handle], session.kept = np.array(places, np.int32), None
                new.append(session.placed(firsts[id(session)], len(session.tokens)))
            handles = [session.handle for session in mine]
            calls.append((mine, self._actors[actor].extend.remote(self._name, life, handles, new, kept)))
        died = None
        for mine, call in calls:
            try:
                answer = _got(call)
            except ray.exceptions.RayActorError as error:
                answer, died = None, error
            if answer is None:
                for session in mine:
                    session.handle = None
                continue
            scores, counters = answer
            self._count(counters)
            results.update({id(session): each for session, each in zip(mine, scores, strict=True)})
        if died is not None:
            raise died

    def _least_loaded(self) -> int:
        """The living actor with the fewest sessions."""
        until, pause = time.monotonic() + START_S, 1.0
        while time.monotonic() < until:
            loads = {actor.num_sessions.remote(): place for place, actor in enumerate(self._actors)}
            ready, _ = ray.wait(list(loads), num_returns=len(loads), timeout=pause)
            found = []
            for call in ready:
                with contextlib.suppress(ray.exceptions.RayActorError):  # it is being started anew
                    found.append((ray.get(call), loads[call]))
            if found:
                return min(found)[1]
            time.sleep(0.2)
            pause = min(60.0, 2 * pause)
        raise RuntimeError(f"no language model of a pool of {len(self._actors)} answered within {START_S:.0f} s.")

    def _count(self, counters: Mapping[str, int]) -> None:
        for name, amount in counters.items():
            (self.costs.peak if name.endswith("_bytes") else self.costs.count)(name, amount)


def _by_place(sessions: Sequence[_Session]) -> dict[tuple[int, str], list[_Session]]:
    groups: dict[tuple[int, str], list[_Session]] = {}
    for session in sessions:
        if session.handle is not None:
            groups.setdefault((session.actor, session.life), []).append(session)
    return groups


def _got(call: Any) -> Any:
    """The value of a call, or the fault as it was raised there."""
    try:
        return ray.get(call)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, Exception):
            raise error.cause from error
        raise
