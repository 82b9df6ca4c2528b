"""The body of a causal LM: nodes of many token trees in, their last hidden states out.

Letters: B trees or sequences, Q new nodes, K cached and new nodes, P prefix, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from ctxasr_ray.models.arena_cache import ArenaCache
from ctxasr_ray.models.tree_masks import mask_plan, tree_masks
from ctxasr_ray.stage import Costs
from ctxasr_ray.token_tree import Int32, TokenTree

Prefix = Int32 | torch.Tensor
"""What stands before the sequences: (P,) int32 token ids, or (P, D) embeddings such as an adapter's output."""

PADDED_ROWS: Final = 16
"""Sequences in one forward pass of a model without a tree."""


@dataclass(frozen=True, slots=True)
class Block:
    """Nodes of one tree for one forward pass.

    Args:
        tree: All nodes so far, those of the prefix first.
        queries: (Q,) nodes whose hidden states are wanted (without the tree, at least one); their ancestors are among
            them or in the cache.
        slots: (K,) node in each slot of the cache, -1 for an empty one; equally many for all blocks of a pass.
        embeddings: (P, D) what the first P nodes are where the prefix has no tokens.
    """

    tree: TokenTree
    queries: Int32
    slots: Int32
    embeddings: torch.Tensor | None = None


def split_prefix(prefix: Prefix) -> tuple[Int32, torch.Tensor | None]:
    """(P,) token ids and None, or (P,) zeros in their place and the (P, D) embeddings."""
    if isinstance(prefix, torch.Tensor):
        return np.zeros(len(prefix), np.int32), prefix
    return np.asarray(prefix, np.int32), None


class TreeForward:
    """Forward passes of an unmodified transformers body over nodes of token trees.

    Args:
        model: A causal LM of transformers, in evaluation mode.
    """

    refusal: str | None = None
    """Why sequences are padded instead; None where the tree is used. Set by the load check."""

    def __init__(self, model: Any) -> None:
        self.base = model.base_model
        self.config = model.config.get_text_config()
        self.embed = model.get_input_embeddings()
        self.device = self.embed.weight.device
        self.dtype = model.dtype
        self.plan = mask_plan(self.config)

    def __call__(self, blocks: Sequence[Block], costs: Costs, cache: ArenaCache | None = None) -> list[torch.Tensor]:
        """Last hidden states of the nodes asked for, (Q, D) per block, in one pass (or a few, without the tree).

        Args:
            blocks: One per tree; row b of the cache belongs to block b.
            costs: Counts `llm_calls` and `tokens_forwarded`.
            cache: Where the new nodes are appended, padded to the longest block; None keeps none.
        """
        if self.refusal:
            return self._forward_padded(blocks, costs)
        longest = max(len(block.queries) for block in blocks)
        queries = [np.concatenate([b.queries, np.full(longest - len(b.queries), -1, np.int32)]) for b in blocks]
        keys = [np.concatenate([b.slots, q]) for b, q in zip(blocks, queries, strict=True)]
        visible_BQK = np.stack([b.tree.visible(q, k) for b, q, k in zip(blocks, queries, keys, strict=True)])
        trees = [block.tree for block in blocks]
        positions_BQ = self._tensor([np.where(q >= 0, t.depths[q], 0) for t, q in zip(trees, queries, strict=True)])
        positions_BK = self._tensor([np.where(k >= 0, t.depths[k], 0) for t, k in zip(trees, keys, strict=True)])
        masks = tree_masks(
            self.plan,
            torch.from_numpy(visible_BQK).to(self.device),
            positions_BQ,
            positions_BK,
            getattr(self.config, "sliding_window", None),
            self.dtype,
        )
        costs.count("llm_calls")
        costs.count("tokens_forwarded", positions_BQ.numel())
        inputs = self._inputs([(b, q) for b, q in zip(blocks, queries, strict=True)])
        hidden_BQD = self.base(
            **inputs,
            position_ids=positions_BQ,
            attention_mask=masks,
            past_key_values=cache,
            use_cache=cache is not None,
        )[0]
        return [hidden_BQD[i, : len(block.queries)] for i, block in enumerate(blocks)]

    def prefill(self, blocks: Sequence[Block], costs: Costs) -> ArenaCache:
        """A new cache with the queries of every block, which are the first nodes of its prefix, equally many of all.

        In a chain attention is causal and needs no mask, and what the last layer makes of its keys is read by nobody.

        Args:
            blocks: One per tree.
            costs: As for a call.
        """
        cache = ArenaCache(self.config.num_hidden_layers)
        inputs = self._inputs([(b, b.queries) for b in blocks])
        positions_BQ = self._tensor([b.queries for b in blocks])
        costs.count("llm_calls")
        costs.count("tokens_forwarded", positions_BQ.numel())
        with cache.filling():
            self.base(**inputs, position_ids=positions_BQ, past_key_values=cache, use_cache=True)
        return cache

    def _forward_padded(self, blocks: Sequence[Block], costs: Costs) -> list[torch.Tensor]:
        """The same without a tree: every path in full, right-padded, and no cache."""
        paths = [
            (i, block.tree.path(int(leaf)))
            for i, block in enumerate(blocks)
            for leaf in block.tree.leaves(block.queries)
        ]
        paths.sort(key=lambda path: len(path[1]))
        found: list[torch.Tensor | None] = [None] * len(blocks)
        for start in range(0, len(paths), PADDED_ROWS):
            batch = paths[start : start + PADDED_ROWS]
            longest = max(len(nodes) for _, nodes in batch)
            padded = [np.concatenate([nodes, np.full(longest - len(nodes), -1, np.int32)]) for _, nodes in batch]
            inputs = self._inputs([(blocks[i], nodes) for (i, _), nodes in zip(batch, padded, strict=True)])
            mask_BQ = self._tensor([(nodes >= 0) for nodes in padded])
            hidden_BQD = self.base(**inputs, attention_mask=mask_BQ, use_cache=False)[0]
            costs.count("llm_calls")
            costs.count("tokens_forwarded", mask_BQ.numel())
            for row, (i, nodes) in enumerate(batch):
                if (states := found[i]) is None:
                    states = found[i] = hidden_BQD.new_zeros((len(blocks[i].tree), hidden_BQD.shape[2]))
                states[torch.from_numpy(nodes).to(states.device)] = hidden_BQD[row, : len(nodes)]
        return [
            s[torch.from_numpy(b.queries).to(s.device)] for s, b in zip(found, blocks, strict=True) if s is not None
        ]

    def _inputs(self, rows: Sequence[tuple[Block, Int32]]) -> dict[str, torch.Tensor]:
        """Token ids of the nodes (any for padding), or embeddings where a prefix has no tokens."""
        tokens_BQ = self._tensor([np.where(nodes >= 0, block.tree.tokens[nodes], 0) for block, nodes in rows])
        if all(block.embeddings is None for block, _ in rows):
            return {"input_ids": tokens_BQ}
        embedded_BQD = self.embed(tokens_BQ).clone()
        for row, (block, nodes) in enumerate(rows):
            if block.embeddings is not None:
                at = np.flatnonzero((nodes >= 0) & (nodes < len(block.embeddings)))
                embedded_BQD[row, at] = block.embeddings.to(embedded_BQD)[nodes[at]]
        return {"inputs_embeds": embedded_BQD}

    def _tensor(self, rows: Sequence[npt.NDArray[Any]]) -> torch.Tensor:
        return torch.from_numpy(np.stack(rows).astype(np.int64)).to(self.device)
