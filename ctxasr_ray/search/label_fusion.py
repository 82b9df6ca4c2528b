"""A language model inside a label-synchronous search: at each step it may change how continuations of rows rank.

The LM writes with the recogniser's own pieces. Each row's distribution is computed once, below its parent's node in one
token tree per utterance, and rows of all utterances share a forward pass. A row that was not asked for is caught up
with, in one pass, when a row below it is.
Letters: U utterances, B rows of a beam, V vocabulary of the recogniser.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from ctxasr_ray.nbest import Score
from ctxasr_ray.stage import Costs, NextScorer, TreeNodes
from ctxasr_ray.token_tree import Int32

if TYPE_CHECKING:
    import torch

Float = npt.NDArray[np.float64]
Steps = Sequence[tuple[list[int], list[int]]]
"""Per utterance the tokens of its rows and the row that each comes from."""
_NOT_ASKED: Final = -2
_PREFIX: Final = -1


class Ranked(NamedTuple):
    """What continuations rank by, in nats."""

    log_probs: "torch.Tensor"
    """(U, B, V) in place of the recogniser's; with a CTC share it is these that are shared with."""
    added: "torch.Tensor | None"
    """(U, B, V) added to that; None adds nothing."""


class RowFusion(Protocol):
    """A fusion on the rows of some utterances that are searched side by side."""

    @property
    def max_gain(self) -> float:
        """Most by which a token can raise a score, in nats, so that no search stops too early; 0 for probabilities."""
        ...

    def ranked(self, log_probs_UBV: "torch.Tensor") -> Ranked:
        """What continuations of the rows rank by.

        Args:
            log_probs_UBV: The recogniser's at temperature 1, of utterances that still go on; rows behind an
                utterance's own are padding.
        """
        ...

    def advance(self, steps: Steps) -> None:
        """Says which rows there are now."""
        ...

    def keep(self, utterances: Sequence[int]) -> None:
        """Says which utterances go on, by their places among those that did."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class RowLm:
    """A language model of the recogniser's own pieces, as rows of a beam ask it."""

    scorer: NextScorer
    tokens: Int32
    """(V,) its token of each token of the recogniser, from `shared_vocabulary.shared_tokens`."""
    prefix: Int32
    """(P,) tokens before every text of an utterance that has no prefix of its own; not empty."""
    eos_token_id: int
    """Its end of sequence."""
    max_positions: int | None = None
    """Tokens that the model takes, prefix included; None is no limit."""
    source: str = "causal_lm"
    """Name of its scores."""
    costs: Costs = field(default_factory=Costs)
    """Counts `lm_rows` (distributions that were asked for), beside what the scorer counts."""

    def __post_init__(self) -> None:
        """Refuses an LM that cannot begin.

        Raises:
            ValueError: an empty prefix.
        """
        if not len(self.prefix):
            raise ValueError(
                f"LM '{self.source}': nothing stands before the first token of a text, so it has no distribution; set "
                "start_from_eos or a prompt."
            )


@dataclass(slots=True)
class _Texts:
    """All rows that one utterance ever had, as a tree; row 0 is the empty text."""

    session: int
    tokens: list[int] = field(default_factory=lambda: [-1])
    parents: list[int] = field(default_factory=lambda: [-1])
    depths: list[int] = field(default_factory=lambda: [0])
    nodes: list[int] = field(default_factory=lambda: [_PREFIX])
    sums: list[float] = field(default_factory=lambda: [0.0])
    ends: list[float] = field(default_factory=lambda: [np.nan])
    children: dict[tuple[int, int], int] = field(default_factory=dict)
    num_nodes: int = 0

    def below(self, row: int, token: int) -> int:
        """The text of one text and a token."""
        if (row, token) not in self.children:
            self.children[row, token] = len(self.tokens)
            self.tokens.append(token)
            self.parents.append(row)
            self.depths.append(self.depths[row] + 1)
            self.nodes.append(_NOT_ASKED)
            self.sums.append(np.nan)
            self.ends.append(np.nan)
        return self.children[row, token]

    def unasked(self, wanted: Sequence[int]) -> list[int]:
        """Texts that need a node, so that those that are wanted have one; parents first."""
        found: dict[int, None] = {}
        for text in wanted:
            chain = []
            while self.nodes[text] == _NOT_ASKED and text not in found:
                chain.append(text)
                text = self.parents[text]
            found |= dict.fromkeys(reversed(chain))
        return list(found)


class LmRows:
    """A language model behind the rows of some utterances.

    An utterance that it cannot serve (a log-prob that is no finite number, a text beyond its context) gets a reason and
    is never asked about again; its rows have no distribution from then on.

    Args:
        lm: The model.
        num_utterances: U.
        prefixes: (U,) tokens before every text of each utterance, none of them empty; None is the LM's own for all.
    """

    def __init__(self, lm: RowLm, num_utterances: int, prefixes: Sequence[Int32] | None = None) -> None:
        self._lm = lm
        self._prefixes = [lm.prefix] * num_utterances if prefixes is None else list(prefixes)
        self.reasons: dict[int, str] = {}
        """Utterance -> why it has no LM."""
        for u, prefix in enumerate(prefixes or ()):
            if reason := self._too_long(len(prefix)):
                self.reasons[u], self._prefixes[u] = reason, lm.prefix
        self._texts = [_Texts(session) for session in lm.scorer.open(self._prefixes)]
        self._going = list(range(num_utterances))
        self._rows: list[list[int]] = [[0] for _ in self._texts]
        self._shared = np.flatnonzero(lm.tokens >= 0)

    @property
    def num_rows(self) -> list[int]:
        """Rows of each utterance that goes on, 0 where it has no LM."""
        return [0 if u in self.reasons else len(rows) for u, rows in zip(self._going, self._rows, strict=True)]

    def advance(self, steps: Steps) -> None:
        """As `RowFusion.advance`."""
        for place, (tokens, parents) in enumerate(steps):
            texts, rows = self._texts[self._going[place]], self._rows[place]
            self._rows[place] = [texts.below(rows[row], token) for token, row in zip(tokens, parents, strict=True)]

    def keep(self, utterances: Sequence[int]) -> None:
        """As `RowFusion.keep`."""
        self._going = [self._going[place] for place in utterances]
        self._rows = [self._rows[place] for place in utterances]

    def log_probs(self, asked_UB: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """Next-token log-probs of rows.

        Args:
            asked_UB: Rows that are asked for, of utterances that go on; padding is not asked for.

        Returns:
            (U, B, V) float32, -inf for tokens that are not shared and for rows that were not asked for; and (U, B)
            which rows have a distribution, fewer than were asked for where an utterance cannot be served.
        """
        found_UBV = np.full((*asked_UB.shape, len(self._lm.tokens)), -np.inf, np.float32)
        given_UB = np.zeros_like(asked_UB)
        places = [p for p, u in enumerate(self._going) if asked_UB[p].any() and u not in self.reasons]
        wanted = {self._going[p]: [self._rows[p][row] for row in np.flatnonzero(asked_UB[p])] for p in places}
        self._extend(wanted)
        places = [p for p in places if self._going[p] not in self.reasons]
        if not places:
            return found_UBV, given_UB
        own = [self._texts[self._going[p]] for p in places]
        nodes = [[texts.nodes[text] for text in wanted[self._going[p]]] for texts, p in zip(own, places, strict=True)]
        following = self._lm.scorer.next_log_probs(
            [texts.session for texts in own],
            [np.array(one, np.int32) for one in nodes],
            [self._lm.tokens[self._shared]] * len(own),
        )
        for place, log_probs_RV in zip(places, following, strict=True):
            if not np.isfinite(log_probs_RV).all():
                self.reasons[self._going[place]] = _not_finite(log_probs_RV)
                continue
            self._lm.costs.count("lm_rows", len(log_probs_RV))
            found_UBV[place][np.ix_(np.flatnonzero(asked_UB[place]), self._shared)] = log_probs_RV
            given_UB[place] = asked_UB[place]
        return found_UBV, given_UB

    def scores(self, found: Sequence[Sequence[Any]]) -> list[list[tuple[Score, ...]]]:
        """The LM's score of every hypothesis, and of its end apart; what was not asked in the search is asked now.

        Args:
            found: Per utterance its `LabelHypothesis`.

        Returns:
            Per utterance and hypothesis two scores, none where the utterance could not be served.
        """
        ends = [[self._text_of(u, one.token_ids.tolist()) for one in own] for u, own in enumerate(found)]
        self._extend({u: [text for text in own if text] for u, own in enumerate(ends) if u not in self.reasons})
        self._end_of_nothing([u for u, own in enumerate(ends) if 0 in own and u not in self.reasons])
        return [
            [() if u in self.reasons else self._scores(self._texts[u], text) for text in own]
            for u, own in enumerate(ends)
        ]

    def close(self) -> None:
        """Frees the sessions."""
        self._lm.scorer.close([texts.session for texts in self._texts])

    def _scores(self, texts: _Texts, text: int) -> tuple[Score, ...]:
        source = self._lm.source
        return (
            Score(source=source, kind="log_prob", log_prob=texts.sums[text]),
            Score(source=f"{source}/eos", kind="log_prob", log_prob=texts.ends[text]),
        )

    def _text_of(self, utterance: int, tokens: Sequence[int]) -> int:
        text = 0
        for token in tokens:
            text = self._texts[utterance].below(text, token)
        return text

    def _end_of_nothing(self, utterances: Sequence[int]) -> None:
        """The end of an empty text, which stands below no node of ours."""
        if not utterances:
            return
        own = [self._texts[u] for u in utterances]
        top, end = np.full(1, _PREFIX, np.int32), np.array([self._lm.eos_token_id], np.int32)
        found = self._lm.scorer.next_log_probs([t.session for t in own], [top] * len(own), [end] * len(own))
        for u, texts, log_probs in zip(utterances, own, found, strict=True):
            texts.ends[0] = float(log_probs[0, 0])
            if not np.isfinite(texts.ends[0]):
                self.reasons[u] = _not_finite(log_probs)

    def _extend(self, wanted: dict[int, list[int]]) -> None:
        """Gives texts their nodes, all utterances in one call."""
        lm, asks = self._lm, {}
        for u, own in wanted.items():
            texts = self._texts[u]
            new = texts.unasked(own)
            longest = len(self._prefixes[u]) + max((texts.depths[text] for text in new), default=0)
            if reason := self._too_long(longest):
                self.reasons[u] = reason
            elif new:
                asks[u] = new
        if not asks:
            return
        nodes = [self._nodes(self._texts[u], new) for u, new in asks.items()]
        answers = lm.scorer.extend([self._texts[u].session for u in asks], nodes)
        for (u, new), (log_probs, ends) in zip(asks.items(), answers, strict=True):
            texts = self._texts[u]
            if not (np.isfinite(log_probs).all() and np.isfinite(ends).all()):
                self.reasons[u] = _not_finite(np.concatenate([log_probs, ends]))
                continue
            for text, log_prob, end in zip(new, log_probs.tolist(), ends.tolist(), strict=True):
                texts.sums[text] = texts.sums[texts.parents[text]] + log_prob
                texts.ends[text] = end

    def _too_long(self, num_tokens: int) -> str | None:
        limit = self._lm.max_positions
        fits = limit is None or num_tokens <= limit
        return None if fits else f"{num_tokens} tokens with the prefix, but the model takes {limit}"

    def _nodes(self, texts: _Texts, new: Sequence[int]) -> TreeNodes:
        for text in new:
            texts.nodes[text] = texts.num_nodes
            texts.num_nodes += 1
        return TreeNodes(
            self._lm.tokens[[texts.tokens[text] for text in new]],
            np.array([texts.nodes[texts.parents[text]] for text in new], np.int32),
        )


def _not_finite(values: npt.NDArray[Any]) -> str:
    return f"the model gave a log-prob of {values[~np.isfinite(values)][0]}; try dtype float32"
