"""CTC prefix beam search: log-probs of one utterance -> its most probable labellings.

The step of `ctc_kernels` is written once and run two ways with equal results. `CtcBeamSearch.run` stays in compiled
code until an in-search fusion wants to see the rows, `search` through a whole utterance; `expand` and `prune` are one
frame, where a fusion changes candidates. Letters: T frames, V labels of the recogniser, K beam rows.
"""

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ctxasr_ray.search.ctc_expand import NO_BOOST, Boost, Frame, empty_room, expand
from ctxasr_ray.search.ctc_kernels import best_of, only_blank, prune_labels, select, totals_of
from ctxasr_ray.search.ctc_run import labels_of, run
from ctxasr_ray.search.ctc_state import (
    INSIDE,
    NEVER,
    Beam,
    Candidates,
    Floats,
    Int32s,
    Settings,
    Trie,
    empty_beam,
    empty_candidates,
    empty_trie,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Labelling:
    """One label sequence that the search kept."""

    token_ids: Int32s
    log_prob: float
    """ln P of its alignments that survived the pruning, in nats; at most the exact forced score."""
    fusion: float
    """What in-search fusions added; 0 without any."""
    row: int
    """Row of the last beam."""


@dataclass(slots=True)
class BeamState:
    """One utterance in the middle of its search."""

    trie: Trie
    beam: Beam
    spare: Beam
    """The other of two buffers; the step writes into it and swaps."""
    candidates: Candidates
    frame: int = 0
    """Frames that are done."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CtcBeamSearch:
    """Searches any CTC recogniser's output; holds no model and is safe to share between threads."""

    blank_id: int
    num_labels: int
    """V, with the blank."""
    beam_size: int = 50
    """Rows that are kept after each frame; also the longest N-best list."""
    max_labels_per_frame: int = 32
    """New labels that a row may write in one frame: the most probable ones. Blanks and repeats are never pruned."""
    min_label_log_prob: float = -10.0
    """Nats; a less probable label is not written in this frame unless it is the frame's most probable."""
    beam_threshold: float = 20.0
    """Nats below the best row at which a row is dropped."""
    blank_skip_prob: float | None = 0.9999
    """Frames with a more probable blank are taken to be blank for every row; None searches every frame."""
    suppressed: tuple[int, ...] = ()
    """Labels that are never written (<s>, <unk>, ...)."""
    label_kinds: tuple[int, ...] = ()
    """(V,) what each label does to words: INSIDE, STARTS, SEPARATES or ENDS of `ctc_state`; empty where no fusion asks
    for words."""

    def __post_init__(self) -> None:
        """Refuses settings that no search can run with."""
        if not 0 <= self.blank_id < self.num_labels:
            raise ValueError(f"blank_id is {self.blank_id}; expected 0 to {self.num_labels - 1}, a label of the model.")
        if self.beam_size < 1 or self.max_labels_per_frame < 1:
            raise ValueError(
                f"beam_size is {self.beam_size}, max_labels_per_frame {self.max_labels_per_frame}; expected at least 1."
            )
        if self.blank_skip_prob is not None and not 0.5 <= self.blank_skip_prob <= 1.0:
            raise ValueError(f"blank_skip_prob is {self.blank_skip_prob}; expected 0.5 to 1, or None for no skipping.")

        if self.label_kinds and len(self.label_kinds) != self.num_labels:
            raise ValueError(
                f"label_kinds has {len(self.label_kinds)} entries; expected one per label, {self.num_labels}."
            )

    def search(self, log_probs_TV: npt.ArrayLike) -> list[Labelling]:
        """The most probable labellings of an utterance, best first, at most `beam_size`.

        Args:
            log_probs_TV: Natural logarithms, log-softmax at temperature 1; -inf is allowed, nan is not.

        Raises:
            ValueError: another number of labels than `num_labels`, or nan.
        """
        log_probs = self.checked(log_probs_TV)
        state = self.begin(len(log_probs))
        self.run(state, log_probs, len(log_probs))
        return self.finish(state)

    def run(
        self,
        state: BeamState,
        log_probs_TV: Floats,
        until: int,
        *,
        shortest: int = NEVER,
        word_state: int = -1,
        boost: Boost = NO_BOOST,
    ) -> None:
        """Searches on in compiled code, to a frame or to a condition, whichever is first.

        Args:
            state: Changed in place.
            log_probs_TV: From `checked`.
            until: Frames that are done in the end, at most T.
            shortest: Stops as soon as every row has this many complete words.
            word_state: Stops as soon as this fusion state of a row is not `trie.boundary` of its node; -1 is none.
            boost: Phrases that earn a bonus.
        """
        state.frame, state.beam, state.spare = run(
            log_probs_TV,
            state.frame,
            until,
            shortest,
            word_state,
            self.settings(),
            boost,
            state.trie,
            state.beam,
            state.spare,
            state.candidates,
        )

    def begin(self, num_frames: int, num_fusion_states: int = 0) -> BeamState:
        """A search before its first frame.

        Args:
            num_frames: Frames of the utterance.
            num_fusion_states: int32 states per row that in-search fusions carry along.
        """
        max_labels = min(self.max_labels_per_frame, self.num_labels)
        return BeamState(
            trie=empty_trie(num_frames * self.beam_size + 1),
            beam=empty_beam(self.beam_size, num_fusion_states),
            spare=empty_beam(self.beam_size, num_fusion_states),
            candidates=empty_candidates(self.beam_size * (max_labels + 1)),
        )

    def expand(self, state: BeamState, log_probs_V: npt.ArrayLike, *, max_bonus: float = 0.0) -> bool:
        """Fills `state.candidates` for the next frame; False where the frame was skipped as blank.

        Args:
            state: Changed in place.
            log_probs_V: One frame.
            max_bonus: Nats by which fusions may raise a candidate before `prune`; so much further below the best
                candidates are kept.
        """
        log_probs, settings = np.ascontiguousarray(log_probs_V, dtype=np.float64), self.settings()
        state.frame += 1
        if log_probs[self.blank_id] >= settings.skip_log_prob:
            only_blank(state.beam, log_probs[self.blank_id])
            return False
        labels = np.empty(settings.max_labels, dtype=np.int32)
        positions = np.empty(self.num_labels, dtype=np.int32)
        kept = prune_labels(log_probs, self.blank_id, settings.suppressed, self.min_label_log_prob, labels, positions)
        frame = Frame(log_probs, self.blank_id, labels, positions, kept, self.beam_threshold, max_bonus)
        expand(state.beam, state.trie, frame, NO_BOOST, state.candidates, empty_room(self.beam_size, len(labels)))
        return True

    def prune(self, state: BeamState) -> None:
        """Makes the best candidates the rows of `state.beam`; `parent_row` and `token` say whence they came."""
        heap, kinds = np.empty(self.beam_size, dtype=np.int32), self.settings().kinds
        size = best_of(state.candidates, heap)
        select(state.beam, state.trie, state.candidates, self.beam_threshold, kinds, heap, size, state.spare)
        state.beam, state.spare = state.spare, state.beam

    def finish(self, state: BeamState) -> list[Labelling]:
        """The rows as labellings, in the order of ln P + fusion; of equal ones the earlier row first."""
        beam = state.beam
        totals, fusion = totals_of(beam), beam.fusion[: beam.size[0]]
        order = np.argsort(-(totals + fusion), kind="stable").tolist()
        texts, log_probs, bonuses = prefixes(state.trie, beam.node[: beam.size[0]]), totals.tolist(), fusion.tolist()
        return [Labelling(token_ids=texts[row], log_prob=log_probs[row], fusion=bonuses[row], row=row) for row in order]

    def checked(self, log_probs_TV: npt.ArrayLike) -> Floats:
        """The log-probs as the kernels take them.

        Raises:
            ValueError: another number of labels than `num_labels`, or nan.
        """
        log_probs = np.ascontiguousarray(log_probs_TV, dtype=np.float64)
        if log_probs.ndim != 2 or log_probs.shape[1] != self.num_labels:
            raise ValueError(f"log_probs_TV has shape {log_probs.shape}; expected (T, {self.num_labels}).")
        if np.isnan(log_probs).any():
            t = int(np.isnan(log_probs).any(axis=1).argmax())
            raise ValueError(f"log_probs_TV holds nan, first in frame {t}; expected natural logarithms, at most 0.")
        return log_probs

    def settings(self) -> Settings:
        """The fields as kernels take them."""
        suppressed = np.zeros(self.num_labels, dtype=np.bool_)
        suppressed[list(self.suppressed)] = True
        return Settings(
            blank_id=self.blank_id,
            suppressed=suppressed,
            kinds=np.asarray(self.label_kinds or (INSIDE,) * self.num_labels, dtype=np.int8),
            skip_log_prob=np.inf if self.blank_skip_prob is None else float(np.log(self.blank_skip_prob)),
            min_label_log_prob=float(self.min_label_log_prob),
            beam_threshold=float(self.beam_threshold),
            max_labels=min(self.max_labels_per_frame, self.num_labels),
        )


def prefixes(trie: Trie, nodes_N: Int32s) -> list[Int32s]:
    """The labels of prefixes, first to last."""
    labels, ends = labels_of(trie, nodes_N)
    bounds = [0, *ends.tolist()]
    return [labels[first:end] for first, end in itertools.pairwise(bounds)]


def prefix(trie: Trie, node: int) -> Int32s:
    """The labels of a prefix, first to last."""
    return labels_of(trie, np.array([node], np.int32))[0]
