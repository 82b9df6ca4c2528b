"""Keyword boost: phrases of a list earn a bonus while the beam writes them, an in-search fusion without any model.

Every row carries its state in up to two automata: the one of the catalogue that all utterances share, built once, and
a small one of the utterance's own phrases. A phrase stands in one of them only, so no boost counts twice. Bonuses rank
rows; they are written to `scores` as kind `bonus`, apart from the recogniser's log-probs, which they never change.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ctxasr_ray.keywords.automaton import close, step
from ctxasr_ray.keywords.automaton_kernels import Automaton, advance_rows, earned_by_prefixes
from ctxasr_ray.nbest import Score
from ctxasr_ray.search.ctc_expand import Boost
from ctxasr_ray.search.ctc_state import Beam, Candidates, Int32s
from ctxasr_ray.search.fusion import Ask, View, Wake, Work


@dataclass(frozen=True, kw_only=True, slots=True)
class KeywordBoost:
    """The boost of some utterances that are searched side by side; a `search.fusion.Fusion`."""

    automata: Sequence[tuple[Automaton, Automaton]]
    """Per utterance the automaton that all share, the same object everywhere, and that of its own phrases."""
    source: str = "keyword_boost"
    """Name of the bonus in `scores`."""

    @property
    def name(self) -> str:
        """As its scores."""
        return self.source

    @property
    def num_states(self) -> int:
        """One per automaton."""
        return 2

    @property
    def max_bonus(self) -> float:
        """Nats that one label can earn."""
        return max((shared.most + own.most for shared, own in self.automata), default=0.0)

    def begin(self, num_utterances: int) -> "list[BoostedUtterance]":
        """One per utterance, in the order of `automata`."""
        assert num_utterances == len(self.automata), "a boost is made for the utterances that it is begun with"
        return [BoostedUtterance(automata=own, source=self.source) for own in self.automata]


@dataclass(kw_only=True, slots=True)
class BoostedUtterance:
    """The boost of one utterance; a `search.fusion.FusedUtterance`."""

    automata: tuple[Automaton, Automaton]
    source: str
    frame: int = 0
    found: list[tuple[Score]] = field(default_factory=list)
    """Per row of the last beam; rows that earned the same share it."""
    work: Work = field(default_factory=Work)
    """None: no model is asked."""

    def compiled(self, column: int) -> Boost:
        """All of it."""
        shared, own = self.automata
        return Boost(shared=shared, own=own, column=column)

    def expanded(self, beam: Beam, candidates: Candidates, states: Int32s) -> None:
        """Adds what each new label earns."""
        new = slice(int(beam.size[0]), int(candidates.size[0]))
        for place, automaton in enumerate(self.automata):
            _, bonuses = step(automaton, states[candidates.row[new], place], candidates.token[new])
            candidates.fusion[new] += bonuses
            candidates.score[new] += bonuses

    def wake(self) -> Wake:
        """After every frame."""
        return Wake(frame=self.frame + 1)

    def pruned(self, view: View) -> Iterable[Ask]:
        """Advances the states of rows that wrote a label."""
        self.frame = view.frame
        for place, automaton in enumerate(self.automata):
            advance_rows(automaton, view.states[: view.num_rows, place], view.beam.token[: view.num_rows])
        return ()

    def ended(self, view: View) -> Iterable[Ask]:
        """Takes back what partial matches were lent, and adds up what each row has earned of its own."""
        rows = view.num_rows
        earned = np.zeros(rows)
        for place, automaton in enumerate(self.automata):
            if automaton.num_states > 2:
                view.beam.fusion[:rows] += close(automaton, view.states[:rows, place])
                earned += earned_by_prefixes(automaton, view.trie.parent, view.trie.token, view.beam.node[:rows])
        bonuses = earned.tolist()
        shared = {one: (Score(source=self.source, kind="bonus", log_prob=one),) for one in set(bonuses)}
        self.found = [shared[one] for one in bonuses]
        return ()

    def scores(self, row: int) -> tuple[Score, ...]:
        """What complete phrases earned."""
        return self.found[row]

    def again(self) -> "BoostedUtterance":
        """The same phrases."""
        return BoostedUtterance(automata=self.automata, source=self.source)

    def close(self) -> None:
        """Nothing is held."""
