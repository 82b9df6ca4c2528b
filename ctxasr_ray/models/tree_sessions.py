"""Token trees that grow with a search: `stage.TreeScorer` on a causal LM of this process.

Sessions opened together lie in the rows of one append-only cache. A node is scored once: its hidden state and its
normaliser are kept, so a later child costs its own pass through the body and no second row of the head.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import torch

from ctxasr_ray.models.arena_cache import ArenaCache
from ctxasr_ray.models.tree_forward import Block, Prefix, split_prefix
from ctxasr_ray.stage import Costs, TreeNodes
from ctxasr_ray.token_tree import Int32, TokenTree, chain

if TYPE_CHECKING:
    from ctxasr_ray.models.causal_lm import CausalLm

CACHE_LIMIT_BYTES: Final = 2 * 2**30
"""Keys and values of all sessions; beyond it the caches used longest ago are dropped and replayed when needed."""
_GATHER_FROM: Final = 64
"""Slots below which a cache is not worth gathering."""

Scores = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]


@dataclass(slots=True)
class _Session:
    """One tree: the nodes of its prefix first, then those of the client, whose node i is i + num_prefix here."""

    tree: TokenTree
    num_prefix: int
    embeddings: torch.Tensor | None
    group: "_Group"
    seen: npt.NDArray[np.bool_]  # its hidden state is known
    cached: npt.NDArray[np.bool_]  # its keys and values are in the cache
    dead: npt.NDArray[np.bool_]  # nothing will be asked below it
    normalisers: npt.NDArray[np.float64]  # log-sum-exp of its logits; nan where not yet needed
    hidden: torch.Tensor  # (n, D), zeros where not seen

    def grow(self, nodes: TreeNodes) -> Int32:
        own = np.asarray(nodes.parents, np.int32)
        parents = np.where(own >= 0, own + self.num_prefix, self.num_prefix - 1)
        if gone := [int(p) for p in parents if 0 <= p < len(self.dead) and self.dead[p]]:
            raise ValueError(f"tree session: node {gone[0] - self.num_prefix} was not retained; open a new session.")
        new = self.tree.append(nodes.tokens, parents)
        more = np.zeros(len(new), np.bool_)
        self.seen, self.cached, self.dead = (np.concatenate([a, more]) for a in (self.seen, self.cached, self.dead))
        self.normalisers = np.concatenate([self.normalisers, np.full(len(new), np.nan)])
        self.hidden = torch.cat([self.hidden, self.hidden.new_zeros((len(new), self.hidden.shape[1]))])
        return new


@dataclass(slots=True)
class _Group:
    """Sessions in the rows of one cache."""

    rows: list[_Session] = field(default_factory=list)
    slots: list[Int32] = field(default_factory=list)  # per row the node in each slot, -1 for none
    cache: ArenaCache | None = None
    last_used: int = 0

    def forget(self) -> None:
        self.cache, self.slots = None, [np.zeros(0, np.int32) for _ in self.rows]
        for session in self.rows:
            session.cached[:] = False


class TreeSessions:
    """A `stage.TreeScorer` without Ray; not for several threads.

    Args:
        lm: The loaded model; its `utterances_per_forward` is the number of sessions that share a cache.
        costs: Counts `nodes`, `llm_calls`, `head_rows`, `tokens_forwarded`, `tokens_replayed`, `cache_gathers`,
            `caches_dropped`, `peak_logits_bytes` and `peak_kv_bytes`.
        cache_limit_bytes: Keys and values of all sessions, padding included.
    """

    def __init__(self, lm: "CausalLm", costs: Costs | None = None, cache_limit_bytes: int = CACHE_LIMIT_BYTES) -> None:
        self.costs = costs or Costs()
        self._lm, self._limit = lm, cache_limit_bytes
        self._sessions: dict[int, _Session] = {}
        self._next = self._clock = 0

    def open(self, prefixes: Sequence[Prefix]) -> list[int]:
        """Opens a session per prefix; nothing is computed before the first `extend`.

        Args:
            prefixes: (P,) token ids or (P, D) embeddings each; may be empty, and then the first tokens have no
                distribution.

        Raises:
            ValueError: a prefix longer than the model takes.
        """
        for prefix in prefixes:
            if reason := self._lm.limit_reason(len(prefix)):
                raise ValueError(f"tree session: {reason}")
        handles = []
        for i, prefix in enumerate(prefixes):
            if i % self._lm.utterances_per_forward == 0:
                group = _Group()
            tokens, embeddings = split_prefix(prefix)
            tree, flags = chain(tokens), np.zeros(len(tokens), np.bool_)
            hidden = torch.zeros((len(tree), self._lm.head.width), dtype=self._lm.body.dtype, device=self._lm.device)
            unknown = np.full(len(tree), np.nan)
            session = _Session(tree, len(tree), embeddings, group, flags, flags.copy(), flags.copy(), unknown, hidden)
            group.rows.append(session)
            group.slots.append(np.zeros(0, np.int32))
            handles.append(self._next)
            self._sessions[self._next] = session
            self._next += 1
        return handles

    @torch.inference_mode()
    def extend(self, sessions: Sequence[int], nodes: Sequence[TreeNodes]) -> list[Scores]:
        """Scores new nodes of many sessions, one forward pass per group of sessions that share a cache.

        Returns:
            Per session two (n,) float64 arrays in nats: log P(token | path above it), nan where nothing stands
            above it, and log P(end of sequence | path down to the token), nan if the model has no such token.

        Raises:
            ValueError: a node below one that was not retained, or a path longer than the model takes.
        """
        asked = [(self._sessions[handle], new) for handle, new in zip(sessions, nodes, strict=True)]
        assert len({id(s) for s, _ in asked}) == len(asked), "a session stands twice in one extend"
        grown = [(session, session.grow(new)) for session, new in asked]
        for session, new in grown:
            longest = int(session.tree.depths[new].max(initial=-1)) + 1
            if reason := self._lm.limit_reason(longest):
                raise ValueError(f"tree session: {reason}; close it.")
        results: dict[int, Scores] = {}
        for group in {id(s.group): s.group for s, _ in grown}.values():
            members = [(s, new) for s, new in grown if s.group is group]
            self._forward(group)
            for (session, _), scores in zip(members, self._read(members), strict=True):
                results[id(session)] = scores
            self._keep_within_limit(group)
        self.costs.count("nodes", sum(len(new) for _, new in grown))
        return [results[id(session)] for session, _ in grown]

    @torch.inference_mode()
    def next_log_probs(
        self, sessions: Sequence[int], nodes: Sequence[Int32], tokens: Sequence[Int32]
    ) -> list[npt.NDArray[np.float64]]:
        """Log P of some tokens behind nodes that are there already.

        Args:
            sessions: Handles.
            nodes: Per session the (m,) nodes, counted as in `extend`; -1 is the prefix.
            tokens: Per session the (L,) tokens.

        Returns:
            Per session (m, L) float64 in nats; nan behind an empty prefix.
        """
        asked = [self._sessions[handle] for handle in sessions]
        for group in {id(s.group): s.group for s in asked}.values():
            self._forward(group)
        results = []
        for session, own, wanted in zip(asked, nodes, tokens, strict=True):
            places = np.asarray(own, np.int64) + session.num_prefix
            found = np.full((len(places), len(wanted)), np.nan)
            known = np.flatnonzero(places >= 0)
            hidden = session.hidden[torch.from_numpy(places[known]).to(session.hidden.device)]
            rows = np.repeat(np.arange(len(known)), len(wanted))
            logits, normalisers = self._lm.head.read(hidden, rows, np.tile(wanted, len(known)), self.costs)
            found[known] = logits.reshape(len(known), len(wanted)) - normalisers[:, None]
            results.append(found)
        return results

    def retain(self, sessions: Sequence[int], nodes: Sequence[Int32]) -> None:
        """Says below which nodes children may still come; all others but their ancestors are dead.

        Node numbers stay. Where more than half of a cache is dead or padding, the rest is gathered once.

        Args:
            sessions: Handles.
            nodes: Per session the (m,) nodes, counted as in `extend`; the prefix always stays.
        """
        for handle, kept in zip(sessions, nodes, strict=True):
            session = self._sessions[handle]
            alive = np.zeros(len(session.tree), np.bool_)
            alive[: session.num_prefix] = True
            for node in kept:
                at = int(node) + session.num_prefix
                while at >= 0 and not alive[at]:
                    alive[at] = True
                    at = int(session.tree.parents[at])
            session.dead |= ~alive
        for group in {id(g): g for g in (self._sessions[h].group for h in sessions)}.values():
            self._gather(group)

    def close(self, sessions: Sequence[int]) -> None:
        """Forgets sessions and, where enough of a cache is dead, its memory."""
        groups = {}
        for handle in sessions:
            session = self._sessions.pop(handle)
            session.dead[:] = True
            groups[id(session.group)] = session.group
        for group in groups.values():
            self._gather(group)

    def _forward(self, group: _Group) -> None:
        """Brings every live node of the group's rows that is not there yet into the cache."""
        lm, self._clock = self._lm, self._clock + 1
        group.last_used = self._clock
        here = [s.seen if lm.refusal else s.cached for s in group.rows]
        pending = [np.flatnonzero(~h & ~s.dead).astype(np.int32) for h, s in zip(here, group.rows, strict=True)]
        longest = max(map(len, pending))
        if not longest:
            return
        if group.cache is None and not lm.refusal:
            group.cache = ArenaCache(lm.body.config.num_hidden_layers)
        blocks = [Block(s.tree, p, k, s.embeddings) for s, p, k in zip(group.rows, pending, group.slots, strict=True)]
        if lm.refusal:
            blocks = [block for block in blocks if len(block.queries)]
        hidden = iter(lm.body(blocks, self.costs, group.cache))
        for row, (session, nodes) in enumerate(zip(group.rows, pending, strict=True)):
            if lm.refusal and not len(nodes):
                continue
            self.costs.count("tokens_replayed", int(session.seen[nodes].sum()))
            session.hidden[torch.from_numpy(nodes).to(session.hidden.device)] = next(hidden).to(session.hidden.device)
            session.seen[nodes] = True
            if group.cache is not None:
                session.cached[nodes] = True
                padding = np.full(longest - len(nodes), -1, np.int32)
                group.slots[row] = np.concatenate([group.slots[row], nodes, padding])

    def _read(self, members: list[tuple[_Session, Int32]]) -> list[Scores]:
        """Log-probs of new nodes and of ends below them, all rows of the head at once."""
        lm, fresh, fresh_hidden, reads = self._lm, [], [], []
        offset = 0
        for session, new in members:
            parents = session.tree.parents[new]
            needed = np.unique(np.concatenate([new, parents[parents >= 0]]))
            needed = needed[np.isnan(session.normalisers[needed])]
            fresh.append(needed)
            fresh_hidden.append(session.hidden[torch.from_numpy(needed).to(session.hidden.device)])
            inside = np.isin(parents, needed)
            rows, tokens = np.searchsorted(needed, parents[inside]), session.tree.tokens[new[inside]]
            if lm.eos_token_id is not None:
                rows = np.concatenate([rows, np.searchsorted(needed, new)])
                tokens = np.concatenate([tokens, np.full(len(new), lm.eos_token_id)])
            reads.append((inside, rows + offset, tokens.astype(np.int64)))
            offset += len(needed)
        all_rows, all_tokens = (np.concatenate([read[i] for read in reads]).astype(np.int64) for i in (1, 2))
        picks, normalisers = lm.head.read(torch.cat(fresh_hidden), all_rows, all_tokens, self.costs)
        results, at = [], np.cumsum([0, *(len(read[1]) for read in reads)])
        bounds = np.cumsum([0, *map(len, fresh)])
        for i, ((session, new), (inside, _, _)) in enumerate(zip(members, reads, strict=True)):
            session.normalisers[fresh[i]] = normalisers[bounds[i] : bounds[i + 1]]
            own = picks[at[i] : at[i + 1]]
            results.append(self._scores(session, new, inside, own))
        return results

    def _scores(
        self, session: _Session, new: Int32, inside: npt.NDArray[np.bool_], picks: npt.NDArray[np.float64]
    ) -> Scores:
        parents, num_inside = session.tree.parents[new], int(inside.sum())
        log_probs, eos_log_probs = np.full(len(new), np.nan), np.full(len(new), np.nan)
        log_probs[inside] = picks[:num_inside]
        old = ~inside & (parents >= 0)
        if old.any():
            hidden = session.hidden[torch.from_numpy(parents[old]).to(session.hidden.device)]
            log_probs[old] = self._lm.head.pick(hidden, session.tree.tokens[new[old]].astype(np.int64), self.costs)
        known = parents >= 0
        log_probs[known] -= session.normalisers[parents[known]]
        if self._lm.eos_token_id is not None:
            eos_log_probs[:] = picks[num_inside:] - session.normalisers[new]
        return log_probs, eos_log_probs

    def _gather(self, group: _Group) -> None:
        """Moves live slots together where more than half of the cache is dead or padding."""
        if group.cache is None:
            return
        alive = [(k >= 0) & ~s.dead[k] for s, k in zip(group.rows, group.slots, strict=True)]
        rows = [i for i, s in enumerate(group.rows) if not s.dead.all() or not len(s.tree)]
        used = len(group.slots[0]) * len(group.rows)
        if not rows or not any(a.any() for a in alive):
            group.cache = None
            return
        if used < _GATHER_FROM or 2 * sum(int(a.sum()) for a in alive) >= used:
            return
        kept = [np.flatnonzero(alive[i]) for i in rows]
        longest = max(map(len, kept))
        slots_BK = np.zeros((len(rows), longest), np.int64)
        for row, (i, slots) in enumerate(zip(rows, kept, strict=True)):
            slots_BK[row, : len(slots)] = slots
            padding = np.full(longest - len(slots), -1, np.int32)
            group.rows[i].cached &= ~group.rows[i].dead
            group.slots[i] = np.concatenate([group.slots[i][slots], padding])
        group.cache.gather(torch.tensor(rows), torch.from_numpy(slots_BK))
        group.rows, group.slots = [group.rows[i] for i in rows], [group.slots[i] for i in rows]
        self.costs.count("cache_gathers")

    def _keep_within_limit(self, current: _Group) -> None:
        groups: dict[int, Any] = {id(s.group): s.group for s in self._sessions.values() if s.group.cache is not None}
        sizes = {key: group.cache.num_bytes() for key, group in groups.items()}
        self.costs.peak("kv_bytes", sum(sizes.values()))
        for key, group in sorted(groups.items(), key=lambda item: item[1].last_used):
            if sum(sizes.values()) <= self._limit or group is current:
                return
            group.forget()
            del sizes[key]
            self.costs.count("caches_dropped")
