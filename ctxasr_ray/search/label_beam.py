"""The beam of one utterance in a label-synchronous search: which continuations of which rows go on, and which end.

All rows are equally deep; letters and rules are those of `search.label_synchronous`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelHypothesis:
    """A finished token sequence, scores in nats.

    Args:
        token_ids: (L,) int32, without prompt and end.
        token_log_probs: (L,) float64, temperature 1, full vocabulary.
        token_entropies: (L,) float64, of the distribution that each token was chosen from.
        eos_log_prob: Of the end behind the tokens, whether or not the search ended there.
        ended: Whether the search ended it; otherwise it reached `max_tokens`.
        score: What it was ranked by, CTC included; without the end where it did not end.
        copied: First token and token behind the last of every phrase that was copied whole.
    """

    token_ids: npt.NDArray[np.int32]
    token_log_probs: Float
    token_entropies: Float
    eos_log_prob: float
    ended: bool
    score: float
    copied: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class _Path:
    """A beam row: its tokens so far with log-prob and entropy each, and what is left of the phrase that it copies."""

    tokens: tuple[int, ...]
    log_probs: tuple[float, ...]
    entropies: tuple[float, ...]
    total: float
    rest: tuple[int, ...] = ()
    copied: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Candidates:
    """Continuations of one utterance's beams, and what ends and uncertainty cost there.

    Args:
        tokens: (B, C) ids, best first in each row; C is at least 2B or the vocabulary.
        log_probs: (B, C) float64 of the attention; -inf where suppressed.
        gains: (B, C) float64, what each adds to the score that ranks; the log_probs themselves without CTC and fusion.
        eos_log_probs: (B,) float64, whether suppressed or not.
        entropies: (B,) float64.
        copies: (row, column) -> the tokens that must follow, where a continuation begins the copy of a phrase.
    """

    tokens: npt.NDArray[np.int64]
    log_probs: Float
    gains: Float
    eos_log_probs: Float
    entropies: Float
    copies: Mapping[tuple[int, int], tuple[int, ...]] = field(default_factory=dict)


class LabelBeam:
    """The beam of one utterance.

    Args:
        beam_size: B, also the length of the finished list.
        max_tokens: Longest hypothesis.
        eos_id: The end.
        length_penalty: Power of the length that divides scores.
        max_gain: Most by which a token raises a score; 0 for probabilities.
    """

    done: bool = False
    """Whether `finished` is final."""

    def __init__(
        self, beam_size: int, max_tokens: int, eos_id: int, length_penalty: float = 0.0, max_gain: float = 0.0
    ) -> None:
        self._size, self._max_tokens, self._max_gain = beam_size, max_tokens, max_gain
        self._eos_id, self._penalty = eos_id, length_penalty
        self._paths = [_Path((), (), (), 0.0)]
        self._finished: list[LabelHypothesis] = []

    @property
    def finished(self) -> list[LabelHypothesis]:
        """At most B hypotheses, best first."""
        return list(self._finished)

    def repeats(self, size: int) -> list[tuple[int, int]]:
        """(row, token) of every continuation that would write a run of `size` tokens a second time.

        Args:
            size: At least 1.

        Reference:
            `NoRepeatNGramLogitsProcessor` of transformers, on the text alone, without the prompt.
        """
        found = []
        for row, path in enumerate(self._paths):
            last = path.tokens[len(path.tokens) - size + 1 :]
            for start in range(len(path.tokens) - size + 1):
                if path.tokens[start : start + size - 1] == last:
                    found.append((row, path.tokens[start + size - 1]))
        return found

    @property
    def forced(self) -> list[int]:
        """The token that each row must write next, since it copies a phrase; -1 where it may choose."""
        return [path.rest[0] if path.rest else -1 for path in self._paths]

    @property
    def texts(self) -> list[tuple[int, ...]]:
        """The tokens of each row."""
        return [path.tokens for path in self._paths]

    def advance(self, candidates: Candidates) -> tuple[list[int], list[int]]:
        """Takes one step.

        Args:
            candidates: Of the rows that the last step returned, in their order; of one row at first.

        Returns:
            Tokens of the rows that go on and the row each comes from; empty when `done`.
        """
        if self._paths and len(self._paths[0].tokens) == self._max_tokens:
            self._finish_unended(candidates)
            return [], []
        totals = np.array([path.total for path in self._paths])
        sums = (totals[:, None] + candidates.gains[: len(totals)]).ravel()
        order, scores = np.argsort(-sums, kind="stable").tolist(), sums.tolist()
        width, written_tokens = candidates.tokens.shape[1], candidates.tokens.tolist()
        tokens: list[int] = []
        parents: list[int] = []
        paths: list[_Path] = []
        written: set[tuple[tuple[int, ...], tuple[int, ...]]] = set()
        rank = -1
        for place in order:
            row, column = divmod(place, width)
            if not math.isfinite(scores[place]) or len(paths) == self._size or rank + 1 == 2 * self._size:
                break
            token = written_tokens[row][column]
            path = self._paths[row]
            rest = candidates.copies.get((row, column), path.rest[1:])
            text = (*path.tokens, token)
            if (text, rest) in written:
                continue  # spelled and copied, the same text: the better one stays
            written.add((text, rest))
            rank += 1
            if token == self._eos_id:
                if rank < self._size:
                    self._finish(self._paths[row], float(candidates.eos_log_probs[row]), total=scores[place])
                continue
            tokens.append(token)
            parents.append(row)
            copied, depth = path.copied, len(path.tokens)
            if (row, column) in candidates.copies:
                copied = (*copied, (depth, depth + 1 + len(rest)))
            paths.append(
                _Path(
                    text,
                    (*path.log_probs, float(candidates.log_probs[row, column])),
                    (*path.entropies, float(candidates.entropies[row])),
                    scores[place],
                    rest,
                    copied,
                )
            )
        self._paths = paths
        self.done = not paths or self._nothing_to_gain()
        return ([], []) if self.done else (tokens, parents)

    def _nothing_to_gain(self) -> bool:
        if len(self._finished) < self._size:
            return False
        depth, total = len(self._paths[0].tokens), self._paths[0].total
        further = range(self._max_tokens - depth + 1) if self._penalty or self._max_gain else (0,)
        best = max((total + self._max_gain * more) / (depth + 1 + more) ** self._penalty for more in further)
        return bool(best <= self._finished[-1].score)

    def _finish_unended(self, candidates: Candidates) -> None:
        for row, path in enumerate(self._paths):
            self._finish(path, float(candidates.eos_log_probs[row]))
        self._paths, self.done = [], True

    def _finish(self, path: _Path, eos_log_prob: float, *, total: float | None = None) -> None:
        """Keeps a path that ended with a total, or that did not end."""
        ended = total is not None
        total = path.total if total is None else total
        self._finished.append(
            LabelHypothesis(
                token_ids=np.array(path.tokens, np.int32),
                token_log_probs=np.array(path.log_probs),
                token_entropies=np.array(path.entropies),
                eos_log_prob=eos_log_prob,
                ended=ended,
                score=total / max(1, len(path.tokens) + ended) ** self._penalty,
                copied=path.copied,
            )
        )
        self._finished.sort(key=lambda h: -h.score)
        del self._finished[self._size :]
