"""The exact N best texts of a word lattice under a trigram language model.

The lattice is expanded so that a state knows its last two words; the exact best way from every state to the end is
found backwards; an A* search over word sequences then meets texts in order. A sequence is one item whatever its
times, pronunciations and silences, so every text comes once, with the best of its ways. Letters: n nodes,
e links between words, s states (a node and the word before it), k arcs (a state and a link that leaves it).

Reference:
    Mohri and Riley, An efficient algorithm for the n-best-strings problem, ICSLP 2002: determinisation on the fly
    with the shortest distances to the end as potentials. Ours: the expansion by two words, nothing is pruned.
"""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ctxasr_ray.search.lattice import Float64, Int64, Lattice, word_links

WordScore = Callable[[str, tuple[str, ...]], float]
"""Score of a word, in nats and already weighted, behind up to two words, the older one first; never nan."""


@dataclass(frozen=True, slots=True)
class LatticePath:
    """A text of the lattice, by its best way."""

    words: tuple[str, ...]
    score: float
    """Acoustic and language model scores together: what the list is sorted by."""
    acoustic: float
    """Sum of the link scores, in nats."""
    start_s: tuple[float, ...]
    end_s: tuple[float, ...]


@dataclass(slots=True)
class _Item:
    """A word sequence in the search: every state in which it can stand, with the best score that leads there."""

    states: Int64
    scores: Float64
    parent: "_Item | None" = None
    came_from: Int64 = field(default_factory=lambda: np.zeros(0, np.int64))
    """Per state: row among the parent's states."""
    links: Int64 = field(default_factory=lambda: np.zeros(0, np.int64))
    """Per state: the link that entered it."""
    arc_rows: Int64 = field(default_factory=lambda: np.zeros(0, np.int64))
    arc_links: Int64 = field(default_factory=lambda: np.zeros(0, np.int64))
    arc_totals: Float64 = field(default_factory=lambda: np.zeros(0))


class LatticeSearch:
    """The expanded lattice, its exact distances to the end, and the search over it.

    Args:
        lattice: Any acyclic lattice.
        word_score: The language model with its weights; asked once per distinct word and history.

    Attributes:
        counters: word_links, states, arcs, trigrams (language model questions), and items (sequences looked at).
    """

    def __init__(self, lattice: Lattice, word_score: WordScore) -> None:
        self._lattice = lattice
        order = lattice.topological_order()
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order))
        links = word_links(lattice, order)
        by_rank = np.argsort(rank[links.sources], kind="stable")
        self._source, self._target = links.sources[by_rank], links.targets[by_rank]
        self._acoustic, self._end_s = links.acoustics[by_rank], links.end_s[by_rank]
        self._first_link = np.searchsorted(rank[self._source], np.arange(len(order) + 1))[rank]
        self._num_links = np.bincount(self._source, minlength=len(order))
        vocabulary: dict[str, int] = {}
        self._word = np.array([-1 if w is None else vocabulary.setdefault(w, len(vocabulary)) for w in lattice.words])
        self._vocabulary = list(vocabulary)
        self.counters = {"word_links": len(self._source)}
        self._expand(rank)
        self._score_arcs(word_score)
        self._to_end = self._distances()

    def _expand(self, rank: Int64) -> None:
        """States in topological order: the start, then every (node, word before it) that a link makes."""
        num_words = len(self._vocabulary)
        key = rank[self._target] * num_words + self._word[self._source]
        states, self._link_state = np.unique(key, return_inverse=True)
        node_at = np.argsort(rank)
        self._state_node = np.concatenate([[self._lattice.start], node_at[states // num_words]])
        self._state_before = np.concatenate([[-1], states % num_words])
        self._link_state = self._link_state + 1
        counts = self._num_links[self._state_node]
        self._first_arc = np.concatenate([[0], np.cumsum(counts)])
        self._arc_link = _ranges(self._first_link[self._state_node], counts)
        self._arc_state = np.repeat(np.arange(len(self._state_node)), counts)
        self.counters |= {"states": len(self._state_node), "arcs": len(self._arc_link)}

    def _score_arcs(self, word_score: WordScore) -> None:
        """The language model's share of every arc, each distinct (word, history) asked once."""
        size = len(self._vocabulary) + 1
        before = self._state_before[self._arc_state] + 1
        last = self._word[self._state_node[self._arc_state]]
        word = self._word[self._target[self._arc_link]]
        keys, which = np.unique((before * size + last) * size + word, return_inverse=True)
        names = ["", *self._vocabulary]
        answers = np.array(
            [
                word_score(names[w + 1], (names[b], names[v + 1]) if b else (names[v + 1],))
                for b, v, w in zip(
                    (keys // size // size).tolist(), (keys // size % size).tolist(), (keys % size).tolist(), strict=True
                )
            ],
            np.float64,
        )
        self.counters["trigrams"] = len(keys)
        self._arc_score = self._acoustic[self._arc_link] + answers[which]

    def _distances(self) -> Float64:
        """(s,) best score from every state to the end; -inf where no way leads there."""
        to_end = np.full(len(self._state_node), -np.inf)
        to_end[self._state_node == self._lattice.end] = 0.0
        bounds = np.flatnonzero(np.diff(self._state_node, prepend=-1, append=-1))  # states of one node stand together
        for low, high in zip(bounds[-2::-1].tolist(), bounds[:0:-1].tolist(), strict=True):
            first, last = self._first_arc[low], self._first_arc[high]
            if first == last:
                continue
            onward = self._arc_score[first:last] + to_end[self._link_state[self._arc_link[first:last]]]
            to_end[low:high] = onward.reshape(high - low, -1).max(axis=1)
        return to_end

    def best(self, num_texts: int) -> list[LatticePath]:
        """The best distinct texts, best first; fewer where the lattice has fewer.

        Args:
            num_texts: At least 1.
        """
        root = _Item(np.zeros(1, np.int64), np.zeros(1))
        heap: list[tuple[float, int, _Item, int]] = []
        num_items = pushed = 0
        found: list[LatticePath] = []
        item = root
        end_word = int(self._word[self._lattice.end])
        while True:
            num_items += 1
            for label, bound in self._open(item):
                heapq.heappush(heap, (-bound, pushed, item, label))
                pushed += 1
            while heap and heap[0][3] == end_word and len(found) < num_texts:
                _, _, parent, label = heapq.heappop(heap)
                found.append(self._path(self._child(parent, label)))
            if len(found) == num_texts or not heap:
                break
            _, _, parent, label = heapq.heappop(heap)
            item = self._child(parent, label)
        self.counters["items"] = self.counters.get("items", 0) + num_items
        return sorted(found, key=lambda path: -path.score)

    def score(self, words: Sequence[str]) -> LatticePath | None:
        """The best way of a given text through the lattice; None where it has none."""
        ids = {name: i for i, name in enumerate(self._vocabulary)}
        item = _Item(np.zeros(1, np.int64), np.zeros(1))
        for word in (*words, self._lattice.words[self._lattice.end]):
            labels = dict(self._open(item))
            label = ids.get(word or "", -1)
            if label not in labels:
                return None
            item = self._child(item, label)
        return self._path(item)

    def _open(self, item: _Item) -> list[tuple[int, float]]:
        """The words that may follow a sequence, each with the exact best score of a whole text through it."""
        counts = self._first_arc[item.states + 1] - self._first_arc[item.states]
        arcs = _ranges(self._first_arc[item.states], counts)
        item.arc_rows = np.repeat(np.arange(len(item.states)), counts)
        item.arc_links = self._arc_link[arcs]
        item.arc_totals = item.scores[item.arc_rows] + self._arc_score[arcs]
        bounds = item.arc_totals + self._to_end[self._link_state[item.arc_links]]
        alive = np.flatnonzero(bounds > -np.inf)
        labels, which = np.unique(self._word[self._target[item.arc_links[alive]]], return_inverse=True)
        best = np.full(len(labels), -np.inf)
        np.maximum.at(best, which, bounds[alive])
        return list(zip(labels.tolist(), best.tolist(), strict=True))

    def _child(self, parent: _Item, label: int) -> _Item:
        """The sequence with one more word: the best way into each of its states."""
        mine = np.flatnonzero(self._word[self._target[parent.arc_links]] == label)
        entered = self._link_state[parent.arc_links[mine]]
        order = np.lexsort((-parent.arc_totals[mine], entered))
        first = order[np.flatnonzero(np.diff(entered[order], prepend=-1))]
        arcs = mine[first]
        return _Item(
            states=entered[first],
            scores=parent.arc_totals[arcs],
            parent=parent,
            came_from=parent.arc_rows[arcs],
            links=parent.arc_links[arcs],
        )

    def _path(self, item: _Item) -> LatticePath:
        row = int(np.argmax(item.scores))
        score = float(item.scores[row])
        links: list[int] = []
        at: _Item | None = item
        while at is not None and at.parent is not None:
            links.append(int(at.links[row]))
            row = int(at.came_from[row])
            at = at.parent
        links.reverse()
        inner = links[1:]  # a link that leaves a word: the first one leaves the start
        nodes = self._source[inner]
        return LatticePath(
            words=tuple(self._vocabulary[w] for w in self._word[nodes].tolist()),
            score=score,
            acoustic=float(self._acoustic[links].sum()),
            start_s=tuple(self._lattice.start_s[nodes].tolist()),
            end_s=tuple(self._end_s[inner].tolist()),
        )


def _ranges(starts: Int64, counts: Int64) -> Int64:
    """start, start + 1, ... count times, for each start."""
    offsets = np.cumsum(counts) - counts
    return np.arange(counts.sum()) - np.repeat(offsets - starts, counts)
