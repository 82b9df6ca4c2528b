"""Steps of a causal LM over the beams of one or many utterances, each behind embeddings of its own.

Beams are nodes of one growing tree per utterance: a node is forwarded once and nothing in the cache is reordered.
Letters: U utterances, B beams, P prefix, K cached nodes, D width, V vocabulary.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch

from ctxasr_ray.models.arena_cache import ArenaCache
from ctxasr_ray.models.seq2seq_decoding import MIN_GATHERED
from ctxasr_ray.models.tree_masks import tree_masks

if TYPE_CHECKING:
    from ctxasr_ray.models.audio_lm import AudioLm
    from ctxasr_ray.models.causal_lm import CausalLm


class PrefixDecoding:
    """A `seq2seq_decoding.Decoding` of a causal LM.

    Args:
        lm: Scored as a tree.
        prefix_UPD: Embeddings before the text, equally long for all utterances.
    """

    def __init__(self, lm: "CausalLm", prefix_UPD: torch.Tensor) -> None:
        self._lm, self._prefix_UPD = lm, prefix_UPD
        self._cache = ArenaCache(lm.body.config.num_hidden_layers)
        self._seen_UBK = torch.zeros(0, dtype=torch.bool)
        self._places_UK = torch.zeros(0, dtype=torch.int64)
        self._depth = 0

    def start(self, prompts_UP: torch.Tensor) -> torch.Tensor:
        """As `Decoding.start`; what stands before the text is the embeddings, whatever the prompt's tokens are."""
        num, depth, _ = self._prefix_UPD.shape
        device = self._prefix_UPD.device
        causal_UPP = torch.ones((depth, depth), dtype=torch.bool, device=device).tril().expand(num, -1, -1)
        self._places_UK = torch.arange(depth, device=device).expand(num, -1)
        hidden_UPD = self._forward({"inputs_embeds": self._prefix_UPD}, self._places_UK, causal_UPP)
        self._seen_UBK, self._depth = causal_UPP[:, -1:], depth
        self.last_states = hidden_UPD[:, -1:]
        return self._lm.head.logits(hidden_UPD[:, -1])

    def advance(self, tokens_UB: torch.Tensor, parents_UB: torch.Tensor) -> torch.Tensor:
        """As `Decoding.advance`."""
        num, beams = tokens_UB.shape
        above_UBK = self._seen_UBK.gather(1, parents_UB[:, :, None].expand(-1, -1, self._seen_UBK.shape[2]))
        itself_UBB = torch.eye(beams, dtype=torch.bool, device=tokens_UB.device).expand(num, -1, -1)
        self._seen_UBK = torch.cat([above_UBK, itself_UBB], dim=2)
        places_UB = torch.full_like(tokens_UB, self._depth)
        self._places_UK = torch.cat([self._places_UK, places_UB], dim=1)
        hidden_UBD = self._forward({"input_ids": tokens_UB}, places_UB, self._seen_UBK)
        self._depth += 1
        self._forget_dead()
        self.last_states = hidden_UBD
        return self._lm.head.logits(hidden_UBD.flatten(0, 1)).view(num, beams, -1)

    def keep(self, rows: torch.Tensor) -> None:
        """As `Decoding.keep`."""
        self._seen_UBK, self._places_UK = self._seen_UBK[rows], self._places_UK[rows]
        num_slots = self._seen_UBK.shape[2]
        self._cache.gather(rows, torch.arange(num_slots, device=rows.device).expand(len(rows), -1))

    def _forget_dead(self) -> None:
        """Gathers the nodes that some beam still sees, once they are fewer than half."""
        num_slots = self._seen_UBK.shape[2]
        live_UK = self._seen_UBK.any(dim=1)
        most = int(live_UK.sum(dim=1).max())
        if num_slots < MIN_GATHERED or 2 * most >= num_slots:
            return
        slots_UK = live_UK.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :most]
        self._seen_UBK = self._seen_UBK.gather(2, slots_UK[:, None].expand(-1, self._seen_UBK.shape[1], -1))
        self._places_UK = self._places_UK.gather(1, slots_UK)
        self._cache.gather(torch.arange(len(slots_UK), device=slots_UK.device), slots_UK)

    def _forward(self, inputs: dict[str, torch.Tensor], places: torch.Tensor, seen_UQK: torch.Tensor) -> torch.Tensor:
        body = self._lm.body
        window = getattr(body.config, "sliding_window", None)
        masks = tree_masks(body.plan, seen_UQK, places, self._places_UK, window, body.dtype)
        hidden: torch.Tensor = body.base(
            **inputs, position_ids=places, attention_mask=masks, past_key_values=self._cache, use_cache=True
        )[0]
        return hidden


class Writer:
    """An LLM that hears, as a search of labels sees it; a `label_synchronous.LabelModel`.

    Args:
        model: Loaded.

    Raises:
        ValueError: an LLM without an end of text, or one that has no token tree.
    """

    has_ctc_head = False
    ctc_blank_id = -1

    def __init__(self, model: "AudioLm") -> None:
        lm = model.lm
        if lm.refusal is not None:
            raise ValueError(f"model '{model.name}' cannot be searched: {lm.refusal}. Rescore with it instead.")
        if lm.eos_token_id is None:
            raise ValueError(f"model '{model.name}' has no end of text, so no search ends; name one in its config.")
        self.name, self.device, self._lm = model.name, lm.device, lm
        self.max_positions = lm.max_positions or 2**31
        self.tokens = WrittenLabels(model.tokens.special_ids, len(model.tokens.tokenizer), lm)

    def decode(self, states_UTD: torch.Tensor) -> PrefixDecoding:
        """Opens a decoding behind prefixes of equal length."""
        return PrefixDecoding(self._lm, states_UTD)


class WrittenLabels:
    """Every token of the tokenizer but the special ones; a text may be empty.

    Args:
        special_ids: Of the tokenizer.
        num_tokens: Of the tokenizer; a head may have more rows.
        lm: Whose head is searched.
    """

    def __init__(self, special_ids: list[int], num_tokens: int, lm: "CausalLm") -> None:
        assert lm.eos_token_id is not None, "checked before"
        self.eos_id = lm.eos_token_id
        self.suppressed = np.arange(lm.head.num_outputs) >= num_tokens
        self.suppressed[[i for i in special_ids if i < lm.head.num_outputs]] = True
        self.suppressed[self.eos_id] = False
        self.begin_suppressed = np.zeros(lm.head.num_outputs, np.bool_)
