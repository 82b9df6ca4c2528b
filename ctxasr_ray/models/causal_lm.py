"""A causal language model of transformers -> log-probabilities of many token sequences behind one prefix.

Every node of a token tree is scored once, in as few forward passes as fit: position ids are depths, and a 4D mask
lets a node see its prefix and its ancestors only. Models for which that is not exact (recurrent, alibi, ...) are
found when they are loaded and take right-padded sequences instead. DESIGN, section 5.

Letters: N sequences, P prefix, D width.
"""

import logging
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from ctxasr_ray.models.checkpoint import Checkpoint, load_model
from ctxasr_ray.models.dtypes import INT8, floating
from ctxasr_ray.models.list_trees import ListTree, ScoreRequest, SequenceScores, list_trees
from ctxasr_ray.models.lm_head import LOGITS_LIMIT_BYTES, LmHead
from ctxasr_ray.models.tree_forward import Block, TreeForward
from ctxasr_ray.models.tree_probe import position_bytes, probe_ids, tree_refusal
from ctxasr_ray.stage import Costs

MAX_NODES: Final = 4096
"""Nodes in one forward pass; the mask grows with their square. Larger trees are split."""
CPU_NODES: Final = 512
"""On a CPU small trees share a pass up to here: below, every pass waits for the weights to come from memory."""
MAX_PADDING: Final = 1.05
"""And only if padding adds no more than this."""

PREFILL_NODES: Final = 192
"""On a CPU prefixes from here on go ahead of their trees: at 128 the second pass costs what it saves. On an
accelerator, where a pass waits for its launches, that was never measured, so there is one pass."""

_log = logging.getLogger(__name__)


class CausalLm:
    """A loaded causal LM that scores token trees.

    Args:
        model: A causal LM of transformers in evaluation mode, or the PEFT model around one.
        eos_token_id: End of sequence; None takes the first that the model's config names, if any.
        special_ids: Token ids that the load check leaves alone.
        utterances_per_forward: Trees in one forward pass; 0 is up to 16 on an accelerator, and on a CPU one, or a few
            small ones of nearly equal size.
        logits_limit_bytes: Largest logits buffer.

    Raises:
        ValueError: the model cannot be scored exactly: a learned prompt as adapter, a head that is not a function of
            the last hidden state, or a body that disagrees with itself even on right-padded sequences.
    """

    position_bytes: int = 0
    """Keys and values of one position in a cache; 0 without the tree, which keeps none."""

    def __init__(
        self,
        model: Any,
        *,
        eos_token_id: int | None = None,
        special_ids: Sequence[int] = (),
        utterances_per_forward: int = 0,
        logits_limit_bytes: int = LOGITS_LIMIT_BYTES,
    ) -> None:
        adapters = getattr(model, "peft_config", {}) if hasattr(model, "get_base_model") else {}
        if any(adapter.is_prompt_learning for adapter in adapters.values()):
            raise ValueError("the adapter is a learned prompt, which has no place in a token tree; use LoRA.")
        self.model = model.get_base_model() if adapters else model
        self.body = TreeForward(self.model)
        config, self.device = self.body.config, self.body.device
        self.max_positions: int | None = getattr(config, "max_position_embeddings", None)
        self.eos_token_id = _first_id(config.eos_token_id) if eos_token_id is None else eos_token_id
        on_cpu = self.device.type == "cpu"
        self.utterances_per_forward = utterances_per_forward or (1 if on_cpu else 16)
        self.prefill_from = PREFILL_NODES if on_cpu else None
        self._fill_nodes = CPU_NODES if on_cpu and not utterances_per_forward else 0
        ids = probe_ids(self.body.embed.weight.shape[0], special_ids)
        with torch.inference_mode():
            self.head = LmHead(
                self.model, self.body.base, torch.tensor([ids[:8]], device=self.device), logits_limit_bytes
            )
        self.body.refusal = tree_refusal(self, ids)
        if not self.refusal:
            self.position_bytes = position_bytes(self, ids)
        if self.refusal:
            _log.warning("%s is scored without the token tree: %s", type(self.model).__name__, self.refusal)

    @property
    def refusal(self) -> str | None:
        """Why the tree is not used and sequences are padded instead; None where the tree is used."""
        return self.body.refusal

    @torch.inference_mode()
    def score(self, requests: Sequence[ScoreRequest], costs: Costs | None = None) -> list[SequenceScores]:
        """Scores every request; how they are batched changes no score beyond rounding.

        Args:
            requests: One per utterance.
            costs: Counts, prefixes included, `tokens_flat`, `tokens_deduplicated` and `nodes`; further `llm_calls`,
                `tokens_forwarded` (with padding), `head_rows`, `peak_logits_bytes` and `first_tokens_unscored`.
        """
        costs = costs or Costs()
        costs.peak("kv_bytes", 0)  # a tree in one pass keeps no cache
        results, jobs = [], []
        for request in requests:
            n = len(request.sequences)
            reasons = [self.limit_reason(len(request.prefix) + len(s)) for s in request.sequences]
            result = SequenceScores(np.full(n, np.nan), np.full(n, np.nan), reasons)
            kept = [i for i in range(n) if reasons[i] is None]
            results.append(result)
            own = list(list_trees(request, kept, result, MAX_NODES))
            jobs += own
            num_flat = sum(len(request.prefix) + len(request.sequences[i]) for i in kept)
            costs.count("tokens_flat", num_flat)
            result.counters.update(self._counters(own, num_flat))
        for job in jobs:
            if not len(job.merged.tree):  # empty sequences behind an empty prefix
                job.finish(np.zeros(0), np.full(1, np.nan))
        jobs = sorted((job for job in jobs if len(job.merged.tree)), key=lambda job: len(job.merged.tree))
        batch: list[ListTree] = []
        for job in jobs:
            if batch and not self._fits(batch, job):
                self._score_jobs(batch, costs)
                batch = []
            batch.append(job)
        if batch:
            self._score_jobs(batch, costs)
        return results

    def _counters(self, jobs: Sequence[ListTree], num_flat: int) -> dict[str, int]:
        jobs = [job for job in jobs if len(job.merged.tree)]
        ahead = [self._num_prefilled([job]) > 0 for job in jobs]
        layer_bytes = self.position_bytes // self.body.config.num_hidden_layers
        held = [self.position_bytes if a else layer_bytes for a in ahead]
        sizes = [len(job.merged.tree) for job in jobs]
        kv_bytes = max((size * each for size, each in zip(sizes, held, strict=True)), default=0)
        calls = len(jobs) + sum(ahead)
        return {"llm_calls": calls, "nodes": sum(sizes), "tokens_flat": num_flat, "kv_bytes": kv_bytes}

    def _fits(self, batch: Sequence[ListTree], job: ListTree) -> bool:
        """Whether one more tree, at least as large as those of the batch, belongs in the same pass."""
        padded = (len(batch) + 1) * len(job.merged.tree)
        if len(batch) < self.utterances_per_forward:
            return padded <= MAX_NODES
        nodes = sum(len(other.merged.tree) for other in (*batch, job))
        return padded <= min(self._fill_nodes, MAX_PADDING * nodes)

    def _num_prefilled(self, jobs: Sequence[ListTree]) -> int:
        """Nodes of each prefix that go ahead in a pass of their own: none, or all but the last, which is read."""
        shortest = min(job.num_prefix for job in jobs)
        return 0 if self.refusal or self.prefill_from is None or shortest < self.prefill_from else shortest - 1

    def limit_reason(self, num_positions: int) -> str | None:
        """Why a prefix and a sequence of so many tokens together cannot be scored, None where they can."""
        if self.max_positions is None or num_positions <= self.max_positions:
            return None
        return f"model_limit: {num_positions} tokens with the prefix, but the model takes {self.max_positions}"

    def _forward(self, jobs: Sequence[ListTree], costs: Costs) -> tuple[list[torch.Tensor], int]:
        """Hidden states of every tree's nodes but its first ones, and how many those are."""
        ahead, cache = np.arange(self._num_prefilled(jobs), dtype=np.int32), None
        if len(ahead):
            cache = self.body.prefill([Block(j.merged.tree, ahead, ahead[:0], j.embeddings) for j in jobs], costs)
        rest = [np.arange(len(ahead), len(job.merged.tree), dtype=np.int32) for job in jobs]
        blocks = [Block(j.merged.tree, q, ahead, j.embeddings) for j, q in zip(jobs, rest, strict=True)]
        hidden = self.body(blocks, costs, cache)
        costs.peak("kv_bytes", 0 if cache is None else cache.num_bytes())
        return hidden, len(ahead)

    def _score_jobs(self, jobs: Sequence[ListTree], costs: Costs) -> None:
        trees = [job.merged.tree for job in jobs]
        everything = [np.arange(len(tree), dtype=np.int32) for tree in trees]
        hidden, num_ahead = self._forward(jobs, costs)
        offsets = np.cumsum([0, *map(len, hidden)]) - num_ahead
        ends = [np.unique(job.merged.ends[job.merged.ends >= 0]) for job in jobs]
        children = [q[(q >= j.num_prefix) & (t.parents >= 0)] for t, q, j in zip(trees, everything, jobs, strict=True)]
        rows = [t.parents[c] + o for t, c, o in zip(trees, children, offsets[:-1], strict=True)]
        tokens = [t.tokens[c] for t, c in zip(trees, children, strict=True)]
        if self.eos_token_id is not None:
            rows += [e + o for e, o in zip(ends, offsets[:-1], strict=True)]
            tokens += [np.full(len(e), self.eos_token_id) for e in ends]
        log_probs = self._read(torch.cat(hidden), np.concatenate(rows), np.concatenate(tokens), costs)
        parts = np.split(log_probs, np.cumsum([len(r) for r in rows])[:-1])
        for i, job in enumerate(jobs):
            values, eos = np.zeros(len(trees[i])), np.full(len(trees[i]) + 1, np.nan)  # eos[-1]: nothing stands before
            values[children[i]] = parts[i]
            if self.eos_token_id is not None:
                eos[ends[i]] = parts[len(jobs) + i]
            job.finish(values, eos)
            costs.count("nodes", len(trees[i]))
            costs.count(
                "tokens_deduplicated", job.merged.num_distinct_tokens + job.merged.num_distinct * job.num_prefix
            )
            costs.count("first_tokens_unscored", int((trees[i].parents[job.num_prefix :] < 0).sum()))

    def _read(
        self, hidden: torch.Tensor, rows: npt.NDArray[Any], tokens: npt.NDArray[Any], costs: Costs
    ) -> npt.NDArray[np.float64]:
        needed, local = np.unique(rows.astype(np.int64), return_inverse=True)
        picks, normalisers = self.head.read(
            hidden[torch.from_numpy(needed).to(hidden.device)], local, tokens.astype(np.int64), costs
        )
        log_probs: npt.NDArray[np.float64] = picks - normalisers[local]
        return log_probs


def load_causal_lm(
    checkpoint: Checkpoint,
    *,
    adapter: Checkpoint | None = None,
    dtype: str = "float32",
    attention: str = "auto",
    device: str = "auto",
    device_map: str | None = None,
    **options: Any,
) -> CausalLm:
    """Loads a causal LM and, if asked, the PEFT adapter that belongs to it, and checks the token tree on it.

    Args:
        checkpoint: From `checkpoint.resolve`.
        adapter: From `checkpoint.resolve(..., stem=ADAPTER)`.
        dtype: A floating type of torch, or int8: see `models.int8_linear`.
        attention: "sdpa" or "eager"; "auto" is what transformers chooses for the architecture.
        device: "auto" is the first accelerator, or else the CPU; unused with a device map.
        device_map: Spreads a large model over devices (accelerate), for example "auto".
        options: Of `CausalLm`.

    Raises:
        ValueError: what the checkpoint holds is no such model, the adapter does not fit it, or int8 is asked of an
            accelerator.
    """
    from transformers import AutoModelForCausalLM

    settings: dict[str, Any] = {"dtype": getattr(torch, floating(dtype))}
    if attention != "auto":
        settings["attn_implementation"] = attention
    if device_map is not None:
        settings["device_map"] = device_map
    model = load_model(AutoModelForCausalLM, checkpoint, **settings)
    if adapter is not None:
        from peft import PeftModel

        try:
            model = PeftModel.from_pretrained(model, str(adapter.directory)).eval()
        except (ValueError, RuntimeError, KeyError) as error:
            raise ValueError(f"adapter '{adapter.name}' does not fit model '{checkpoint.name}': {error}") from error
    if device_map is None:
        model = model.to(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    if dtype == INT8:
        from ctxasr_ray.models.int8_linear import round_weights  # with numba

        model = round_weights(model)
    return CausalLm(model, **options)


def _first_id(ids: int | Sequence[int] | None) -> int | None:
    return ids[0] if isinstance(ids, Sequence) else ids
