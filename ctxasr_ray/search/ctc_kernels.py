"""One step of the CTC prefix beam, compiled: expand every row by one frame, keep the best.

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
def _expand_stays(
    beam: Beam,
    trie: Trie,
    log_probs_V: Floats,
    blank_id: int,
    position_V: Int32s,
    taken_KL: npt.NDArray[np.bool_],
    candidates: Candidates,
) -> float:
    """Rows that write nothing new, plus the mass that their parents in the beam hand down; the best score."""
    best = -np.inf
    for row in range(beam.size[0]):
        node = beam.node[row]
        label = -np.inf
        if node > 0:
            token = trie.token[node]
            label = beam.label[row] + log_probs_V[token]
            parent = trie.row[trie.parent[node]]
            if parent >= 0:
                mass = beam.blank[parent]
                if trie.token[beam.node[parent]] != token:  # else only a blank separates the two
                    mass = log_add(mass, beam.label[parent])
                label = log_add(label, mass + log_probs_V[token])
                if position_V[token] >= 0:
                    taken_KL[parent, position_V[token]] = True
        blank = log_add(beam.blank[row], beam.label[row]) + log_probs_V[blank_id]
        candidates.row[row] = row
        candidates.token[row] = STAY
        candidates.blank[row] = blank
        candidates.label[row] = label
        candidates.fusion[row] = beam.fusion[row]
        candidates.score[row] = log_add(blank, label) + beam.fusion[row]
        best = max(best, candidates.score[row])
    return best


@compiled
def expand(
    beam: Beam,
    trie: Trie,
    log_probs_V: Floats,
    blank_id: int,
    labels_L: Int32s,
    position_V: Int32s,
    num_labels: int,
    threshold: float,
    taken_KL: npt.NDArray[np.bool_],
    candidates: Candidates,
) -> None:
    """Every row by one frame: it stays (blank or repeat, never pruned) or writes one of the frame's labels.

    A row whose parent prefix is in the beam too receives the parent's mass for its last label, so no prefix
    stands twice among the candidates.

    Args:
        beam: Current rows.
        trie: Their prefixes; `row` is set and cleared again.
        log_probs_V: One frame.
        blank_id: Label of the blank.
        labels_L: From `prune_labels`, most probable first.
        position_V: From `prune_labels`.
        num_labels: From `prune_labels`.
        threshold: New labels further than this below the best row that stays are not written (they would not
            survive the selection); infinite where a fusion may still raise them.
        taken_KL: Scratch, at least K x L.
        candidates: Receives at most K * (L + 1) candidates: all stays in the order of the rows, then the others.
    """
    count = beam.size[0]
    taken_KL[:count, :num_labels] = False
    for row in range(count):
        trie.row[beam.node[row]] = row
    floor = _expand_stays(beam, trie, log_probs_V, blank_id, position_V, taken_KL, candidates) - threshold
    for row in range(beam.size[0]):
        node = beam.node[row]
        trie.row[node] = -1
        total = log_add(beam.blank[row], beam.label[row])
        for place in range(num_labels):
            token = labels_L[place]
            if total + log_probs_V[token] + beam.fusion[row] < floor:
                break
            mass = beam.blank[row] if token == trie.token[node] else total
            score = mass + log_probs_V[token] + beam.fusion[row]
            if taken_KL[row, place] or score < floor or score == -np.inf:
                continue
            candidates.row[count] = row
            candidates.token[count] = token
            candidates.blank[count] = -np.inf
            candidates.label[count] = mass + log_probs_V[token]
            candidates.fusion[count] = beam.fusion[row]
            candidates.score[count] = score
            count += 1
    candidates.size[0] = count


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
def rank(candidates: Candidates, threshold: float, heap_K: Int32s) -> int:
    """Indices of the best candidates, best first, in `heap_K`; returns how many.

    Candidates further than `threshold` below the best are dropped; at most `len(heap_K)` are kept.
    """
    score_C = candidates.score
    best = -np.inf
    for c in range(candidates.size[0]):
        best = max(best, score_C[c])
    size = 0
    for c in range(candidates.size[0]):
        if score_C[c] < best - threshold or score_C[c] == -np.inf:
            continue
        if size < heap_K.shape[0]:
            heap_K[size] = c
            size += 1
            if size == heap_K.shape[0]:
                for place in range(size // 2 - 1, -1, -1):
                    _sift_down(heap_K, size, score_C, place)
        elif _worse(score_C, heap_K[0], c):
            heap_K[0] = c
            _sift_down(heap_K, size, score_C, 0)
    for place in range(size // 2 - 1, -1, -1):
        _sift_down(heap_K, size, score_C, place)
    for end in range(size - 1, 0, -1):
        heap_K[0], heap_K[end] = heap_K[end], heap_K[0]
        _sift_down(heap_K, end, score_C, 0)
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
    out: Beam,
) -> None:
    """The next beam: the best candidates as rows, best first.

    Args:
        beam: The beam that was expanded.
        trie: Receives the prefixes that are new; a prefix seen before keeps its node.
        candidates: From `expand`, perhaps re-scored by fusions.
        threshold: Nats below the best at which a candidate is dropped.
        kinds_V: What each label does to words.
        heap_K: Scratch of the beam's size.
        out: Receives the rows; not the same arrays as `beam`.
    """
    size = rank(candidates, threshold, heap_K)
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
