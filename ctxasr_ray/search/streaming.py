"""Frames that arrive in chunks: what a listener would have been shown after each, and how long that held.

Only the search is simulated: the recogniser has heard the whole utterance. A partial result is the complete words of
the best row; the word that is still being spoken is not shown. Letters: T frames, V labels.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ctxasr_ray.nbest import Score
from ctxasr_ray.search.ctc_alignment import ctc_alignments
from ctxasr_ray.search.ctc_beam import CtcBeamSearch, prefix
from ctxasr_ray.search.ctc_state import ENDS, SEPARATES, STARTS, Beam, Candidates, Floats, Int32s
from ctxasr_ray.search.fusion import Asking, FusedUtterance, Fusion, View, Wake, Work
from ctxasr_ray.search.lm_units import Units
from ctxasr_ray.search.lockstep import search_in_lockstep

Words = tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Streamed:
    """One utterance as it was shown."""

    partials: tuple[Words, ...]
    """After each chunk that is followed by another one, the words that are shown."""
    final: Words
    """The words after the last frame, with the end of the search's fusions."""
    chunk_frames: int
    num_frames: int
    word_end_frame: Int32s
    """Per final word, one past its last frame in the most probable alignment."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stability:
    """What listeners of several utterances saw."""

    num_shown: int
    """Words that were ever added to what is shown."""
    num_withdrawn: int
    """Of these, words that were later changed or taken away, with all words behind a change."""
    delays: Floats
    """Per final word, frames between its end in the audio and the moment from which it stands there for good."""

    @property
    def withdrawn_share(self) -> float:
        """Share of shown words that change later; 0 where none was shown."""
        return self.num_withdrawn / self.num_shown if self.num_shown else 0.0


def stream(
    search: CtcBeamSearch, log_probs: Sequence[Floats], fusions: Sequence[Fusion], units: Units, chunk_frames: int
) -> list[Streamed]:
    """Searches utterances side by side and looks at each after every chunk, which changes no result.

    Args:
        search: The beam; its `label_kinds` are those that the fusions need.
        log_probs: (T, V) of each utterance, as `CtcBeamSearch.checked` gives them.
        fusions: In-search fusions; none is the plain search.
        units: Words of the recogniser's labels.
        chunk_frames: Frames that arrive at once.

    Raises:
        ValueError: a chunk without frames.
    """
    if chunk_frames < 1:
        raise ValueError(f"chunk_frames is {chunk_frames}; expected at least 1.")
    watch = _Watch(units, chunk_frames)
    found = search_in_lockstep(search, log_probs, [*fusions, watch])
    streamed = []
    for one, log_probs_TV, watched in zip(found, log_probs, watch.latest, strict=True):
        token_ids = one.labellings[0].token_ids
        due = (len(log_probs_TV) - 1) // chunk_frames
        streamed.append(
            Streamed(
                partials=tuple(watched.partials[:due]),
                final=units.words(token_ids.tolist()),
                chunk_frames=chunk_frames,
                num_frames=len(log_probs_TV),
                word_end_frame=_word_ends(search, log_probs_TV, token_ids, units),
            )
        )
    return streamed


def stability(streamed: Sequence[Streamed]) -> Stability:
    """How much of what was shown held, and how late it came."""
    num_shown = num_withdrawn = 0
    delays: list[float] = []
    for one in streamed:
        history = [(), *one.partials, one.final]
        ends = [min(one.num_frames, place * one.chunk_frames) for place in range(len(history))]
        for before, after in itertools.pairwise(history):
            kept = _common(before, after)
            num_shown += len(after) - kept
            num_withdrawn += len(before) - kept
        held = len(one.final)
        since = [one.num_frames] * held
        for shown, end in zip(reversed(history), reversed(ends), strict=True):
            held = min(held, _common(shown, one.final))
            since[:held] = [end] * held
        delays += [begin - int(end) for begin, end in zip(since, one.word_end_frame, strict=True)]
    return Stability(num_shown=num_shown, num_withdrawn=num_withdrawn, delays=np.asarray(delays, np.float64))


def _common(one: Words, other: Words) -> int:
    """Words that both begin with."""
    same = [a == b for a, b in zip(one, other, strict=False)]
    return same.index(False) if False in same else len(same)


def _word_ends(search: CtcBeamSearch, log_probs_TV: Floats, token_ids: Int32s, units: Units) -> Int32s:
    (alignment,) = ctc_alignments(log_probs_TV, [token_ids], search.blank_id)
    assert alignment is not None, "what the search found has an alignment"
    ids, ends = token_ids.tolist(), alignment.end_frame.tolist()
    num_words = [len(units.words(ids[: place + 1])) for place in range(len(ids))]
    lengths = [len("".join(units.words(ids[: place + 1]))) for place in range(len(ids))]
    word_ends = np.zeros(num_words[-1] if num_words else 0, np.int32)
    for place, (word, end) in enumerate(zip(num_words, ends, strict=True)):
        if word and (place == 0 or lengths[place] > lengths[place - 1]):  # a space belongs to no word
            word_ends[word - 1] = end
    return word_ends


class _Watch:
    """A fusion that only looks; `latest` are its utterances."""

    name, num_states, max_bonus = "watch", 0, None

    def __init__(self, units: Units, chunk_frames: int) -> None:
        self.units, self.chunk_frames = units, chunk_frames
        self.latest: list[_Watched] = []

    def begin(self, num_utterances: int) -> list[FusedUtterance]:
        self.latest = [_Watched(self) for _ in range(num_utterances)]
        return list(self.latest)


class _Watched:
    """One utterance that is looked at whenever a chunk is done."""

    def __init__(self, watch: _Watch) -> None:
        self._watch, self.work = watch, Work()
        self.partials: list[Words] = []

    def compiled(self, column: int) -> None:
        """Nothing."""

    def expanded(self, beam: Beam, candidates: Candidates, states: Int32s) -> None:
        """Nothing."""

    def wake(self) -> Wake:
        return Wake(frame=(len(self.partials) + 1) * self._watch.chunk_frames)

    def pruned(self, view: View) -> Asking:
        if view.frame == self.wake().frame:
            rows = slice(view.num_rows)
            totals = np.logaddexp(view.beam.blank[rows], view.beam.label[rows]) + view.beam.fusion[rows]
            labels = prefix(view.trie, int(view.beam.node[int(totals.argmax())])).tolist()
            self.partials.append(self._complete(labels))
        return ()

    def _complete(self, labels: list[int]) -> Words:
        """Words that no further label can change."""
        kinds = self._watch.units.kinds
        for kept in range(len(labels), 0, -1):
            if kinds[labels[kept - 1]] in (SEPARATES, ENDS):
                return self._watch.units.words(labels[:kept])
            if kinds[labels[kept - 1]] == STARTS:
                return self._watch.units.words(labels[: kept - 1])
        return ()

    def ended(self, view: View) -> Asking:
        """Nothing."""
        return ()

    def scores(self, row: int) -> tuple[Score, ...]:
        """None."""
        return ()

    def again(self) -> FusedUtterance:
        """Looks from the start."""
        self.partials.clear()
        return self

    def close(self) -> None:
        """Nothing."""
