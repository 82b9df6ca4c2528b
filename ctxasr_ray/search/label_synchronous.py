"""Label-synchronous beam search over an attention decoder: N-best lists with the evidence of every token.

All beams of an utterance are equally deep. At each step the 2B best continuations are ranked: an end among the first B
is a finished hypothesis, the first B others go on. It stops when no beam that goes on can enter the list of the B best
finished ones, which loses nothing, since a score only falls with every token. At `max_tokens` the beams that are left
are finished without their end. These are the rules of `GenerationMixin.generate(early_stopping="never")`.

A hypothesis' score is the sum of its tokens' log-probs and its end's, over length ** length_penalty (the end counts);
the penalty is 0 unless the config says so. Log-probs are over the full vocabulary; what is suppressed is not searched,
and nothing is renormalised for it.

With a CTC head, what ranks is (1 - ctc_weight) * attention + ctc_weight * ln P_ctc(all texts that begin so); an ended
text has ln P_ctc(the whole text). Candidates are the attention's best `PRE_PRUNED` * B of each beam.

A `label_fusion.RowFusion` changes what ranks, and only that: it may stand in the attention's place, and add to the
whole. The log-probs and entropies of a hypothesis stay the recogniser's own. A `phrase_copy.PhraseCopy` adds whole
phrases to what a row may write next.

Reference:
    Watanabe et al. 2017, Hybrid CTC/Attention architecture for end-to-end speech recognition, IEEE JSTSP 11(8), section
    II-C (ctc_weight is its lambda); keeping both models' sums apart is ours.

Letters: U utterances, B beams, C candidates of a beam, V vocabulary, L tokens.
"""

from collections.abc import Mapping, Sequence
from math import inf
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from ctxasr_ray.search.label_beam import Candidates, Float, LabelBeam, LabelHypothesis

if TYPE_CHECKING:
    import torch

    from ctxasr_ray.models.seq2seq_decoding import Decoding
    from ctxasr_ray.search.ctc_prefix_scores import CtcPrefixScores
    from ctxasr_ray.search.label_fusion import RowFusion
    from ctxasr_ray.search.phrase_copy import Offers, PhraseCopy

PRE_PRUNED: Final = 4
"""Candidates of a beam that get a CTC score, in beams: a token behind the attention's best 4 B would have to make up
with its CTC score for all tokens before it."""


class Labels(Protocol):
    """What a model may write."""

    @property
    def suppressed(self) -> npt.NDArray[np.bool_]:
        """(V,) tokens that no text holds."""
        ...

    @property
    def begin_suppressed(self) -> npt.NDArray[np.bool_]:
        """(V,) tokens that no text begins with."""
        ...

    @property
    def eos_id(self) -> int:
        """The end."""
        ...


class LabelModel(Protocol):
    """A model that writes label after label: an attention recogniser, or an LLM behind embedded speech."""

    @property
    def name(self) -> str:
        """Stands in messages."""
        ...

    @property
    def device(self) -> "torch.device":
        """Where it steps."""
        ...

    @property
    def tokens(self) -> Labels:
        """What it may write."""
        ...

    @property
    def max_positions(self) -> int:
        """Longest prompt and text together."""
        ...

    @property
    def has_ctc_head(self) -> bool:
        """Whether a share of a CTC score can be asked."""
        ...

    @property
    def ctc_blank_id(self) -> int:
        """Of the CTC head, where there is one."""
        ...

    def decode(self, states_UTD: "torch.Tensor") -> "Decoding":
        """Opens a decoding of some utterances."""
        ...


class LabelSynchronousSearch:
    """Beam search with an attention recogniser.

    Args:
        model: The recogniser.
        beam_size: Hypotheses that go on at each step, and the longest list.
        max_tokens: Longest hypothesis; the decoder's positions may allow fewer.
        length_penalty: 0 ranks by the sum.
        ctc_weight: Share of the CTC score, in [0, 1).
        no_repeat: No run of so many tokens is written twice in a text; 0 lets everything repeat.

    Raises:
        ValueError: a share of a CTC score and a model without CTC head.
    """

    def __init__(
        self,
        model: "LabelModel",
        *,
        beam_size: int,
        max_tokens: int,
        length_penalty: float = 0.0,
        ctc_weight: float = 0.0,
        no_repeat: int = 0,
    ) -> None:
        import torch

        if ctc_weight and not model.has_ctc_head:
            raise ValueError(
                f"ctc_weight is {ctc_weight}, but model '{model.name}' has no CTC head; set it to 0, or give a model "
                "with one (ctc_head.safetensors, as a joint training writes it)."
            )

        self._model, self._size, self._max_tokens = model, beam_size, max_tokens
        self._penalty, self._ctc_weight = length_penalty, ctc_weight
        self._no_repeat = no_repeat
        self._num_candidates = (PRE_PRUNED if ctc_weight else 2) * beam_size
        tokens = model.tokens
        self._never_V, self._not_first_V = (
            torch.zeros(len(banned), device=model.device).masked_fill_(torch.from_numpy(banned).to(model.device), -inf)
            for banned in (tokens.suppressed, tokens.suppressed | tokens.begin_suppressed)
        )
        self.steps = 0
        """Decoder passes so far."""

    def search(
        self,
        states_UTD: "torch.Tensor",
        prompt: npt.NDArray[np.int32],
        ctc_log_probs: Sequence[npt.NDArray[np.float32]] = (),
        fusion: "RowFusion | None" = None,
        copy: "PhraseCopy | None" = None,
    ) -> list[list[LabelHypothesis]]:
        """The lists of some utterances, each as it would be alone.

        Args:
            states_UTD: Encoder states of equal length; one utterance only where the model steps in rows.
            prompt: (P,) the same for all.
            ctc_log_probs: U arrays (T, V) from `Seq2SeqModel.ctc_log_probs`; read only with a `ctc_weight`.
            fusion: Begun on these utterances; None changes nothing.
            copy: Begun on these utterances; None copies nothing.
        """
        import torch

        from ctxasr_ray.search.ctc_prefix_scores import CtcPrefixScores

        limit = min(self._max_tokens, self._model.max_positions - len(prompt))
        assert limit >= 1, "the model refuses a prompt without room for a text when it is loaded"
        max_gain = 0.0 if fusion is None else fusion.max_gain
        beams = [LabelBeam(self._size, limit, self._model.tokens.eos_id, self._penalty, max_gain) for _ in states_UTD]
        prefixes: list[CtcPrefixScores | None] = [None] * len(beams)
        if self._ctc_weight:
            prefixes = [CtcPrefixScores(own, self._model.ctc_blank_id) for own in ctc_log_probs]
        running = list(range(len(beams)))
        with torch.inference_mode():
            decoding = self._model.decode(states_UTD)
            prompts_UP = torch.from_numpy(prompt.astype(np.int64)).to(states_UTD.device).expand(len(beams), -1)
            logits_UBV = decoding.start(prompts_UP)[:, None]
            never_V = self._not_first_V
            while True:
                self.steps += 1
                again = [(n, *pair) for n, u in enumerate(running) for pair in self._repeats(beams[u])]
                going_prefixes = [prefixes[u] for u in running]
                own_beams = [beams[u] for u in running]
                offers = None
                if copy is not None:
                    offers = copy.offers(own_beams, logits_UBV, decoding, going_prefixes, limit)
                candidates = self._candidates(logits_UBV, never_V, again, going_prefixes, fusion, offers)
                steps = [beams[u].advance(own) for u, own in zip(running, candidates, strict=True)]
                going = [row for row, u in enumerate(running) if not beams[u].done]
                if not going:
                    return [beam.finished for beam in beams]
                if len(going) < len(running):
                    decoding.keep(torch.tensor(going, device=states_UTD.device))
                    running = [running[row] for row in going]
                    if fusion is not None:
                        fusion.keep(going)
                    if copy is not None:
                        copy.keep(going)
                steps = [steps[row] for row in going]
                for u, step in zip(running, steps, strict=True):
                    if (scores := prefixes[u]) is not None:
                        scores.advance(*step)
                if fusion is not None:
                    fusion.advance(steps)
                tokens_UB, parents_UB = self._rows(steps)
                logits_UBV = decoding.advance(tokens_UB.to(states_UTD.device), parents_UB.to(states_UTD.device))
                never_V = self._never_V

    def _repeats(self, beam: LabelBeam) -> list[tuple[int, int]]:
        return beam.repeats(self._no_repeat) if self._no_repeat else []

    def _rows(self, steps: Sequence[tuple[list[int], list[int]]]) -> "tuple[torch.Tensor, torch.Tensor]":
        """Tokens and parents of all utterances; a short beam repeats its first row, which nobody reads."""
        import torch

        widest = max(len(tokens) for tokens, _ in steps)
        padded = [[values + values[:1] * (widest - len(values)) for values in step] for step in steps]  # (U, 2, B)
        both = torch.tensor(padded, dtype=torch.int64)
        return both[:, 0], both[:, 1]

    def _candidates(
        self,
        logits_UBV: "torch.Tensor",
        never_V: "torch.Tensor",
        again: Sequence[tuple[int, int, int]],
        prefixes: "Sequence[CtcPrefixScores | None]",
        fusion: "RowFusion | None",
        offers: "Sequence[Offers] | None",
    ) -> list[Candidates]:
        import torch

        shifted_UBV = logits_UBV.log_softmax(-1)
        entropies_UB = -(shifted_UBV.exp() * shifted_UBV).sum(-1)
        eos_UB = shifted_UBV[:, :, self._model.tokens.eos_id]
        ranked_UBV, added_UBV = (shifted_UBV, None) if fusion is None else fusion.ranked(shifted_UBV)
        sums_UBV = ranked_UBV if added_UBV is None else ranked_UBV + added_UBV
        num = min(self._num_candidates, shifted_UBV.shape[2])
        allowed_UBV = sums_UBV + never_V
        for utterance, row, token in again:
            allowed_UBV[utterance, row, token] = -inf
        best = allowed_UBV.topk(num, dim=-1)
        shifted_UBC, ranked_UBC = best.values, best.values
        if fusion is not None:
            shifted_UBC, ranked_UBC = (
                t.gather(2, best.indices) + never_V[best.indices] for t in (shifted_UBV, ranked_UBV)
            )
        tokens, eos, entropies = (_numpy(t) for t in (best.indices, eos_UB, entropies_UB))
        added = None if added_UBV is None else _numpy(added_UBV.gather(2, best.indices))
        written, ranked = list(_numpy(shifted_UBC)), list(_numpy(ranked_UBC))
        ids: list[npt.NDArray[np.int64]] = list(tokens)
        copies: list[Mapping[tuple[int, int], tuple[int, ...]]] = [{}] * len(ids)
        more = [None if added is None else added[u] for u in range(len(ids))]
        if offers is not None:
            for u, own in enumerate(offers):
                every = shifted_UBV[u].gather(1, torch.from_numpy(own.tokens).to(shifted_UBV.device))
                ids[u], written[u], ranked[u], more[u] = own.beside(
                    ids[u], written[u], ranked[u], _numpy(every), more[u]
                )
                copies[u] = own.copies(tokens.shape[2])
        gains: list[Float] = list(_numpy(best.values)) if offers is None else ranked
        if self._ctc_weight:
            gains = [
                self._joint(own, rank, scores)
                for own, rank, scores in zip(ids, ranked, prefixes, strict=True)
                if scores is not None
            ]
        if self._ctc_weight or offers is not None:
            gains = [own if extra is None else own + extra[: len(own)] for own, extra in zip(gains, more, strict=True)]
        return [Candidates(*own) for own in zip(ids, written, gains, eos, entropies, copies, strict=True)]

    def _joint(self, tokens_BC: npt.NDArray[np.int64], log_probs_BC: Float, prefixes: "CtcPrefixScores") -> Float:
        """What candidates add to the joint score; the end turns a prefix's CTC score into that of the whole text."""
        rows = len(prefixes.totals)  # those behind are padding
        tokens_BC = tokens_BC[:rows]
        ctc_BC = prefixes.extended(tokens_BC)
        ended_B1 = prefixes.ended()[:, None]
        ctc_BC = np.where(tokens_BC == self._model.tokens.eos_id, ended_B1, ctc_BC) - prefixes.totals[:, None]
        joint: Float = (1 - self._ctc_weight) * log_probs_BC[:rows] + self._ctc_weight * ctc_BC
        return joint


def _numpy(tensor: "torch.Tensor") -> npt.NDArray[Any]:
    array = tensor.cpu().numpy()
    return array.astype(np.float64) if array.dtype == np.float32 else array
