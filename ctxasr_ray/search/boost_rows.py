"""Keyword boost in a label-synchronous search: phrases of a list earn a bonus while rows write them.

The automata are those of `search.keyword_boost`. A row that ends gives back what its partial match was lent; one that
reaches the longest length without an end keeps it in the search's sum, never in its bonus.
Letters: U utterances, B rows of a beam, V vocabulary of the recogniser.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ctxasr_ray.keywords.automaton import close
from ctxasr_ray.keywords.automaton_kernels import START, Automaton, advance, advance_rows, earned
from ctxasr_ray.nbest import Score
from ctxasr_ray.search.label_fusion import Ranked, RowFusion, Steps

if TYPE_CHECKING:
    import torch

    from ctxasr_ray.search.label_beam import LabelHypothesis

Automata = tuple[Automaton, Automaton]
"""The one that utterances share, and that of an utterance's own phrases."""


class BoostRows:
    """The boost of the rows of some utterances; a `label_fusion.RowFusion`.

    Args:
        automata: Per utterance.
        eos_id: The recogniser's end.
    """

    def __init__(self, automata: Sequence[Automata], eos_id: int) -> None:
        self._going, self._eos_id = list(automata), eos_id
        self._states = [np.full((2, 1), START, np.int32) for _ in automata]

    @property
    def max_gain(self) -> float:
        """Nats that one token can earn."""
        return max((float(shared.most + own.most) for shared, own in self._going), default=0.0)

    def ranked(self, log_probs_UBV: "torch.Tensor") -> Ranked:
        """As `label_fusion.RowFusion`: what each token earns or breaks, and what an end takes back."""
        import torch

        added_UBV = np.zeros(log_probs_UBV.shape)
        for u, (automata, states_2B) in enumerate(zip(self._going, self._states, strict=True)):
            for automaton, states_B in zip(automata, states_2B, strict=True):
                gains_BV = _gains(automaton, states_B, added_UBV.shape[2])
                gains_BV[:, self._eos_id] = close(automaton, states_B)
                added_UBV[u, : len(states_B)] += gains_BV
        return Ranked(log_probs_UBV, torch.from_numpy(added_UBV).to(log_probs_UBV))

    def advance(self, steps: Steps) -> None:
        """As `label_fusion.RowFusion`."""
        for u, (tokens, parents) in enumerate(steps):
            states_2B = np.ascontiguousarray(self._states[u][:, parents])
            for automaton, states_B in zip(self._going[u], states_2B, strict=True):
                advance_rows(automaton, states_B, np.asarray(tokens, np.int32))
            self._states[u] = states_2B

    def keep(self, utterances: Sequence[int]) -> None:
        """As `label_fusion.RowFusion`."""
        self._going = [self._going[place] for place in utterances]
        self._states = [self._states[place] for place in utterances]


def _gains(automaton: Automaton, states_B: npt.NDArray[np.int32], num_tokens: int) -> npt.NDArray[np.float64]:
    """(B, V) what each token would add to each row."""
    rows, tokens = np.repeat(states_B, num_tokens), np.tile(np.arange(num_tokens, dtype=np.int32), len(states_B))
    gains = np.empty(len(rows))
    advance(automaton, rows, tokens, np.empty(len(rows), np.int32), gains)
    return gains.reshape(len(states_B), num_tokens)


def bonus(automata: Automata, found: "LabelHypothesis", source: str) -> Score:
    """What the complete phrases of a hypothesis earned."""
    total = sum(float(earned(automaton, found.token_ids)) for automaton in automata)
    return Score(source=source, kind="bonus", log_prob=total)


class Together:
    """Two fusions of the same rows; a `label_fusion.RowFusion`.

    Args:
        first: May stand in the recogniser's place.
        second: Only adds.
    """

    def __init__(self, first: RowFusion, second: RowFusion) -> None:
        self._both = (first, second)

    @property
    def max_gain(self) -> float:
        """The sum of both."""
        return sum(fusion.max_gain for fusion in self._both)

    def ranked(self, log_probs_UBV: "torch.Tensor") -> Ranked:
        """As `label_fusion.RowFusion`."""
        (ranked, added), (_, more) = (fusion.ranked(log_probs_UBV) for fusion in self._both)
        parts = [part for part in (added, more) if part is not None]
        return Ranked(ranked, sum(parts[1:], start=parts[0]) if parts else None)

    def advance(self, steps: Steps) -> None:
        """As `label_fusion.RowFusion`."""
        for fusion in self._both:
            fusion.advance(steps)

    def keep(self, utterances: Sequence[int]) -> None:
        """As `label_fusion.RowFusion`."""
        for fusion in self._both:
            fusion.keep(utterances)
