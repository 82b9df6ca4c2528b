"""What every row of a CTC prefix beam may become in one frame, compiled; phrases that earn a bonus included.

A keyword boost needs nothing but its automata, so it is part of the step: what a row can earn at most from its state
says which labels are worth looking up. Letters as in `ctc_kernels`.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from ctxasr_ray.keywords import automaton_kernels
from ctxasr_ray.keywords.automaton_kernels import STATE, Automaton, earn
from ctxasr_ray.search import ctc_kernels
from ctxasr_ray.search.ctc_kernels import heapify, log_add, push
from ctxasr_ray.search.ctc_state import (
    STAY,
    Beam,
    Candidates,
    Floats,
    Int32s,
    Trie,
    compiled,
    compiled_inline,
    compiled_within,
    source_digest,
)


class Boost(NamedTuple):
    """Phrases that earn a bonus while rows write them."""

    shared: Automaton
    """Of all utterances."""
    own: Automaton
    """Of this one; no phrase stands in both."""
    column: int
    """The rows' state in `shared`; the next one is that in `own`."""


def _no_phrases() -> Automaton:
    no_label = np.zeros(0, np.bool_)
    return Automaton(
        symbol=np.zeros(0, np.int32),
        states=np.zeros(1, STATE),
        bit=np.zeros(0, np.uint64),
        first_rows=np.zeros((0, 0), np.int32),
        starts_word=no_label,
        is_space=no_label,
        is_word=no_label,
        whole_words=False,
        most=0.0,
    )


NO_BOOST: Final = Boost(shared=_no_phrases(), own=_no_phrases(), column=0)
"""A search without phrases."""


class Frame(NamedTuple):
    """What one frame lets a row write."""

    log_probs: Floats
    """(V,)"""
    blank_id: int
    labels: Int32s
    """(L,) from `prune_labels`, most probable first."""
    positions: Int32s
    """(V,) from `prune_labels`."""
    num_labels: int
    """From `prune_labels`."""
    threshold: float
    """Nats below the best at which a candidate is dropped."""
    most: float
    """Nats by which fusions may still raise a candidate that writes a label; negative where none will change any, and
    the best are found right here."""


class Room(NamedTuple):
    """Scratch of a search, and what `expand` hands to `select`."""

    taken: npt.NDArray[np.bool_]
    """(K, L)"""
    states: Int32s
    """(2, C) the state in each automaton behind candidates that write a label."""
    heap: Int32s
    """(K,) the best candidates, the worst of them first, where no fusion will change any."""
    totals: Floats
    """(K,) ln P of each row."""
    log_probs: Floats
    """(L,) of the labels."""
    bits: npt.NDArray[np.uint64]
    """(2, L) the bit of each label in each automaton, see `STATE`; 0 without phrases."""


@compiled_within
def empty_room(beam_size: int, max_labels: int) -> Room:
    """Scratch for K rows and L labels."""
    taken_KL = np.empty((beam_size, max_labels), dtype=np.bool_)
    return Room(
        taken=taken_KL,
        states=np.empty((2, beam_size * (max_labels + 1)), dtype=np.int32),
        heap=np.empty(beam_size, dtype=np.int32),
        totals=np.empty(beam_size),
        log_probs=np.empty(max_labels),
        bits=np.zeros((2, max_labels), dtype=np.uint64),
    )


class Outlook(NamedTuple):
    """What a row's next label may earn in one automaton."""

    follows: np.uint64
    """As in `STATE`."""
    gain: float
    """The most that any label earns."""
    lost: float
    """What every label earns whose bit is not in `follows`: mostly below 0."""


@compiled_inline
def outlook(automaton: Automaton, state: int) -> Outlook:
    """Of a state; nothing without phrases."""
    if not has_phrases(automaton):
        return Outlook(np.uint64(0), 0.0, 0.0)
    lost = np.float64(automaton.states[state].kept) - automaton.states[state].lent
    return Outlook(automaton.states[state].follows, np.float64(automaton.states[state].gain), lost)


@compiled_inline
def has_phrases(automaton: Automaton) -> bool:
    """Whether any phrase stands in it; one without stays in state 0."""
    return bool(automaton.states.shape[0] > 3)


@compiled_inline
def most_of(of: Outlook, bit: np.uint64) -> float:
    """The most that a label of this bit earns."""
    return of.gain if of.follows & bit != np.uint64(0) else of.lost


@compiled_inline
def _look_up_labels(frame: Frame, boost: Boost, room: Room) -> None:
    """Fills what the room holds of each label."""
    for place in range(frame.num_labels):
        token = frame.labels[place]
        room.log_probs[place] = frame.log_probs[token]
        if has_phrases(boost.shared):
            room.bits[0, place] = boost.shared.bit[token]
        if has_phrases(boost.own):
            room.bits[1, place] = boost.own.bit[token]


@compiled_within
def _expand_stays(
    beam: Beam,
    trie: Trie,
    frame: Frame,
    candidates: Candidates,
    room: Room,
) -> float:
    """Rows that write nothing new, plus the mass that their parents in the beam hand down; the best score."""
    log_probs_V, position_V, blank_id = frame.log_probs, frame.positions, frame.blank_id
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
                    room.taken[parent, position_V[token]] = True
        room.totals[row] = log_add(beam.blank[row], beam.label[row])
        blank = room.totals[row] + log_probs_V[blank_id]
        candidates.row[row] = row
        candidates.token[row] = STAY
        candidates.blank[row] = blank
        candidates.label[row] = label
        candidates.fusion[row] = beam.fusion[row]
        candidates.score[row] = log_add(blank, label) + beam.fusion[row]
        best = max(best, candidates.score[row])
    return best


@compiled_within
def _floor(least: float, heap_K: Int32s, size: int, score_C: Floats) -> float:
    """The score below which a candidate would not survive: `least`, or that of the worst of a full beam."""
    return float(max(least, score_C[heap_K[0]])) if size == heap_K.shape[0] else least


def _expander(digest: str) -> Callable[..., int]:
    """The kernel `expand`; the digest of the kernels that it calls, a constant of it, keeps its stored copy current."""

    def expand(beam: Beam, trie: Trie, frame: Frame, boost: Boost, candidates: Candidates, room: Room) -> int:
        """Every row by one frame: it stays (blank or repeat, never pruned) or writes one of the frame's labels.

        A row whose parent prefix is in the beam too receives the parent's mass for its last label, so no prefix
        stands twice among the candidates. New labels that would not survive the selection are not written: those
        further than the threshold below the best, and those below all of a full beam.

        Args:
            beam: Current rows.
            trie: Their prefixes; `row` is set and cleared again.
            frame: What may be written.
            boost: Phrases; without any nothing is looked up.
            candidates: Receives at most K * (L + 1) candidates: all stays in the order of the rows, then the others.
            room: Scratch, and what `select` needs.

        Returns:
            How many candidates are in the heap.
        """
        assert digest  # read, so that it is in the closure
        labels_L, num_labels = frame.labels, frame.num_labels
        heap_K, states_2C, taken_KL, threshold = room.heap, room.states, room.taken, frame.threshold
        shared, own, column, size = boost.shared, boost.own, boost.column, beam.size[0]
        taken_KL[:size, :num_labels] = False
        for row in range(size):
            trie.row[beam.node[row]] = row
        best = _expand_stays(beam, trie, frame, candidates, room)
        settled, count = frame.most < 0, size
        heap_K[:size] = candidates.row[:size]  # those that stay come first, in the order of the rows
        if size == heap_K.shape[0]:
            heapify(heap_K, size, candidates.score)
        floor = _floor(best - threshold, heap_K, size, candidates.score) - max(frame.most, 0.0)
        _look_up_labels(frame, boost, room)
        for row in range(beam.size[0]):
            trie.row[beam.node[row]] = -1
            last, blank, earned = trie.token[beam.node[row]], beam.blank[row], beam.fusion[row]
            total = room.totals[row]
            in_shared = beam.states[row, column] if has_phrases(shared) else 0
            in_own = beam.states[row, column + 1] if has_phrases(own) else 0
            of_shared, of_own = outlook(shared, in_shared), outlook(own, in_own)
            most = of_shared.gain + of_own.gain
            for place in range(num_labels):
                token, log_prob = labels_L[place], room.log_probs[place]
                if total + log_prob + earned + most < floor:
                    break
                label = (blank if token == last else total) + log_prob
                fusion = earned + most_of(of_shared, room.bits[0, place]) + most_of(of_own, room.bits[1, place])
                if taken_KL[row, place] or label + fusion < floor or label == -np.inf:
                    continue
                fusion = earned
                if has_phrases(shared):
                    states_2C[0, count], bonus = earn(shared, in_shared, token)
                    fusion += bonus
                if has_phrases(own):
                    states_2C[1, count], bonus = earn(own, in_own, token)
                    fusion += bonus
                score = label + fusion
                if score < floor:
                    continue
                candidates.row[count] = row
                candidates.token[count] = token
                candidates.blank[count] = -np.inf
                candidates.label[count] = label
                candidates.fusion[count] = fusion
                candidates.score[count] = score
                if settled:
                    size, best = push(heap_K, size, candidates.score, count), max(best, score)
                    floor = _floor(best - threshold, heap_K, size, candidates.score)
                count += 1
        candidates.size[0] = count
        return int(size)

    return compiled(expand)


expand = _expander(source_digest(automaton_kernels) + source_digest(ctc_kernels))
