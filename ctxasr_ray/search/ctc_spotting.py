"""Which phrases of a long list the frames of a CTC recogniser make plausible, wherever they may stand.

A phrase may begin at any frame. Every frame costs what its label falls short of the frame's most probable one, in nats,
every token of the phrase earns `reward`; a phrase's evidence is the best that any stretch of frames gives it. All
phrases walk one trie side by side, and a prefix whose evidence falls below `-slack` is given up, so that of fifty
thousand phrases few are alive at a time. Letters: T frames, V labels, N nodes, S spellings.

Reference:
    Token passing over a graph of keywords, ranked against the best path: Andrusenko et al. 2024, CTC-WS,
    arXiv:2406.07096. The trie, the reward per token and the slack are ours.
"""

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from ctxasr_ray.keywords.automaton import Spellings
from ctxasr_ray.search.ctc_state import Floats, Int32s, compiled

_ROOT: Final = 0


class PhraseTrie(NamedTuple):
    """N nodes, a level after the other; the children of node n are first_child[n] to first_child[n + 1]."""

    first_child: Int32s
    """(N + 1,)"""
    token: Int32s
    """(N,) what leads to a node; -1 for the root."""
    end: Int32s
    """(S,) the node that a spelling ends at."""


def phrase_trie(ways: Spellings, num_labels: int) -> PhraseTrie:
    """Lays out token sequences as a trie, a level at a time.

    Args:
        ways: S token sequences, none of them empty.
        num_labels: V.
    """
    lengths = np.diff(ways.offsets)
    node_S = np.zeros(len(lengths), dtype=np.int64)
    parents, tokens, count = [np.zeros(1, np.int64)], [np.full(1, -1, np.int64)], 1
    for depth in range(int(lengths.max(initial=0))):
        alive = np.flatnonzero(lengths > depth)
        keys, place = np.unique(
            node_S[alive] * num_labels + ways.tokens[ways.offsets[alive] + depth], return_inverse=True
        )
        parents.append(keys // num_labels)
        tokens.append(keys % num_labels)
        node_S[alive] = count + place
        count += len(keys)
    children = np.bincount(np.concatenate(parents)[1:], minlength=count)
    return PhraseTrie(
        first_child=np.concatenate([[1], 1 + np.cumsum(children)]).astype(np.int32),
        token=np.concatenate(tokens).astype(np.int32),
        end=node_S.astype(np.int32),
    )


def plausibility(
    trie: PhraseTrie, log_probs_TV: npt.ArrayLike, blank_id: int, *, reward: float, slack: float
) -> npt.NDArray[np.float32]:
    """The evidence of every spelling in an utterance.

    Args:
        trie: Of the list, shared by all utterances.
        log_probs_TV: Natural logarithms, log-softmax at temperature 1.
        blank_id: Label of the blank.
        reward: Nats that a token earns, above 0.
        slack: Nats below 0 at which a beginning is given up; infinite looks at everything.

    Returns:
        (S,) nats, -inf where every beginning was given up.
    """
    log_probs = np.ascontiguousarray(log_probs_TV, dtype=np.float64)
    best = np.full(len(trie.token), -np.inf, dtype=np.float32)
    _spot(trie, log_probs, blank_id, reward, -slack, best)
    return best[trie.end]


@compiled
def _raise(
    node: int,
    score: float,
    scores_N: npt.NDArray[np.float32],
    other_N: npt.NDArray[np.float32],
    alive: Int32s,
    count: int,
) -> int:
    """Keeps the better of two ways to a state of a node; returns how many nodes are alive."""
    if scores_N[node] == -np.inf and other_N[node] == -np.inf:
        alive[count] = node
        count += 1
    scores_N[node] = max(scores_N[node], score)
    return count


@compiled
def _spot(
    trie: PhraseTrie,
    log_probs_TV: Floats,
    blank_id: int,
    reward: float,
    floor: float,
    best_N: npt.NDArray[np.float32],
) -> None:
    """Fills the best score of every node over all frames; a node is alive in its label, the blank behind, or both."""
    num_nodes = trie.token.shape[0]
    label_N, blank_N, new_label_N, new_blank_N = np.full((4, num_nodes), -np.inf, dtype=np.float32)
    alive, new_alive = np.empty((2, num_nodes), dtype=np.int32)
    count = 0
    cost_V = np.empty(log_probs_TV.shape[1])
    for t in range(log_probs_TV.shape[0]):
        cost_V[:] = log_probs_TV[t] - log_probs_TV[t].max()
        new_count = 0
        for place in range(-1, count):
            node = _ROOT if place < 0 else alive[place]
            if place < 0:
                onward, any_state, label = 0.0, 0.0, -np.inf
            else:
                label = label_N[node]
                any_state = max(label, blank_N[node])
                stay = label + cost_V[trie.token[node]]
                if stay >= floor:
                    new_count = _raise(node, stay, new_label_N, new_blank_N, new_alive, new_count)
                rest = any_state + cost_V[blank_id]
                if rest >= floor:
                    new_count = _raise(node, rest, new_blank_N, new_label_N, new_alive, new_count)
            for child in range(trie.first_child[node], trie.first_child[node + 1]):
                token = trie.token[child]
                onward = blank_N[node] if place >= 0 and token == trie.token[node] else any_state
                score = onward + cost_V[token] + reward
                if score >= floor:
                    new_count = _raise(child, score, new_label_N, new_blank_N, new_alive, new_count)
                    if score > best_N[child]:
                        best_N[child] = score
        for place in range(count):
            label_N[alive[place]], blank_N[alive[place]] = -np.inf, -np.inf
        label_N, new_label_N = new_label_N, label_N
        blank_N, new_blank_N = new_blank_N, blank_N
        alive, new_alive = new_alive, alive
        count = new_count
