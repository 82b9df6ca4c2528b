"""Which phrases of a long list the frames of a CTC recogniser make plausible, wherever they may stand.

A phrase may begin at any frame. Every frame costs what its label falls short of the frame's most probable one, in nats,
every token of the phrase earns `reward`; a phrase's evidence is the best that any stretch of frames gives it. All
phrases walk one trie side by side, and a prefix whose evidence falls below `-slack` is given up, so that of fifty
thousand phrases few are alive at a time. Where frames are vague and many stay alive, about the best `beam_size` go on,
so that what an utterance costs hardly grows with the list. Beginnings of several lengths compare by their evidence less
a part of the reward for every token so far, so that long ones do not push out those that have just begun. Nodes have
greater numbers than their parents and siblings lie together: the living are kept in ascending order, and a frame merges
those that stay with those that are entered. Letters: T frames, V labels, N nodes, D levels, S spellings.

Reference:
    Token passing over a graph of keywords, ranked against the best path: Andrusenko et al. 2024, CTC-WS,
    arXiv:2406.07096. The trie, the reward per token, the slack and the beam are ours.
"""

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from ctxasr_ray.keywords.automaton import Spellings
from ctxasr_ray.search.ctc_state import Int32s, compiled

Float32s = npt.NDArray[np.float32]

_ROOT: Final = 0
_BEYOND: Final = 2**31 - 1
_QUARTERS: Final = 512
"""Of a nat, in which states are counted; those farther below the best count as the last."""
_DISCOUNT: Final = 1 / 3
"""Of the reward, by which a beginning must be better than one that is a token shorter. On 60 utterances of the
synthetic dev part, a quarter to 0.4 of it find the same true phrases of 50,000; 0 and two thirds lose some."""


class PhraseTrie(NamedTuple):
    """N nodes, a level after the other; the children of node n are first_child[n] to first_child[n + 1]."""

    first_child: Int32s
    """(N + 1,)"""
    token: Int32s
    """(N,) what leads to a node; -1 for the root."""
    end: Int32s
    """(S,) the node that a spelling ends at."""
    is_end: npt.NDArray[np.bool_]
    """(N,)"""
    first_of_level: Int32s
    """(D + 1,) the first node of each level, the root's before all others, and N."""


def phrase_trie(ways: Spellings, num_labels: int) -> PhraseTrie:
    """Lays out token sequences as a trie, a level at a time.

    Args:
        ways: S token sequences, none of them empty.
        num_labels: V.
    """
    lengths = np.diff(ways.offsets)
    node_S = np.zeros(len(lengths), dtype=np.int64)
    parents, tokens, levels, count = [np.zeros(1, np.int64)], [np.full(1, -1, np.int64)], [0, 1], 1
    for depth in range(int(lengths.max(initial=0))):
        alive = np.flatnonzero(lengths > depth)
        keys, place = np.unique(
            node_S[alive] * num_labels + ways.tokens[ways.offsets[alive] + depth], return_inverse=True
        )
        parents.append(keys // num_labels)
        tokens.append(keys % num_labels)
        node_S[alive] = count + place
        count += len(keys)
        levels.append(count)
    children = np.bincount(np.concatenate(parents)[1:], minlength=count)
    is_end = np.zeros(count, dtype=np.bool_)
    is_end[node_S] = True
    return PhraseTrie(
        first_child=np.concatenate([[1], 1 + np.cumsum(children)]).astype(np.int32),
        token=np.concatenate(tokens).astype(np.int32),
        end=node_S.astype(np.int32),
        is_end=is_end,
        first_of_level=np.asarray(levels, dtype=np.int32),
    )


def plausibility(
    trie: PhraseTrie, log_probs_TV: npt.ArrayLike, blank_id: int, *, reward: float, slack: float, beam_size: int
) -> Float32s:
    """The evidence of every spelling in an utterance.

    Args:
        trie: Of the list, shared by all utterances.
        log_probs_TV: Natural logarithms, log-softmax at temperature 1.
        blank_id: Label of the blank.
        reward: Nats that a token earns, above 0.
        slack: Nats below 0 at which a beginning is given up; infinite looks at everything.
        beam_size: Beginnings that go on after a frame, about: those above the last quarter of a nat that fits.

    Returns:
        (S,) nats, -inf where every beginning was given up.
    """
    log_probs = np.ascontiguousarray(log_probs_TV, dtype=np.float32)
    best = np.full(len(trie.token), -np.inf, dtype=np.float32)
    _spot(trie, log_probs, blank_id, np.float32(reward), np.float32(-slack), beam_size, best)
    return best[trie.end]


class _Alive(NamedTuple):
    """Nodes that are alive, in ascending order, the root first: in their label, the blank behind, or both."""

    node: Int32s
    label: Float32s
    blank: Float32s


@compiled
def _spot(
    trie: PhraseTrie,
    log_probs_TV: Float32s,
    blank_id: int,
    reward: np.float32,
    floor: np.float32,
    beam_size: int,
    best_N: Float32s,
) -> None:
    """Fills the best score of every node that a spelling ends at, over all frames."""
    num_nodes, num_labels = trie.token.shape[0], log_probs_TV.shape[1]
    node, new_node, entered_node = np.empty((3, num_nodes + 1), dtype=np.int32)
    label, blank, new_label, new_blank, entered = np.empty((5, num_nodes + 1), dtype=np.float32)
    alive, new_alive = _Alive(node, label, blank), _Alive(new_node, new_label, new_blank)
    alive.node[0], alive.label[0], alive.blank[0] = _ROOT, -np.inf, 0.0
    count = 1
    cost_V = np.empty(num_labels, dtype=np.float32)
    for t in range(log_probs_TV.shape[0]):
        cost_V[:] = log_probs_TV[t] - log_probs_TV[t].max()
        num_entered = _enter(trie, alive, count, cost_V, blank_id, reward, floor, entered_node, entered, best_N)
        count = _merge(trie, alive, count, cost_V, blank_id, floor, entered_node, entered, num_entered, new_alive)
        alive, new_alive = new_alive, alive
        if count > beam_size:
            count = _prune(trie, alive, count, beam_size, _DISCOUNT * float(reward))


@compiled
def _enter(
    trie: PhraseTrie,
    alive: _Alive,
    count: int,
    cost_V: Float32s,
    blank_id: int,
    reward: np.float32,
    floor: np.float32,
    entered_node: Int32s,
    entered: Float32s,
    best_N: Float32s,
) -> int:
    """The children that the living step on to; returns how many."""
    likely = -np.inf
    for v in range(cost_V.shape[0]):
        if v != blank_id and cost_V[v] > likely:
            likely = cost_V[v]
    num = 0
    for place in range(count):
        node, blank = alive.node[place], alive.blank[place]
        any_state = max(alive.label[place], blank)
        if any_state + likely + reward < floor:
            continue
        for child in range(trie.first_child[node], trie.first_child[node + 1]):
            token = trie.token[child]
            onward = blank if token == trie.token[node] else any_state
            score = onward + cost_V[token] + reward
            entered_node[num], entered[num] = child, score
            num += score >= floor  # without a branch: which children are plausible is hard to foresee
    for place in range(num):
        best_N[entered_node[place]] = max(best_N[entered_node[place]], entered[place])
    return num


@compiled
def _merge(
    trie: PhraseTrie,
    alive: _Alive,
    count: int,
    cost_V: Float32s,
    blank_id: int,
    floor: np.float32,
    entered_node: Int32s,
    entered: Float32s,
    num_entered: int,
    out: _Alive,
) -> int:
    """Those that stay and those that are entered, in ascending order; returns how many.

    Both lists end in `_BEYOND`, and nothing branches on which is next: that is hard to foresee.
    """
    out.node[0], out.label[0], out.blank[0] = _ROOT, -np.inf, 0.0
    alive.node[count] = entered_node[num_entered] = _BEYOND
    lost = np.float32(-np.inf)
    num, place, at = 1, 1, 0
    while place < count or at < num_entered:
        node = min(alive.node[place], entered_node[at])
        stays, enters = alive.node[place] == node, entered_node[at] == node
        stay = alive.label[place] + cost_V[trie.token[node]]
        rest = max(alive.label[place], alive.blank[place]) + cost_V[blank_id]
        label = max(stay if stays and stay >= floor else lost, entered[at] if enters else lost)
        blank = rest if stays and rest >= floor else lost
        out.node[num], out.label[num], out.blank[num] = node, label, blank
        num += int(max(label, blank) > lost)
        place += int(stays)
        at += int(enters)
    return num


@compiled
def _prune(trie: PhraseTrie, alive: _Alive, count: int, beam_size: int, discount: float) -> int:
    """Keeps the root and the best others, counted in quarters of a nat below the best; returns how many are left."""
    standing = np.empty(count, dtype=np.float32)
    top = np.float32(-np.inf)
    depth = 0
    for place in range(1, count):
        while alive.node[place] >= trie.first_of_level[depth + 1]:
            depth += 1
        standing[place] = max(alive.label[place], alive.blank[place]) - discount * depth
        top = max(top, standing[place])
    histogram = np.zeros(_QUARTERS, dtype=np.int64)
    for place in range(1, count):
        histogram[int(min(4 * (top - standing[place]), _QUARTERS - 1))] += 1
    total, quarters = 0, 0
    while quarters < _QUARTERS and total + histogram[quarters] <= beam_size:
        total += histogram[quarters]
        quarters += 1
    kept = 1
    for place in range(1, count):
        if int(min(4 * (top - standing[place]), _QUARTERS - 1)) < quarters:
            alive.node[kept] = alive.node[place]
            alive.label[kept], alive.blank[kept] = alive.label[place], alive.blank[place]
            kept += 1
    return kept
