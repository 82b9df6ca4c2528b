"""One step of the CTC prefix beam, compiled: prune the labels of a frame, and of the candidates keep the best.

Prefixes are nodes of a trie, so equal prefixes are the same node and merge exactly, without hashing. All sums
are natural logarithms in float64. Letters: K beam rows (best first), C candidates, V labels of the recogniser,
L labels that survive a frame's pruning, M trie nodes, F fusion states, T frames.

Reference:
    Graves and Jaitly 2014, Towards end-to-end speech recognition with recurrent neural networks (prefix search);
    Hannun et al. 2014, arXiv:1408.2873, algorithm 1. Trie and pruning are ours.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from ctxasr_ray.search.ctc_state import (
    ENDS,
    SEPARATES,
    STARTS,
    STAY,
    Beam,
    Candidates,
    Floats,
    Int32s,
    Trie,
    compiled,
)

NEGLIGIBLE: Final = -37.0
"""exp(-37) is below half a float64 step beside 1: adding it changes nothing."""


@compiled
def log_add(a: float, b: float) -> float:
    """ln(exp(a) + exp(b))."""
    if a < b:
        a, b = b, a
    if b == -np.inf or b - a < NEGLIGIBLE:
        return a
    return float(a + np.log1p(np.exp(b - a)))


@compiled
def totals_of(beam: Beam) -> Floats:
    """(rows,) ln P of each prefix, whatever its last frame is."""
    totals = np.empty(beam.size[0])
    for row in range(beam.size[0]):
        totals[row] = log_add(beam.blank[row], beam.label[row])
    return totals


@compiled
def prune_labels(
    log_probs_V: Floats,
    blank_id: int,
    suppressed_V: npt.NDArray[np.bool_],
    min_log_prob: float,
    labels_L: Int32s,
    position_V: Int32s,
) -> int:
    """The labels worth writing in this frame, most probable first, ties by lower id.

    Args:
        log_probs_V: One frame.
        blank_id: Never among the labels.
        suppressed_V: Labels that no prefix may hold.
        min_log_prob: Labels below are dropped, except the frame's most probable one.
        labels_L: Receives at most L labels.
        position_V: Receives the place of each kept label in `labels_L`, -1 for the others.

    Returns:
        Number of labels kept; 0 where the blank is the only one above `min_log_prob`.
    """
    floor = min(min_log_prob, log_probs_V.max())
    count = 0
    for v in range(log_probs_V.shape[0]):
        position_V[v] = -1
        value = log_probs_V[v]
        if value < floor or v == blank_id or suppressed_V[v]:
            continue
        if count == labels_L.shape[0]:
            if value <= log_probs_V[labels_L[count - 1]]:
                continue
            count -= 1
        place = count
        while place > 0 and log_probs_V[labels_L[place - 1]] < value:
            labels_L[place] = labels_L[place - 1]
            place -= 1
        labels_L[place] = v
        count += 1
    for place in range(count):
        position_V[labels_L[place]] = place
    return count


@compiled
def _worse(score_C: Floats, a: int, b: int) -> bool:
    """Whether candidate a ranks after b; of equal scores the earlier candidate ranks first."""
    if score_C[a] != score_C[b]:
        return bool(score_C[a] < score_C[b])
    return a > b


@compiled
def _sift_down(heap_K: Int32s, size: int, score_C: Floats, start: int) -> None:
    """Restores a heap whose root ranks last."""
    place = start
    while True:
        child = 2 * place + 1
        if child >= size:
            return
        if child + 1 < size and _worse(score_C, heap_K[child + 1], heap_K[child]):
            child += 1
        if not _worse(score_C, heap_K[child], heap_K[place]):
            return
        heap_K[place], heap_K[child] = heap_K[child], heap_K[place]
        place = child


@compiled
def heapify(heap_K: Int32s, size: int, score_C: Floats) -> None:
    """Makes a heap of the first candidates in `heap_K`; its root ranks last."""
    for place in range(size // 2 - 1, -1, -1):
        _sift_down(heap_K, size, score_C, place)


@compiled
def push(heap_K: Int32s, size: int, score_C: Floats, c: int) -> int:
    """Takes a candidate in, where the best so far are fewer than K or one of them ranks after it; their new number."""
    if size < heap_K.shape[0]:
        heap_K[size] = c
        if size + 1 == heap_K.shape[0]:
            heapify(heap_K, size + 1, score_C)
        return size + 1
    if _worse(score_C, heap_K[0], c):
        heap_K[0] = c
        _sift_down(heap_K, size, score_C, 0)
    return size


@compiled
def best_of(candidates: Candidates, heap_K: Int32s) -> int:
    """The best candidates, the worst of them first, in `heap_K`; returns how many."""
    size = 0
    for c in range(candidates.size[0]):
        size = push(heap_K, size, candidates.score, c)
    return size


@compiled
def _sort(heap_K: Int32s, size: int, score_C: Floats, threshold: float) -> int:
    """Orders what `push` took in, best first; returns how many are left within the threshold of the best."""
    if size < heap_K.shape[0]:
        heapify(heap_K, size, score_C)
    for end in range(size - 1, 0, -1):
        heap_K[0], heap_K[end] = heap_K[end], heap_K[0]
        _sift_down(heap_K, end, score_C, 0)
    while size and (score_C[heap_K[size - 1]] < score_C[heap_K[0]] - threshold or score_C[heap_K[size - 1]] == -np.inf):
        size -= 1
    return size


@compiled
def child(trie: Trie, node: int, token: int, kind: int) -> int:
    """The node of a prefix with one more token, made if it is new; `kind` is what the token does to words."""
    found = trie.first_child[node]
    while found >= 0:
        if trie.token[found] == token:
            return int(found)
        found = trie.next_sibling[found]
    made = trie.size[0]
    trie.size[0] = made + 1
    trie.parent[made] = node
    trie.token[made] = token
    trie.first_child[made] = -1
    trie.next_sibling[made] = trie.first_child[node]
    trie.row[made] = -1
    trie.first_child[node] = made
    completes = kind == ENDS or (trie.is_open[node] and kind in (STARTS, SEPARATES))
    trie.words[made] = trie.words[node] + completes
    trie.boundary[made] = made if completes else trie.boundary[node]
    trie.is_open[made] = kind != ENDS and kind != SEPARATES
    return int(made)


@compiled
def select(
    beam: Beam,
    trie: Trie,
    candidates: Candidates,
    threshold: float,
    kinds_V: npt.NDArray[np.int8],
    heap_K: Int32s,
    size: int,
    out: Beam,
) -> None:
    """The next beam: the best candidates as rows, best first.

    Args:
        beam: The beam that was expanded.
        trie: Receives the prefixes that are new; a prefix seen before keeps its node.
        candidates: From `expand`, perhaps re-scored by fusions.
        threshold: Nats below the best at which a candidate is dropped.
        kinds_V: What each label does to words.
        heap_K: The best candidates, from `expand` or `best_of`; in the end which candidate each row was.
        size: How many these are.
        out: Receives the rows; not the same arrays as `beam`.
    """
    size = _sort(heap_K, size, candidates.score, threshold)
    for row in range(size):
        c = heap_K[row]
        parent = candidates.row[c]
        token = candidates.token[c]
        node = beam.node[parent]
        out.node[row] = node if token == STAY else child(trie, node, token, kinds_V[token])
        out.parent_row[row] = parent
        out.token[row] = token
        out.blank[row] = candidates.blank[c]
        out.label[row] = candidates.label[c]
        out.fusion[row] = candidates.fusion[c]
        for state in range(beam.states.shape[1]):
            out.states[row, state] = beam.states[parent, state]
    out.size[0] = size


@compiled
def only_blank(beam: Beam, blank_log_prob: float) -> None:
    """Moves every row over a frame that is taken to be blank; the order of the rows does not change."""
    for row in range(beam.size[0]):
        beam.blank[row] = log_add(beam.blank[row], beam.label[row]) + blank_log_prob
        beam.label[row] = -np.inf
        beam.parent_row[row] = row
        beam.token[row] = STAY
