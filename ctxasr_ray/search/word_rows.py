"""A language model with a tokenizer of its own inside a label-synchronous search: rows are scored up to whole words.

As in `search.lm_fusion` a trigger says when rows are scored, and up to which word. A row's share of the sum is
lm_weight * log P_LM(words that are scored) + length_bonus * complete words: the bonus waits for nobody, so that no
token raises a score by more than the words that it completes. A row may end where its own end is near its best token;
its open word and the end of sequence are scored first.
Letters: U utterances, B rows of a beam, V vocabulary of the recogniser.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ctxasr_ray.models.word_boundaries import WordBoundaries
from ctxasr_ray.nbest import Score
from ctxasr_ray.search.fusion import Answer, FusionError, Work
from ctxasr_ray.search.label_fusion import Ranked, Steps
from ctxasr_ray.search.lm_fusion import Trigger
from ctxasr_ray.search.lm_texts import FusedLm, LmTexts
from ctxasr_ray.search.lm_units import Words

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class _Row:
    """A row of a beam."""

    tokens: tuple[int, ...] = ()
    words: Words = ()
    """The complete ones."""
    text: int = 0
    """Words of it that are scored."""
    included: float = 0.0
    """What its score holds of the language model and the bonus."""


@dataclass(slots=True)
class _Utterance:
    session: int
    texts: LmTexts
    rows: list[_Row] = field(default_factory=lambda: [_Row()])
    finals: dict[tuple[int, ...], int] = field(default_factory=dict)
    """Text of each sequence of tokens that might have ended."""
    shortest: int = 0
    work: Work = field(default_factory=Work)


class WordRows:
    """One language model beside the rows of some utterances; a `label_fusion.RowFusion`.

    An utterance that it cannot serve gets a reason and is never asked about again.

    Args:
        lm: The model.
        boundaries: Of the recogniser's tokens.
        trigger: When to score; its frames are tokens here.
        eos_id: The recogniser's end.
        lm_weight: Of log P_LM, end of sequence included.
        length_bonus: Nats per complete word.
        end_within: Nats below a row's best token within which its end is searched, and asked about.
        num_utterances: U.
    """

    def __init__(
        self,
        lm: FusedLm,
        boundaries: WordBoundaries,
        trigger: Trigger,
        *,
        eos_id: int,
        lm_weight: float,
        length_bonus: float,
        end_within: float,
        num_utterances: int,
    ) -> None:
        self._lm, self._boundaries, self._trigger, self._eos_id = lm, boundaries, trigger, eos_id
        self._weight, self._bonus, self._end_within = lm_weight, length_bonus, end_within
        sessions = lm.scorer.open([lm.prefix] * num_utterances)
        self._utterances = [_Utterance(session, LmTexts(lm)) for session in sessions]
        self._going = list(range(num_utterances))
        self._step = 0
        self.reasons: dict[int, str] = {}
        """Utterance -> why it has no LM."""

    @property
    def max_gain(self) -> float:
        """The bonus of the word that a token completes, and of the one that an end does."""
        return max(0.0, 2 * self._bonus)

    @property
    def work(self) -> list[Work]:
        """What each utterance asked so far."""
        return [one.work for one in self._utterances]

    def ranked(self, log_probs_UBV: "torch.Tensor") -> Ranked:
        """As `label_fusion.RowFusion`: what a row has earned or paid since its last ranking, and the price of its end.

        Utterances that the LM cannot serve stay as they are.
        """
        import torch

        near_UB = self._near_end(log_probs_UBV)
        ends = self._ended(near_UB)
        added_UB1 = np.zeros((*near_UB.shape, 1), np.float32)
        end_UB = np.zeros(near_UB.shape, np.float32)
        for place, u in enumerate(self._going):
            if u in self.reasons:
                continue
            own = self._utterances[u]
            for b, row in enumerate(own.rows):
                now = self._value(own.texts, row.text, len(row.words))
                added_UB1[place, b] = now - row.included
                end = ends[place][b]
                end_UB[place, b] = -np.inf if end is None else end - row.included
                own.rows[b] = _Row(row.tokens, row.words, row.text, now)
        added_UBV = torch.from_numpy(added_UB1).to(log_probs_UBV).expand(log_probs_UBV.shape).clone()
        added_UBV[..., self._eos_id] = torch.from_numpy(end_UB).to(log_probs_UBV)
        return Ranked(log_probs_UBV, added_UBV)

    def advance(self, steps: Steps) -> None:
        """As `label_fusion.RowFusion`; scores rows if the trigger says so."""
        self._step += 1
        for u, (tokens, parents) in zip(self._going, steps, strict=True):
            rows = self._utterances[u].rows
            self._utterances[u].rows = [
                self._below(rows[row], token) for token, row in zip(tokens, parents, strict=True)
            ]
        due = []
        for u in self._going:
            own = self._utterances[u]
            fewest = min(len(row.words) for row in own.rows)
            if u not in self.reasons and self._trigger.is_due(self._step, fewest, own.shortest):
                own.shortest = fewest
                due.append(u)
        self._guarded(due, self._to_targets)
        self._ask(due)

    def keep(self, utterances: Sequence[int]) -> None:
        """As `label_fusion.RowFusion`."""
        self._going = [self._going[place] for place in utterances]

    def scores(self, found: Sequence[Sequence[Any]]) -> list[list[tuple[Score, ...]]]:
        """The LM's score of every hypothesis, and of its end apart; none where the utterance could not be served.

        Args:
            found: Per utterance its `LabelHypothesis`.
        """
        wanted = [[tuple(one.token_ids.tolist()) for one in own] for own in found]

        def missing(u: int) -> None:
            own = self._utterances[u]
            for tokens in wanted[u]:
                if tokens not in own.finals:
                    own.finals[tokens] = self._final(own, tokens, 0)

        served = [u for u in range(len(found)) if u not in self.reasons]
        self._guarded(served, missing)
        self._ask(served)
        return [
            [() if u in self.reasons else self._scores(u, tokens) for tokens in own] for u, own in enumerate(wanted)
        ]

    def close(self) -> None:
        """Frees the sessions."""
        self._lm.scorer.close([one.session for one in self._utterances])

    def _near_end(self, log_probs_UBV: "torch.Tensor") -> npt.NDArray[np.bool_]:
        """(U, B) rows whose end is searched."""
        near = log_probs_UBV[..., self._eos_id] >= log_probs_UBV.amax(-1) - self._end_within
        found: npt.NDArray[np.bool_] = near.cpu().numpy()
        return found

    def _ended(self, near_UB: npt.NDArray[np.bool_]) -> list[list[float | None]]:
        """Per utterance and row what a whole text is worth, None where its end is not searched."""

        def finals(u: int) -> None:
            own = self._utterances[u]
            for b, row in enumerate(own.rows):
                if near_UB[self._going.index(u), b] and row.tokens not in own.finals:
                    own.finals[row.tokens] = self._final(own, row.tokens, row.text)

        self._guarded([u for u in self._going if u not in self.reasons], finals)
        self._ask([u for u in self._going if u not in self.reasons])
        values: list[list[float | None]] = []
        for place, u in enumerate(self._going):
            own = self._utterances[u]
            known = [row.tokens if near_UB[place, b] else None for b, row in enumerate(own.rows)]
            values.append([None if u in self.reasons or key is None else self._end(own, key) for key in known])
        return values

    def _end(self, own: _Utterance, tokens: tuple[int, ...]) -> float:
        text = own.finals[tokens]
        return self._value(own.texts, text, len(own.texts.words[text])) + self._weight * (own.texts.eos(text) or 0.0)

    def _final(self, own: _Utterance, tokens: tuple[int, ...], text: int) -> int:
        words = self._boundaries.words(tokens)
        final = own.texts.text(text, words[len(own.texts.words[text]) :])
        if final == 0:
            own.texts.want_eos_of_nothing()
        own.work.tokens_flat += len(self._lm.prefix) + own.texts.num_tokens[final]
        return final

    def _below(self, row: _Row, token: int) -> _Row:
        tokens = (*row.tokens, token)
        return _Row(tokens, self._boundaries.complete_words(tokens)[0], row.text, row.included)

    def _to_targets(self, u: int) -> None:
        """Names the texts up to which rows are to be scored."""
        own = self._utterances[u]
        limit = None if self._trigger.scope == "own_last_word" else own.shortest
        moved = []
        for row in own.rows:
            new = row.words[len(own.texts.words[row.text]) : limit]
            text = own.texts.text(row.text, new)
            moved.append(_Row(row.tokens, row.words, text, row.included))
        changed = {new.text for new, old in zip(moved, own.rows, strict=True) if new.text != old.text}
        own.work.tokens_flat += sum(len(self._lm.prefix) + own.texts.num_tokens[text] for text in changed)
        own.work.triggers += bool(changed)
        own.rows = moved

    def _guarded(self, utterances: Iterable[int], what: Any) -> None:
        """Does something for utterances; one that the LM cannot serve gets its reason."""
        for u in utterances:
            try:
                what(u)
            except FusionError as fault:
                self.reasons[u] = str(fault)

    def _ask(self, utterances: Sequence[int]) -> None:
        """Scores what waits, all utterances in one call."""
        waiting = {}
        for u in utterances:
            if u not in self.reasons and (nodes := self._utterances[u].texts.nodes()) is not None:
                waiting[u] = nodes
        if not waiting:
            return
        self._lm.costs.count("lm_asks", len(waiting))
        sessions = [self._utterances[u].session for u in waiting]
        answers = self._lm.scorer.extend(sessions, list(waiting.values()))
        received = dict(zip(waiting, answers, strict=True))
        for u, nodes in waiting.items():
            own = self._utterances[u]
            own.work.add(Work(llm_calls=1, nodes=len(nodes.tokens)))
            own.work.kv_bytes = own.texts.kv_bytes  # nothing is given up
        self._guarded(received, lambda u: self._utterances[u].texts.receive(Answer(*received[u], None)))

    def _value(self, texts: LmTexts, text: int, num_words: int) -> float:
        return self._weight * texts.log_probs[text] + self._bonus * num_words

    def _scores(self, u: int, tokens: tuple[int, ...]) -> tuple[Score, ...]:
        own, source = self._utterances[u], self._lm.source
        text = own.finals[tokens]
        score = Score(source=source, kind="log_prob", log_prob=own.texts.log_probs[text])
        eos = own.texts.eos(text)
        if eos is None:
            return (score,)
        return (score, Score(source=f"{source}/eos", kind="log_prob", log_prob=eos))
