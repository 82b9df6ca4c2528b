"""Many frames of a CTC prefix beam in compiled code, until an in-search fusion wakes. Letters as in `ctc_kernels`."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from ctxasr_ray.search import ctc_kernels
from ctxasr_ray.search.ctc_kernels import expand, only_blank, prune_labels, select
from ctxasr_ray.search.ctc_state import NEVER, Beam, Candidates, Floats, Int32s, Trie, compiled, source_digest


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
        blank_id: int,
        suppressed_V: npt.NDArray[np.bool_],
        kinds_V: npt.NDArray[np.int8],
        skip_log_prob: float,
        min_label_log_prob: float,
        beam_threshold: float,
        labels_L: Int32s,
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
            skip_log_prob: The blank's log-prob from which a frame is not searched.

        Returns:
            Frames that are done, the buffer that holds the rows, and the other one.
        """
        if not digest:  # read, so that it is in the closure
            return first, beam, spare
        beam_size = beam.node.shape[0]
        heap_K = np.empty(beam_size, dtype=np.int32)
        position_V = np.empty(log_probs_TV.shape[1], dtype=np.int32)
        taken_KL = np.empty((beam_size, labels_L.shape[0]), dtype=np.bool_)
        for t in range(first, until):
            log_probs_V = log_probs_TV[t]
            if log_probs_V[blank_id] >= skip_log_prob:
                only_blank(beam, log_probs_V[blank_id])
                continue
            kept = prune_labels(log_probs_V, blank_id, suppressed_V, min_label_log_prob, labels_L, position_V)
            expand(beam, trie, log_probs_V, blank_id, labels_L, position_V, kept, beam_threshold, taken_KL, candidates)
            select(beam, trie, candidates, beam_threshold, kinds_V, heap_K, spare)
            beam, spare = spare, beam
            if (word_state >= 0 or shortest < NEVER) and _woken(trie, beam, shortest, word_state):
                return t + 1, beam, spare
        return until, beam, spare

    return compiled(run)


run = _runner(source_digest(ctc_kernels))
