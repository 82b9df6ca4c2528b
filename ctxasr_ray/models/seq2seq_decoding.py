"""Steps of an attention decoder over the beams of one or many utterances, each node forwarded once.

The encoder's states and the keys of the cross-attention exist once per utterance. Either beams lie in the sequence
dimension of one growing tree (`TreeDecoding`), or, for a decoder that takes no positions, they are rows of a batch
(`RowDecoding`). Letters: U utterances, B beams, P prompt, K cached nodes, T encoder positions, D width, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any, Final, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from transformers import DynamicCache, EncoderDecoderCache
from transformers.cache_utils import DynamicLayer

from ctxasr_ray.models.arena_cache import ArenaCache
from ctxasr_ray.models.seq2seq_ahead import Phrases, branches, log_probs_behind, sums, to_ids

MIN_GATHERED: Final = 64
"""A cache with fewer nodes is never gathered: the copy would cost more than the nodes."""
WEIGHTS_FIRST_ROWS: Final = 8
"""Most rows whose logits are computed as W x^T on a CPU..."""
WEIGHTS_FIRST_SIZE: Final = 2**20
"""...and least numbers in W: 500 x 144 take 15 us as x W^T and 20 us as W x^T."""


class Decoding(Protocol):
    """A decoder in the middle of some utterances; all beams of a step are equally deep."""

    last_states: torch.Tensor
    """(U, B, D) what the decoder's head read in the last step; (U, 1, D) behind the prompts."""

    def start(self, prompts_UP: torch.Tensor) -> torch.Tensor:
        """(U, V) float32 logits behind the prompts."""
        ...

    def advance(self, tokens_UB: torch.Tensor, parents_UB: torch.Tensor) -> torch.Tensor:
        """(U, B, V) float32 logits behind new nodes.

        Args:
            tokens_UB: int64 token of each new node.
            parents_UB: int64 index of the node above among those of the step before (0 behind the prompt).
        """
        ...

    def keep(self, rows: torch.Tensor) -> None:
        """Goes on with some of the utterances only; `rows` are their int64 indices."""
        ...


@runtime_checkable
class LooksAhead(Decoding, Protocol):
    """A decoding that also says what it thinks of phrases before one is written."""

    def ahead(self, utterance: int, rows: Sequence[int], phrases: Phrases) -> npt.NDArray[np.float64]:
        """(Q,) ln P of each phrase's tokens behind its first one, which the last logits say; nothing goes on.

        Args:
            utterance: Its place among those that go on.
            rows: (Q,) the row of the last step before each phrase.
            phrases: Q, each of at least one token, and short enough for the decoder's positions.
        """
        ...


class TreeDecoding:
    """Beams as nodes of one tree per utterance: float 4D masks, position ids are depths, no cache is reordered.

    Args:
        decoder: Of a transformers model; takes `position_ids`.
        head: Hidden states to logits.
        states_UTD: The encoder's, equally long for all utterances.
    """

    def __init__(self, decoder: Any, head: Any, states_UTD: torch.Tensor) -> None:
        self._decoder, self._head, self._states_UTD = decoder, head, states_UTD
        self._nodes = ArenaCache(len(decoder.layers))
        self._cache = EncoderDecoderCache(self._nodes, DynamicCache())
        self._mask_UBK = torch.zeros(0, dtype=states_UTD.dtype)
        self._itself_BB = torch.zeros((0, 0), dtype=states_UTD.dtype)
        self._depth, self._full = 0, MIN_GATHERED

    def start(self, prompts_UP: torch.Tensor) -> torch.Tensor:
        """As `Decoding.start`."""
        num, depth = prompts_UP.shape
        causal_PP = torch.full((depth, depth), self._hidden(), dtype=self._mask_UBK.dtype, device=prompts_UP.device)
        causal_UPP = causal_PP.triu(1).expand(num, -1, -1)
        positions_UP = torch.arange(depth, device=prompts_UP.device).expand(num, -1)
        hidden_UPD = self._forward(prompts_UP, positions_UP, causal_UPP)
        self._mask_UBK, self._depth = causal_UPP[:, -1:], depth
        self.last_states = hidden_UPD[:, -1:]
        return self._logits(hidden_UPD[:, -1])

    def advance(self, tokens_UB: torch.Tensor, parents_UB: torch.Tensor) -> torch.Tensor:
        """As `Decoding.advance`."""
        above_UBK = self._mask_UBK.gather(1, parents_UB[:, :, None].expand(-1, -1, self._mask_UBK.shape[2]))
        if len(self._itself_BB) != tokens_UB.shape[1]:
            others_BB = 1 - torch.eye(tokens_UB.shape[1], dtype=self._mask_UBK.dtype, device=tokens_UB.device)
            self._itself_BB = others_BB * self._hidden()
        self._mask_UBK = torch.cat([above_UBK, self._itself_BB.expand(len(tokens_UB), -1, -1)], dim=2)
        hidden_UBD = self._forward(tokens_UB, torch.full_like(tokens_UB, self._depth), self._mask_UBK)
        self._depth += 1
        self._forget_dead()
        self.last_states = hidden_UBD
        return self._logits(hidden_UBD)

    def ahead(self, utterance: int, rows: Sequence[int], phrases: Phrases) -> npt.NDArray[np.float64]:
        """As `LooksAhead.ahead`."""
        below, device = branches(rows, phrases), self._mask_UBK.device
        if not len(below.tokens):
            return np.zeros(len(phrases))
        above_NK = self._mask_UBK[utterance, to_ids(below.rows, device)]
        others_NN = torch.from_numpy(~below.seen).to(device)
        among_NN = torch.zeros_like(others_NN, dtype=above_NK.dtype).masked_fill_(others_NN, self._hidden())
        mask_1NK = torch.cat([above_NK, among_NN], dim=1)[None]
        tokens_1N, positions_1N = (to_ids(one[None], device) for one in (below.tokens, below.depths + self._depth))
        hidden_ND = self._beside(utterance, tokens_1N, positions_1N, mask_1NK)[0]
        found = log_probs_behind(self._head, hidden_ND, below.predicting, below.predicted)
        return sums(found, below.phrase, len(phrases))

    def keep(self, rows: torch.Tensor) -> None:
        """As `Decoding.keep`."""
        self._mask_UBK, self._states_UTD = self._mask_UBK[rows], self._states_UTD[rows]
        num_slots = self._mask_UBK.shape[2]
        self._nodes.gather(rows, torch.arange(num_slots, device=rows.device).expand(len(rows), -1))
        self._cache.cross_attention_cache.batch_select_indices(rows)

    def _forget_dead(self) -> None:
        """Gathers the nodes that some beam still sees, where a full cache finds them to be fewer than half."""
        num_slots = self._mask_UBK.shape[2]
        if num_slots < self._full:
            return
        live_UK = (self._mask_UBK == 0).any(dim=1)
        most = int(live_UK.sum(dim=1).max())
        self._full = max(MIN_GATHERED, 2 * most)
        if 2 * most >= num_slots:
            return
        slots_UK = live_UK.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :most]
        self._mask_UBK = self._mask_UBK.gather(2, slots_UK[:, None].expand(-1, self._mask_UBK.shape[1], -1))
        self._nodes.gather(torch.arange(len(slots_UK), device=slots_UK.device), slots_UK)

    def _hidden(self) -> float:
        """What the mask adds where a node is not seen."""
        return torch.finfo(self._mask_UBK.dtype).min

    def _forward(self, tokens: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self._decoder(
            input_ids=tokens,
            attention_mask=mask[:, None],
            position_ids=positions,
            encoder_hidden_states=self._states_UTD,  # on every step: without it cross-attention is skipped silently
            past_key_values=self._cache,
            use_cache=True,
        ).last_hidden_state
        return hidden

    def _beside(
        self, utterance: int, tokens: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """States of further nodes of one utterance, which no cache keeps."""
        one = torch.tensor([utterance], device=tokens.device)
        hidden: torch.Tensor = self._decoder(
            input_ids=tokens,
            attention_mask=mask[:, None],
            position_ids=positions,
            encoder_hidden_states=self._states_UTD[one],
            past_key_values=EncoderDecoderCache(
                copied(self._nodes, one), copied(self._cache.cross_attention_cache, one)
            ),
            use_cache=True,
        ).last_hidden_state
        return hidden

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return head_logits(self._head, hidden)


class RowDecoding:
    """Beams of one utterance as rows of a batch; their cross-attention keys are one tensor with stride 0.

    Args:
        decoder: Of a transformers model; counts positions by itself.
        head: Hidden states to logits.
        states_UTD: The encoder's, of one utterance.
    """

    def __init__(self, decoder: Any, head: Any, states_UTD: torch.Tensor) -> None:
        assert len(states_UTD) == 1, "rows are the beams of one utterance"
        self._decoder, self._head, self._states_1TD = decoder, head, states_UTD
        self._cache = EncoderDecoderCache(DynamicCache(), DynamicCache())

    def start(self, prompts_UP: torch.Tensor) -> torch.Tensor:
        """As `Decoding.start`."""
        return self._forward(prompts_UP)

    def advance(self, tokens_UB: torch.Tensor, parents_UB: torch.Tensor) -> torch.Tensor:
        """As `Decoding.advance`."""
        num_beams = tokens_UB.shape[1]
        self._cache.self_attention_cache.reorder_cache(parents_UB[0])
        for layer in self._cache.cross_attention_cache.layers:
            layer.keys = layer.keys[:1].expand(num_beams, -1, -1, -1)
            layer.values = layer.values[:1].expand(num_beams, -1, -1, -1)
        return self._forward(tokens_UB[0, :, None])[None]

    def ahead(self, utterance: int, rows: Sequence[int], phrases: Phrases) -> npt.NDArray[np.float64]:
        """As `LooksAhead.ahead`."""
        assert utterance == 0, "rows are the beams of one utterance"
        lengths = np.array([len(phrase) - 1 for phrase in phrases])
        if not lengths.any():
            return np.zeros(len(phrases))
        tokens_QL = np.zeros((len(phrases), lengths.max()), np.int64)
        inside_QL = np.arange(tokens_QL.shape[1]) < lengths[:, None]
        tokens_QL[inside_QL] = [token for phrase in phrases for token in phrase[:-1]]
        device = self._states_1TD.device
        first = torch.zeros(len(phrases), dtype=torch.int64, device=device)
        hidden_QLD = self._decoder(
            input_ids=to_ids(tokens_QL, device),
            encoder_hidden_states=self._states_1TD.expand(len(phrases), -1, -1),
            past_key_values=EncoderDecoderCache(
                copied(self._cache.self_attention_cache, to_ids(np.array(rows), device)),
                copied(self._cache.cross_attention_cache, first),
            ),
            use_cache=True,
        ).last_hidden_state
        predicted = np.array([token for phrase in phrases for token in phrase[1:]], np.int64)
        found = log_probs_behind(self._head, hidden_QLD.flatten(0, 1), np.flatnonzero(inside_QL), predicted)
        return sums(found, np.repeat(np.arange(len(phrases)), lengths), len(phrases))

    def keep(self, rows: torch.Tensor) -> None:
        """As `Decoding.keep`; the one utterance stays."""
        assert rows.tolist() == [0]

    def _forward(self, tokens_BN: torch.Tensor) -> torch.Tensor:
        hidden_BND = self._decoder(
            input_ids=tokens_BN,
            encoder_hidden_states=self._states_1TD.expand(len(tokens_BN), -1, -1),
            past_key_values=self._cache,
            use_cache=True,
        ).last_hidden_state
        self.last_states = hidden_BND[None, :, -1]
        return head_logits(self._head, hidden_BND[:, -1])


def copied(cache: Any, rows: torch.Tensor) -> DynamicCache:
    """A cache that begins as some rows of another one, and leaves that as it is."""
    made = DynamicCache()
    made.layers = [copied_layer(layer, rows) for layer in cache.layers]
    return made


def copied_layer(layer: Any, rows: torch.Tensor) -> Any:
    """One layer of `copied`."""
    made = DynamicLayer()
    made.keys, made.values = layer.keys[rows], layer.values[rows]
    made.dtype, made.device, made.is_initialized = layer.dtype, layer.device, True
    return made


def head_logits(head: Any, hidden: torch.Tensor) -> torch.Tensor:
    """(..., V) float32 logits; the few rows of a beam are read from the weights' side where that is faster.

    On a CPU (MKL, one AVX-512 core) 51,865 x 512 weights times 5 rows take 7 ms as W x^T and 15 ms as x W^T; from 16
    rows on there is no difference.
    """
    num_rows = hidden.numel() // hidden.shape[-1]
    few = 1 < num_rows <= WEIGHTS_FIRST_ROWS and head.weight.numel() >= WEIGHTS_FIRST_SIZE
    if hidden.device.type != "cpu" or not few or head.bias is not None:
        logits: torch.Tensor = head(hidden).float()
        return logits
    rows = torch.mm(head.weight, hidden.reshape(num_rows, -1).T).T
    return rows.contiguous().float().view(*hidden.shape[:-1], -1)
