"""CTC beam with a keyword boost and nothing else: whole utterances in compiled code, as fast as without a list.

The result is that of `KeywordBoost` as an in-search fusion; what differs is that no frame returns to Python. Letters as
in `ctc_kernels`.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from ctxasr_ray.keywords import automaton_kernels
from ctxasr_ray.keywords.automaton import close
from ctxasr_ray.keywords.automaton_kernels import Automaton, expand_candidates
from ctxasr_ray.search import ctc_kernels
from ctxasr_ray.search.ctc_beam import CtcBeamSearch, Labelling
from ctxasr_ray.search.ctc_kernels import expand, only_blank, prune_labels, select
from ctxasr_ray.search.ctc_state import Beam, Candidates, Floats, Int32s, Trie, compiled, source_digest


def search_with_boost(
    search: CtcBeamSearch, log_probs_TV: Floats, shared: Automaton, own: Automaton
) -> list[Labelling]:
    """The most probable labellings of an utterance under its boost, best first in the order of ln P + bonus.

    Args:
        search: The beam.
        log_probs_TV: From `CtcBeamSearch.checked`.
        shared: Phrases of all utterances.
        own: Phrases of this one that are not among them.

    Returns:
        `fusion` is what complete phrases earned.
    """
    state = search.begin(len(log_probs_TV), 2)
    state.beam, state.spare = _run_boosted(
        log_probs_TV,
        search.blank_id,
        search._suppressed(),
        search._kinds(),
        search._skip(),
        search.min_label_log_prob,
        search.beam_threshold,
        np.empty(min(search.max_labels_per_frame, search.num_labels), dtype=np.int32),
        state.trie,
        state.beam,
        state.spare,
        state.candidates,
        shared,
        own,
        shared.most + own.most,
    )
    rows = int(state.beam.size[0])
    for place, automaton in enumerate((shared, own)):
        state.beam.fusion[:rows] += close(automaton, state.beam.states[:rows, place])
    return search.finish(state)


def _runner(digest: str) -> Callable[..., tuple[Beam, Beam]]:
    """The kernel; the digest of the kernels that it calls, a constant of it, keeps its compiled copy current."""

    def run(
        log_probs_TV: Floats,
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
        shared: Automaton,
        own: Automaton,
        max_bonus: float,
    ) -> tuple[Beam, Beam]:
        if not digest:  # read, so that it is in the closure
            return beam, spare
        beam_size = beam.node.shape[0]
        heap_K = np.empty(beam_size, dtype=np.int32)
        position_V = np.empty(log_probs_TV.shape[1], dtype=np.int32)
        taken_KL = np.empty((beam_size, labels_L.shape[0]), dtype=np.bool_)
        states_2C = np.zeros((2, candidates.row.shape[0]), dtype=np.int32)  # an automaton without phrases stays at 0
        use = (shared.symbol.shape[0] > 2, own.symbol.shape[0] > 2)
        for t in range(log_probs_TV.shape[0]):
            log_probs_V = log_probs_TV[t]
            if log_probs_V[blank_id] >= skip_log_prob:
                only_blank(beam, log_probs_V[blank_id])
                continue
            num_labels = prune_labels(log_probs_V, blank_id, suppressed_V, min_label_log_prob, labels_L, position_V)
            threshold = beam_threshold + max_bonus
            expand(beam, trie, log_probs_V, blank_id, labels_L, position_V, num_labels, threshold, taken_KL, candidates)
            rows, size = beam.size[0], candidates.size[0]
            # a full beam of rows that stay beats what cannot be raised above its last
            floor = candidates.score[:rows].min() - max_bonus if rows == beam_size else -np.inf
            row_C, token_C = candidates.row[rows:size], candidates.token[rows:size]
            fusion_C, score_C = candidates.fusion[rows:size], candidates.score[rows:size]
            for place in range(2):
                if use[place]:
                    automaton = shared if place == 0 else own
                    new_C = states_2C[place, rows:size]
                    expand_candidates(automaton, beam.states[:, place], row_C, token_C, floor, fusion_C, score_C, new_C)
            select(beam, trie, candidates, beam_threshold, kinds_V, heap_K, spare)
            beam, spare = spare, beam
            for row in range(beam.size[0]):
                if beam.token[row] >= 0:  # `select` leaves in the heap which candidate a row was
                    beam.states[row, 0], beam.states[row, 1] = states_2C[0, heap_K[row]], states_2C[1, heap_K[row]]
        return beam, spare

    return compiled(run)


_run_boosted = _runner(source_digest(automaton_kernels) + source_digest(ctc_kernels))
