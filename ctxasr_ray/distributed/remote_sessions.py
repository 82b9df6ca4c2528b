"""The stage's side of an LM pool: token trees whose model is in other processes, replayed when one of them dies."""

import contextlib
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ctxasr_ray.distributed.cluster import ray
from ctxasr_ray.stage import Costs, TreeNodes, TreeScorer

Int32 = npt.NDArray[np.int32]
Scores = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]

MAX_DEATHS: Final = 5
"""LM actors that may die under one call, one after another, before the call fails."""
START_S: Final = 1800.0
"""How long a stage waits for some actor of the pool to have its model loaded."""


@dataclass(frozen=True, slots=True)
class RemoteHost:
    """A model in a pool of its own; a `stage.TreeScorerHost`."""

    actors: tuple[Any, ...]
    eos_token_id: int | None
    max_positions: int | None
    position_bytes: int

    def sessions(self, costs: Costs) -> TreeScorer:
        """Token trees of one search, on whichever actor has the fewest."""
        return RemoteSessions(self.actors, costs)


@dataclass(slots=True)
class Session:
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
        """Adds nodes that nobody has been told of.

        Raises:
            ValueError: below a node that was not retained.
        """
        gone = [node for node in nodes.parents.tolist() if 0 <= node < len(self.alive) and not self.alive[node]]
        if gone:
            raise ValueError(f"tree session: node {gone[0]} was not retained; open a new session.")
        self.tokens += nodes.tokens.tolist()
        self.parents += nodes.parents.tolist()
        self.alive += [True] * len(nodes.tokens)

    def retain(self, nodes: Int32) -> None:
        """Marks all nodes dead but these and those above them; the actor is told with the next nodes."""
        alive = [False] * len(self.tokens)
        for node in nodes.tolist():
            while node >= 0 and not alive[node]:
                alive[node] = True
                node = self.parents[node]
        self.alive = [a and b for a, b in zip(self.alive, alive, strict=True)]
        self.kept = nodes

    def placed_at(self, nodes: Int32) -> Int32:
        """The actor's numbers of nodes; -1 is the prefix."""
        return np.array([self.places[node] if node >= 0 else -1 for node in nodes.tolist()], np.int32)

    def placed(self, first: int, end: int) -> TreeNodes:
        """Live nodes of a range in the actor's numbers, which they get now."""
        num_placed = sum(place >= 0 for place in self.places)
        tokens: list[int] = []
        parents: list[int] = []
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
        self._sessions: dict[int, Session] = {}
        self._next = 0

    def open(self, prefixes: Sequence[Int32]) -> list[int]:
        """Opens a session per prefix, all on one actor.

        Raises:
            ValueError: a prefix longer than the model takes.
        """
        handles = list(range(self._next, self._next + len(prefixes)))
        self._next += len(prefixes)
        new = [Session(np.asarray(prefix, np.int32)) for prefix in prefixes]

        def attempt() -> bool:
            self._connect(new, {id(session): 0 for session in new})
            return True

        self._until_done(new, attempt)
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

        def call(actor: Any, life: str, mine: list[Session]) -> Any:
            kept, new = {}, []
            for session in mine:
                if session.kept is not None:
                    kept[session.handle], session.kept = session.placed_at(session.kept), None
                new.append(session.placed(firsts[id(session)], len(session.tokens)))
            return actor.extend.remote(self._name, life, [session.handle for session in mine], new, kept)

        found: list[Scores] = self._answers(asked, firsts, call)
        return found

    def next_log_probs(
        self, sessions: Sequence[int], nodes: Sequence[Int32], tokens: Sequence[Int32]
    ) -> list[npt.NDArray[np.float64]]:
        """Log-probs of some tokens behind old nodes; as `NextScorer.next_log_probs`.

        Raises:
            ValueError, RuntimeError: as `extend`.
        """
        asked = [self._sessions[handle] for handle in sessions]
        wanted = {id(session): own for session, own in zip(asked, zip(nodes, tokens, strict=True), strict=True)}

        def call(actor: Any, life: str, mine: list[Session]) -> Any:
            at = [session.placed_at(wanted[id(session)][0]) for session in mine]
            own = [wanted[id(session)][1] for session in mine]
            return actor.next_log_probs.remote(self._name, life, [session.handle for session in mine], at, own)

        found: list[npt.NDArray[np.float64]] = self._answers(
            asked, {id(session): len(session.tokens) for session in asked}, call
        )
        return found

    def _answers(
        self,
        asked: Sequence[Session],
        firsts: Mapping[int, int],
        call: Callable[[Any, str, list[Session]], Any],
    ) -> list[Any]:
        """What actors say of these sessions, which are brought to their first nodes where they are open nowhere."""
        results: dict[int, Any] = {}

        def attempt() -> bool:
            self._connect([session for session in asked if session.handle is None], firsts)
            self._ask([session for session in asked if id(session) not in results], call, results)
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

    def _until_done(self, sessions: Sequence[Session], attempt: Callable[[], bool]) -> None:
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

    def _connect(self, sessions: Sequence[Session], firsts: Mapping[int, int]) -> None:
        """Opens sessions that are open nowhere, with the nodes that they had before this call."""
        if not sessions:
            return
        actor, old = self._least_loaded(), []
        for session in sessions:
            session.places, session.kept = [], None
            old.append(session.placed(0, firsts[id(session)]))
        prefixes = [session.prefix for session in sessions]
        life, handles, counters = value_of(self._actors[actor].open.remote(self._name, prefixes, old))
        self.costs.add(counters)
        for session, handle, nodes in zip(sessions, handles, old, strict=True):
            session.actor, session.life, session.handle = actor, life, handle
            self.costs.count("sessions_replayed", firsts[id(session)] > 0)
            self.costs.count("tokens_replayed", len(nodes.tokens))

    def _ask(
        self, sessions: Sequence[Session], call: Callable[[Any, str, list[Session]], Any], results: dict[int, Any]
    ) -> None:
        """One call per actor, at the same time; sessions of an actor that died are then open nowhere."""
        calls = [(mine, call(self._actors[actor], life, mine)) for (actor, life), mine in _by_place(sessions).items()]
        died = None
        for mine, reply in calls:
            try:
                answer = value_of(reply)
            except ray.exceptions.RayActorError as error:
                answer, died = None, error
            if answer is None:
                for session in mine:
                    session.handle = None
                continue
            values, counters = answer
            self.costs.add(counters)
            results.update({id(session): each for session, each in zip(mine, values, strict=True)})
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


def _by_place(sessions: Sequence[Session]) -> dict[tuple[int, str], list[Session]]:
    groups: dict[tuple[int, str], list[Session]] = {}
    for session in sessions:
        if session.handle is not None:
            groups.setdefault((session.actor, session.life), []).append(session)
    return groups


def value_of(call: Any) -> Any:
    """The value of a call, or the fault as it was raised there."""
    try:
        return ray.get(call)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, Exception):
            raise error.cause from error
        raise
