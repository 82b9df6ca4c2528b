"""Many frames of a CTC prefix beam in compiled code, until an in-search fusion wakes. Letters as in `ctc_kernels`.

A keyword boost needs nothing but its automata, so it is part of this: with a list of phrases a search returns to Python
no more often than without.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from ctxasr_ray.keywords import automaton_kernels
from ctxasr_ray.keywords.automaton_kernels import Automaton, expand_candidates
from ctxasr_ray.search import ctc_kernels
from ctxasr_ray.search.ctc_kernels import expand, only_blank, prune_labels, select
from ctxasr_ray.search.ctc_state import (
    NEVER,
    Beam,
    Candidates,
    Floats,
    Int32s,
    Settings,
    Trie,
    compiled,
    source_digest,
)


class Boost(NamedTuple):
    """Phrases that earn a bonus while rows write them."""

    shared: Automaton
    """Of all utterances."""
    own: Automaton
    """Of this one; no phrase stands in both."""
    most: float
    """Nats that one label can earn."""
    column: int
    """The rows' state in `shared`; the next one is that in `own`."""


def _no_phrases() -> Automaton:
    no_state, no_bonus, no_label = np.zeros(0, np.int32), np.zeros(0, np.float32), np.zeros(0, np.bool_)
    return Automaton(
        first_child=no_state,
        symbol=no_state,
        fall=no_state,
        kept=no_bonus,
        lent=no_bonus,
        closing=no_bonus,
        start_row=no_state,
        starts_word=no_label,
        is_space=no_label,
        is_word=no_label,
        whole_words=False,
        most=0.0,
    )


NO_BOOST: Final = Boost(shared=_no_phrases(), own=_no_phrases(), most=0.0, column=0)
"""A search without phrases."""


@compiled
def boundaries(trie: Trie, beam: Beam, max_words: int) -> Int32s:
    """(rows,) the shortest prefix of each row that has all its complete words, or `max_words` of them."""
    found = np.empty(beam.size[0], dtype=np.int32)
    for row in range(beam.size[0]):
        node = trie.boundary[beam.node[row]]
        while trie.words[node] > max_words:
            node = trie.boundary[trie.parent[node]]
        found[row] = node
    return found


@compiled
def labels_of(trie: Trie, nodes_N: Int32s) -> tuple[Int32s, npt.NDArray[np.int64]]:
    """Labels of prefixes, first to last, one prefix behind the other; and (N,) where each of them ends."""
    ends = np.zeros(nodes_N.shape[0], dtype=np.int64)
    total = 0
    for n in range(nodes_N.shape[0]):
        node = nodes_N[n]
        while node > 0:
            total += 1
            node = trie.parent[node]
        ends[n] = total
    labels = np.empty(total, dtype=np.int32)
    for n in range(nodes_N.shape[0]):
        node, place = nodes_N[n], ends[n]
        while node > 0:
            place -= 1
            labels[place] = trie.token[node]
            node = trie.parent[node]
    return labels, ends


@compiled
def fewest_words(trie: Trie, beam: Beam) -> int:
    """Complete words of the row that has the fewest."""
    fewest = trie.words[beam.node[0]]
    for row in range(1, beam.size[0]):
        fewest = min(fewest, trie.words[beam.node[row]])
    return int(fewest)


@compiled
def _woken(trie: Trie, beam: Beam, shortest: int, word_state: int) -> bool:
    if word_state >= 0:
        for row in range(beam.size[0]):
            if beam.states[row, word_state] != trie.boundary[beam.node[row]]:
                return True
    return fewest_words(trie, beam) >= shortest


def _runner(digest: str) -> Callable[..., tuple[int, Beam, Beam]]:
    """The kernel `run`; the digest of the kernels that it calls, a constant of it, keeps its compiled copy current."""

    def run(
        log_probs_TV: Floats,
        first: int,
        until: int,
        shortest: int,
        word_state: int,
        settings: Settings,
        boost: Boost,
        trie: Trie,
        beam: Beam,
        spare: Beam,
        candidates: Candidates,
    ) -> tuple[int, Beam, Beam]:
        """Frames of an utterance until a fusion wakes.

        Args as for the steps above, and:
            first: First frame.
            until: Frame to stop before.
            shortest: Complete words of the shortest row from which to stop.
            word_state: Stop as soon as this state of a row is not its boundary; -1 is none.
            boost: Phrases; without any nothing is looked up.

        Returns:
            Frames that are done, the buffer that holds the rows, and the other one.
        """
        if not digest:  # read, so that it is in the closure
            return first, beam, spare
        beam_size, column, most = beam.node.shape[0], boost.column, boost.most
        blank, min_log_prob = settings.blank_id, settings.min_label_log_prob
        heap_K = np.empty(beam_size, dtype=np.int32)
        labels_L = np.empty(settings.max_labels, dtype=np.int32)
        position_V = np.empty(log_probs_TV.shape[1], dtype=np.int32)
        taken_KL = np.empty((beam_size, labels_L.shape[0]), dtype=np.bool_)
        use = (boost.shared.symbol.shape[0] > 2, boost.own.symbol.shape[0] > 2)
        boosted = use[0] or use[1]
        # an automaton without phrases stays at 0
        states_2C = np.zeros((2, candidates.row.shape[0] if boosted else 0), dtype=np.int32)
        for t in range(first, until):
            log_probs_V = log_probs_TV[t]
            if log_probs_V[blank] >= settings.skip_log_prob:
                only_blank(beam, log_probs_V[blank])
                continue
            kept = prune_labels(log_probs_V, blank, settings.suppressed, min_log_prob, labels_L, position_V)
            threshold = settings.beam_threshold + most
            expand(beam, trie, log_probs_V, blank, labels_L, position_V, kept, threshold, taken_KL, candidates)
            if boosted:
                rows, size = beam.size[0], candidates.size[0]
                # a full beam of rows that stay beats what cannot be raised above its last
                floor = candidates.score[:rows].min() - most if rows == beam_size else -np.inf
                row_C, token_C = candidates.row[rows:size], candidates.token[rows:size]
                fusion_C, score_C = candidates.fusion[rows:size], candidates.score[rows:size]
                for place in range(2):
                    if use[place]:
                        automaton = boost.shared if place == 0 else boost.own
                        states_K, new_C = beam.states[:, column + place], states_2C[place, rows:size]
                        expand_candidates(automaton, states_K, row_C, token_C, floor, fusion_C, score_C, new_C)
            select(beam, trie, candidates, settings.beam_threshold, settings.kinds, heap_K, spare)
            beam, spare = spare, beam
            if boosted:
                for row in range(beam.size[0]):
                    if beam.token[row] >= 0:  # `select` leaves in the heap which candidate a row was
                        beam.states[row, column] = states_2C[0, heap_K[row]]
                        beam.states[row, column + 1] = states_2C[1, heap_K[row]]
            if (word_state >= 0 or shortest < NEVER) and _woken(trie, beam, shortest, word_state):
                return t + 1, beam, spare
        return until, beam, spare

    return compiled(run)


run = _runner(source_digest(automaton_kernels) + source_digest(ctc_kernels))
