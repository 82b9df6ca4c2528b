"""Many frames of a CTC prefix beam in compiled code, until an in-search fusion wakes. Letters as in `ctc_kernels`.

A keyword boost is part of the step (`ctc_expand`): with a list of phrases a search returns to Python no more often than
without.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from ctxasr_ray.keywords import automaton_kernels
from ctxasr_ray.search import ctc_expand, ctc_kernels
from ctxasr_ray.search.ctc_expand import Boost, Frame, empty_room, expand, has_phrases
from ctxasr_ray.search.ctc_kernels import only_blank, prune_labels, select
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
        beam_size, column, threshold = beam.node.shape[0], boost.column, settings.beam_threshold
        blank, min_log_prob = settings.blank_id, settings.min_label_log_prob
        labels_L = np.empty(settings.max_labels, dtype=np.int32)
        position_V = np.empty(log_probs_TV.shape[1], dtype=np.int32)
        boosted = has_phrases(boost.shared) or has_phrases(boost.own)
        scratch = empty_room(beam_size, settings.max_labels)
        for t in range(first, until):
            log_probs_V = log_probs_TV[t]
            if log_probs_V[blank] >= settings.skip_log_prob:
                only_blank(beam, log_probs_V[blank])
                continue
            kept = prune_labels(log_probs_V, blank, settings.suppressed, min_log_prob, labels_L, position_V)
            frame = Frame(log_probs_V, blank, labels_L, position_V, kept, threshold, -1.0)
            size = expand(beam, trie, frame, boost, candidates, scratch)
            select(beam, trie, candidates, threshold, settings.kinds, scratch.heap, size, spare)
            beam, spare = spare, beam
            if boosted:
                for row in range(beam.size[0]):
                    if beam.token[row] >= 0:  # the heap says which candidate a row was
                        beam.states[row, column] = scratch.states[0, scratch.heap[row]]
                        beam.states[row, column + 1] = scratch.states[1, scratch.heap[row]]
            if (word_state >= 0 or shortest < NEVER) and _woken(trie, beam, shortest, word_state):
                return t + 1, beam, spare
        return until, beam, spare

    return compiled(run)


run = _runner(source_digest(automaton_kernels) + source_digest(ctc_kernels) + source_digest(ctc_expand))
