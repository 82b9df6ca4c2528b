"""Searches with in-search fusions, several utterances side by side, so that one call of a model serves all of them.

A search is a generator that yields an `Ask` whenever a fusion needs a language model. The driver gathers what all
searches ask and resumes each with its own answer, so how many go side by side changes no result beyond rounding.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

import numpy as np

from ctxasr_ray.nbest import Score
from ctxasr_ray.search.ctc_beam import BeamState, CtcBeamSearch, Labelling
from ctxasr_ray.search.ctc_expand import NO_BOOST
from ctxasr_ray.search.ctc_state import NEVER, Floats
from ctxasr_ray.search.fusion import Answer, Ask, Asking, FusedUtterance, Fusion, FusionError, View, Work
from ctxasr_ray.stage import NextScorer, TreeScorer


@dataclass(frozen=True, kw_only=True, slots=True)
class FusedList:
    """What a search with fusions found."""

    labellings: list[Labelling]
    """Best first, in the order of ln P + fusion."""
    scores: list[tuple[Score, ...]]
    """Per labelling what each fusion scored, unweighted."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Fusion -> why the utterance was searched without it."""
    work: Work = field(default_factory=Work)
    """What it asked of language models, searches that failed included."""


Search = Generator[Ask, Answer, FusedList]


def search_in_lockstep(
    search: CtcBeamSearch, log_probs: Sequence[Floats], fusions: Sequence[Fusion]
) -> list[FusedList]:
    """Searches several utterances side by side.

    Args:
        search: The beam; its `label_kinds` are those that the fusions need.
        log_probs: (T, V) of each utterance, as `CtcBeamSearch.checked` gives them.
        fusions: In-search fusions, the same for all.

    Returns:
        One list per utterance.
    """
    parts = [fusion.begin(len(log_probs)) for fusion in fusions]
    return drive([fused_search(search, one, fusions, [p[i] for p in parts]) for i, one in enumerate(log_probs)])


def drive(searches: Sequence[Search]) -> list[FusedList]:
    """Runs searches to their ends; whenever all wait, each scorer is called once for all that ask it."""
    results: dict[int, FusedList] = {}
    waiting: dict[int, Ask] = {}

    def resume(place: int, answer: Answer | None) -> None:
        try:
            waiting[place] = searches[place].send(answer) if answer is not None else next(searches[place])
        except StopIteration as stop:
            results[place] = stop.value

    for place in range(len(searches)):
        resume(place, None)
    while waiting:
        asked, waiting = waiting, {}
        scorers = {id(ask.scorer): ask.scorer for ask in asked.values()}
        for scorer in scorers.values():
            mine = {place: ask for place, ask in asked.items() if ask.scorer is scorer}
            for place, answer in zip(mine, _answers(scorer, list(mine.values())), strict=True):
                resume(place, answer)
    return [results[place] for place in range(len(searches))]


def fused_search(
    search: CtcBeamSearch, log_probs_TV: Floats, fusions: Sequence[Fusion], parts: Sequence[FusedUtterance]
) -> Search:
    """One utterance; searched anew without a fusion that fails.

    Args:
        search: The beam.
        log_probs_TV: As `CtcBeamSearch.checked` gives them.
        fusions: All fusions.
        parts: Each fusion on this utterance; closed in the end.
    """
    left_out: dict[str, str] = {}
    work = Work()
    current = dict(zip([fusion.name for fusion in fusions], parts, strict=True))
    while True:
        state = search.begin(len(log_probs_TV), sum(fusion.num_states for fusion in fusions))
        try:
            yield from _moments(search, state, log_probs_TV, fusions, current)
            labellings = search.finish(state)
            scores: list[tuple[Score, ...]] = [()] * len(labellings)
            for part in current.values():
                scores = [others + part.scores(one.row) for others, one in zip(scores, labellings, strict=True)]
            return FusedList(labellings=labellings, scores=scores, left_out=left_out, work=work)
        except _LeftOutError as fault:
            left_out[fault.name] = fault.reason
            fusions = [fusion for fusion in fusions if fusion.name not in left_out]
            rest = {fusion.name: current[fusion.name].again() for fusion in fusions}
        finally:
            for part in current.values():
                work.add(part.work)
                part.close()
        current = rest


class _LeftOutError(Exception):
    def __init__(self, name: str, reason: str) -> None:
        super().__init__(reason)
        self.name, self.reason = name, reason


def _answers(scorer: TreeScorer, asks: Sequence[Ask]) -> list[Answer]:
    kept = [ask for ask in asks if ask.keep is not None]
    if kept:
        scorer.retain([ask.session for ask in kept], [ask.keep for ask in kept if ask.keep is not None])
    sessions = [ask.session for ask in asks]
    scores = scorer.extend(sessions, [ask.nodes for ask in asks])
    following: dict[int, Floats] = {}
    if wanted := [ask for ask in asks if ask.next_tokens is not None]:
        assert isinstance(scorer, NextScorer), "only such a scorer is asked for next tokens"
        after = [ask.num_before + np.arange(len(ask.nodes.tokens), dtype=np.int32) for ask in wanted]
        tokens = [ask.next_tokens for ask in wanted if ask.next_tokens is not None]
        own = [ask.session for ask in wanted]
        following = dict(zip(own, scorer.next_log_probs(own, after, tokens), strict=True))
    return [Answer(*pair, following.get(session)) for session, pair in zip(sessions, scores, strict=True)]


def _moments(
    search: CtcBeamSearch,
    state: BeamState,
    log_probs_TV: Floats,
    fusions: Sequence[Fusion],
    current: dict[str, FusedUtterance],
) -> Generator[Ask, Answer, None]:
    """All frames and the end."""
    ends = np.cumsum([0, *(fusion.num_states for fusion in fusions)]).tolist()
    columns = {f.name: slice(a, b) for f, a, b in zip(fusions, ends[:-1], ends[1:], strict=True)}
    bonuses = [fusion for fusion in fusions if fusion.max_bonus is not None]
    boosts = [current[fusion.name].compiled(columns[fusion.name].start) for fusion in bonuses]
    boost = NO_BOOST if not boosts else boosts[0] if len(boosts) == 1 else None
    awake = {name: part for name, part in current.items() if boost is None or name not in {f.name for f in bonuses}}
    max_bonus = sum(fusion.max_bonus or 0.0 for fusion in bonuses)
    wakes = {name: part.wake() for name, part in awake.items()}
    while state.frame < len(log_probs_TV):
        if boost is not None:
            search.run(
                state,
                log_probs_TV,
                min([len(log_probs_TV), *(wake.frame for wake in wakes.values())]),
                shortest=min([NEVER, *(wake.shortest for wake in wakes.values())]),
                word_state=next((columns[name].start for name, wake in wakes.items() if wake.at_word), -1),
                boost=boost,
            )
        elif search.expand(state, log_probs_TV[state.frame], max_bonus=max_bonus):
            for fusion in bonuses:
                states = state.beam.states[:, columns[fusion.name]]
                current[fusion.name].expanded(state.beam, state.candidates, states)
            search.prune(state)
        for name, part in awake.items():
            yield from _moment(name, part.pruned(_view(state, columns[name])))
        wakes = {name: part.wake() for name, part in awake.items()}
    for name, part in current.items():
        yield from _moment(name, part.ended(_view(state, columns[name])))


def _view(state: BeamState, columns: slice) -> View:
    return View(state.trie, state.beam, state.beam.states[:, columns], state.frame)


def _moment(name: str, asking: Asking) -> Generator[Ask, Answer, None]:
    try:
        yield from asking
    except FusionError as fault:
        raise _LeftOutError(name, str(fault)) from fault
