"""The heads of phrase copy: one that needs no training, and the trained one of `models.copy_head`.

Letters: R rows, N phrases, V vocabulary, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from ctxasr_ray.search.label_beam import Float
from ctxasr_ray.search.phrase_copy import Ids, Phrase, RowsNow
from ctxasr_ray.token_tree import Int32

if TYPE_CHECKING:
    import torch

    from ctxasr_ray.models.copy_head import CopyHead
    from ctxasr_ray.models.seq2seq import Seq2SeqModel

_RIVALS: Final = 8
"""The attention's best tokens, among which the best rival of the joint score is looked for."""
_FORCED: Final = 6
"""Phrases that one row forces at most, those whose first token is best."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ForcedPhrases:
    """The training-free head: each phrase forced through the recogniser, against its best rival token.

    ln a is a softmax over (joint log-prob of the phrase's tokens + reward * their number) / temperature and, for
    "none", (joint log-prob of the best token + reward) / temperature; joint is that of the search, CTC share included.
    A name that the recogniser has never seen is spelled at a cost per token, which `reward` makes up for, as in
    `search.ctc_spotting`. At most `_FORCED` phrases whose first token is within `first_within` nats of the best are
    forced; others have -inf.

    Source: ours, for recognisers that have no copy head.
    """

    model: "Seq2SeqModel"
    prompt: Int32
    phrases: Sequence[Sequence[Phrase]]
    """Per utterance."""
    ctc_weight: float
    """Of the search."""
    temperature: float
    """Nats."""
    reward: float
    """Nats per token."""
    first_within: float
    """Nats of the joint score."""

    def log_probs(self, now: RowsNow) -> Float:
        """As `phrase_copy.PhraseHead.log_probs`."""
        phrases = self.phrases[now.utterance]
        best = np.argpartition(-now.log_probs, min(_RIVALS, now.log_probs.shape[1] - 1), axis=1)[:, :_RIVALS]
        rivals_R = self._joint(now, best).max(axis=1)
        firsts_RN = self._joint(now, np.tile([phrase[0] for phrase in phrases], (len(best), 1)))
        tried_RN = firsts_RN >= rivals_R[:, None] - self.first_within
        if len(phrases) > _FORCED:
            tried_RN &= firsts_RN >= np.partition(firsts_RN, -_FORCED, axis=1)[:, -_FORCED, None]
        room = self.model.max_positions - len(self.prompt) - len(now.texts[0])
        tried_RN &= np.array([len(phrase) <= room for phrase in phrases])
        rows, which = np.nonzero(tried_RN)
        logits = np.full((len(best), len(phrases) + 1), -np.inf)
        logits[:, -1] = (rivals_R + self.reward) / self.temperature
        if len(rows):
            asked, above = [phrases[n] for n in which], now.rows[rows]
            firsts = now.log_probs[rows, [phrase[0] for phrase in asked]]
            sums = (1 - self.ctc_weight) * np.nan_to_num(firsts + now.ahead(above.tolist(), asked), nan=-np.inf)
            if now.prefixes is not None:
                sums += self.ctc_weight * now.prefixes.phrases(above, asked)
            lengths = np.array([len(phrase) for phrase in asked])
            logits[rows, which] = (sums + self.reward * lengths) / self.temperature
        return _log_softmax(logits)

    def _joint(self, now: RowsNow, tokens_RC: Ids) -> Float:
        """(R, C) what the search adds for one more token."""
        own: Float = np.take_along_axis(now.log_probs, tokens_RC, axis=1)
        if now.prefixes is None:
            return own
        every = np.zeros((len(now.prefixes.totals), tokens_RC.shape[1]), np.int64)
        every[now.rows] = tokens_RC
        heard = (now.prefixes.extended(every) - now.prefixes.totals[:, None])[now.rows]
        ended = (now.prefixes.ended() - now.prefixes.totals)[now.rows, None]
        heard = np.where(tokens_RC == self.model.tokens.eos_id, ended, heard)
        joint: Float = (1 - self.ctc_weight) * own + self.ctc_weight * heard
        return joint


class TrainedPhrases:
    """The trained head on the recogniser's decoder states.

    Args:
        head: Loaded.
        states: (T, D) of each utterance's encoder, without padding.
        phrases: Per utterance.
        temperature: What the head's logits are divided by.
    """

    def __init__(
        self,
        head: "CopyHead",
        states: "Sequence[torch.Tensor]",
        phrases: Sequence[Sequence[Phrase]],
        temperature: float,
    ) -> None:
        import torch

        self._head, self._temperature = head, temperature
        self._spotted = []
        with torch.inference_mode():
            for one, own in zip(states, phrases, strict=True):
                heard = head.hear(one[None].float())
                listed = head.phrases([np.array(phrase, np.int32) for phrase in own]) if own else None
                self._spotted.append(None if listed is None else (heard, head.spot(heard, listed), listed))

    def log_probs(self, now: RowsNow) -> Float:
        """As `phrase_copy.PhraseHead.log_probs`."""
        import torch

        spotted = self._spotted[now.utterance]
        assert spotted is not None, "an utterance without phrases is not asked about"
        with torch.inference_mode():
            logits = self._head.recogniser_logits(now.states[None].float(), *spotted)
            found: Float = (logits[0].double() / self._temperature).log_softmax(-1).cpu().numpy()
        return found


def _log_softmax(logits: Float) -> Float:
    shifted = logits - logits.max(axis=1, keepdims=True)
    found: Float = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return found
