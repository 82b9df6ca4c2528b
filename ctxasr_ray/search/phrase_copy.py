"""Phrases that a row of a label-synchronous search may copy whole: the phrase grain of multi-grained fusion.

At every step a head says for each row ln a over the phrases of its utterance and "none". Where no phrase has more than
`confidence`, "none" gets it all and the search is as without. Elsewhere a token v ranks by ln a_none + ln p(v), and a
phrase k by ln a_k, once, for all of its tokens.

How copied and spelled hypotheses compare: always at equal numbers of tokens. A row that copies writes the phrase's
tokens one a step, forced and at no further cost, so every cache and every other model's state goes on token by token,
as if they had been spelled; the CTC share of a joint search is paid by each of them as by any token. So a copied phrase
saves its spelling's attention cost, which favours copying, the more the longer the phrase: the filter is what guards
against it. Of equal texts, spelled and copied, the better one stays.

Reference:
    Zhou and Li 2025, arXiv:2507.12252 (phrase grain, known to us from prose); the distribution over tokens and phrases,
    the filter and the waiting are those of the authors' CopyNE, arXiv:2305.12839. That a row waits by being forced, the
    CTC share and the merging are ours.

Letters: U utterances, B rows, N phrases, M offers of a row, C other candidates, V vocabulary, D width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np
import numpy.typing as npt

from ctxasr_ray.search.label_beam import Float, LabelBeam
from ctxasr_ray.stage import Costs

if TYPE_CHECKING:
    import torch

    from ctxasr_ray.models.seq2seq_decoding import Decoding, LooksAhead
    from ctxasr_ray.search.ctc_prefix_scores import CtcPrefixScores

MAX_OFFERS: Final = 4
"""Phrases that one row may begin in one step, most probable first; with the filter at 0.9 one has nearly all."""
MAX_BEGINNING: Final = 4
"""Rows of an utterance, the best ones, that may begin a phrase in one step: forcing phrases behind all 16 rows of the
showcase's beam costs three times as much."""
Ids = npt.NDArray[np.int64]
Phrase = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RowsNow:
    """The rows of one utterance that may choose.

    Args:
        utterance: Its place among those that the search began with.
        texts: R token sequences.
        log_probs: (R, V) attention's next-token log-probs.
        states: (R, D) the decoder's states behind them.
        prefixes: CTC scores of the utterance's rows, None without.
        rows: (R,) their places among all rows of the utterance.
        ahead: (rows, phrases) -> ln P of each phrase's tokens behind its first one.
    """

    utterance: int
    texts: Sequence[tuple[int, ...]]
    log_probs: Float
    states: "torch.Tensor"
    prefixes: "CtcPrefixScores | None"
    rows: Ids
    ahead: Callable[[Sequence[int], Sequence[Phrase]], Float]


class PhraseHead(Protocol):
    """Says which phrase starts here."""

    def log_probs(self, now: RowsNow) -> Float:
        """(R, N + 1) ln a of the utterance's phrases and, last, of "none"; each row's probabilities sum to 1."""
        ...


@dataclass(frozen=True, slots=True)
class Offers:
    """What the rows of one utterance may write besides single tokens; padding has -inf.

    Args:
        tokens: (B, M) first token of each phrase; of a row that copies already, the token that must come.
        log_probs: (B, M) ln a of each phrase; 0 for a token that must come.
        rests: Per row and offer the tokens that follow, None where a copy goes on.
        none: (B,) what single tokens pay; -inf where a copy goes on.
    """

    tokens: Ids
    log_probs: Float
    rests: Sequence[Sequence[Phrase | None]]
    none: Float

    def beside(
        self, tokens_BC: Ids, written_BC: Float, ranked_BC: Float, written_BM: Float, added_BC: Float | None
    ) -> tuple[Ids, Float, Float, Float | None]:
        """Other candidates and, behind them, the offers: tokens, the recogniser's log-probs, what ranks, what is added.

        Args:
            tokens_BC: Of single tokens, as are the next two.
            written_BC: The recogniser's own log-probs.
            ranked_BC: What they rank by.
            written_BM: The recogniser's own log-probs of the offers' tokens.
            added_BC: What other fusions add to single tokens; they add nothing to offers.
        """
        ranked = np.concatenate([ranked_BC + self.none[:, None], self.log_probs], axis=1)
        added = None if added_BC is None else np.concatenate([added_BC, np.zeros_like(self.log_probs)], axis=1)
        tokens, written = np.concatenate([tokens_BC, self.tokens], axis=1), [written_BC, written_BM]
        return tokens, np.concatenate(written, axis=1), ranked, added

    def copies(self, width: int) -> dict[tuple[int, int], Phrase]:
        """(row, column) of each phrase that begins, and what follows, where offers stand behind `width` candidates."""
        return {
            (row, width + column): rest
            for row, own in enumerate(self.rests)
            for column, rest in enumerate(own)
            if rest is not None
        }


class PhraseCopy:
    """Copying in the search of some utterances.

    Args:
        head: Begun on these utterances.
        phrases: Per utterance its phrases as tokens, none of them empty; an utterance without any copies nothing.
        confidence: Filter in [0, 1]: a phrase is copied only where some phrase has more. 1 never copies.
        costs: Counts `phrases_offered`.
    """

    def __init__(
        self, head: PhraseHead, phrases: Sequence[Sequence[Phrase]], *, confidence: float, costs: Costs | None = None
    ) -> None:
        self._head, self._phrases, self._confidence = head, phrases, confidence
        self._costs = costs or Costs()
        self._going = list(range(len(phrases)))

    def offers(
        self,
        beams: Sequence[LabelBeam],
        logits_UBV: "torch.Tensor",
        decoding: "Decoding",
        prefixes: "Sequence[CtcPrefixScores | None]",
        max_tokens: int,
    ) -> list[Offers]:
        """What rows may write besides single tokens.

        Args:
            beams: Of the utterances that go on.
            logits_UBV: Of the recogniser.
            decoding: Of the recogniser, behind the rows of the beams; it looks ahead.
            prefixes: CTC scores of their rows; None without a CTC share.
            max_tokens: Longest text; a phrase that would pass it is not offered.
        """
        from ctxasr_ray.models.seq2seq_decoding import LooksAhead

        assert isinstance(decoding, LooksAhead), "only recognisers are searched with phrases"
        return [
            self._of(place, beam, logits_UBV[place], decoding, own, max_tokens)
            for place, (beam, own) in enumerate(zip(beams, prefixes, strict=True))
        ]

    def keep(self, utterances: Sequence[int]) -> None:
        """Says which utterances go on, by their places among those that did."""
        self._going = [self._going[place] for place in utterances]

    def _of(
        self,
        place: int,
        beam: LabelBeam,
        logits_BV: "torch.Tensor",
        decoding: "LooksAhead",
        prefixes: "CtcPrefixScores | None",
        max_tokens: int,
    ) -> Offers:
        texts, forced = beam.texts, beam.forced
        made: list[list[tuple[float, int, Phrase | None]]] = [[] for _ in range(len(logits_BV))]
        none_B = np.zeros(len(logits_BV))
        for row, token in enumerate(forced):
            if token >= 0:
                made[row], none_B[row] = [(0.0, token, None)], -np.inf
        utterance = self._going[place]
        phrases = self._phrases[utterance]
        free = [row for row, token in enumerate(forced) if token < 0][:MAX_BEGINNING]
        if phrases and free and len(texts[0]) < max_tokens:
            log_probs_RV = logits_BV[free].log_softmax(-1)
            now = RowsNow(
                utterance,
                [texts[row] for row in free],
                log_probs_RV.double().cpu().numpy(),
                decoding.last_states[place][free],
                prefixes,
                np.array(free),
                partial(decoding.ahead, place),
            )
            fits = np.array([len(texts[0]) + len(phrase) <= max_tokens for phrase in phrases])
            for row, log_probs in zip(free, self._head.log_probs(now), strict=True):
                own = np.where(fits, log_probs[:-1], -np.inf)
                if not np.exp(own.max()) > self._confidence:
                    continue
                none_B[row] = log_probs[-1]
                best = np.argsort(-own, kind="stable")[:MAX_OFFERS]
                made[row] = [(float(own[n]), phrases[n][0], tuple(phrases[n][1:])) for n in best if np.isfinite(own[n])]
                self._costs.count("phrases_offered", len(made[row]))
        return _offers(made, none_B)


def _offers(made: Sequence[Sequence[tuple[float, int, Phrase | None]]], none_B: Float) -> Offers:
    widest = max(len(own) for own in made)
    tokens_BM = np.zeros((len(made), widest), np.int64)
    log_probs_BM = np.full((len(made), widest), -np.inf)
    for row, own in enumerate(made):
        for column, (log_prob, token, _) in enumerate(own):
            tokens_BM[row, column], log_probs_BM[row, column] = token, log_prob
    return Offers(tokens_BM, log_probs_BM, [[rest for _, _, rest in own] for own in made], none_B)
