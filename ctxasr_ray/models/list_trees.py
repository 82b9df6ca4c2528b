"""Requests to a causal LM -> token trees that fit one forward pass each, and the way back to scores.

Letters: P prefix, D width.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from ctxasr_ray.models.tree_forward import Prefix, split_prefix
from ctxasr_ray.token_tree import Int32, MergedSequences, merge


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """Sequences to be scored behind one prefix.

    Args:
        prefix: Tokens or embeddings before all of them; may be empty.
        sequences: N token sequences; equal ones are scored once.
    """

    prefix: Prefix
    sequences: Sequence[Int32]


@dataclass(frozen=True, slots=True)
class SequenceScores:
    """What a causal LM says of the sequences of one request, in nats.

    Args:
        log_probs: (N,) float64, summed over the tokens, end of sequence apart; 0.0 for an empty sequence. Without
            a prefix the first token has no distribution and is left out. nan where `reasons` says why.
        eos_log_probs: (N,) float64, log P(end of sequence | prefix and sequence); nan where there is no such
            token, where nothing stands before it, or where `reasons` says why.
        reasons: (N,) None, or why a sequence has no score.
        counters: What the request alone cost: `llm_calls` that it took part in, `nodes` and `tokens_flat` (prefix
            included), and `kv_bytes`: keys and values of one layer at a time, of all layers behind a prefix that
            went ahead.
    """

    log_probs: npt.NDArray[np.float64]
    eos_log_probs: npt.NDArray[np.float64]
    reasons: list[str | None]
    counters: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ListTree:
    """One tree to be scored, and where its scores go.

    Args:
        merged: The prefix and the sequences behind it.
        num_prefix: P, nodes of the prefix.
        embeddings: (P, D) where the prefix has no tokens.
        sequences: Index of each sequence in its request.
        result: Of the request.
    """

    merged: MergedSequences
    num_prefix: int
    embeddings: torch.Tensor | None
    sequences: list[int]
    result: SequenceScores

    def finish(self, values: npt.NDArray[np.float64], eos: npt.NDArray[np.float64]) -> None:
        """Writes the sums: of a log-prob per node, and of one per node and a last entry where nothing stands before."""
        log_probs = self.merged.sums(values)
        self.result.eos_log_probs[self.sequences] = eos[self.merged.ends]
        self.result.log_probs[self.sequences] = np.where(np.isfinite(log_probs), log_probs, np.nan)
        for i in np.flatnonzero(~np.isfinite(log_probs)):
            self.result.reasons[self.sequences[i]] = f"the model gives log_prob {log_probs[i]}; try dtype float32"


def list_trees(request: ScoreRequest, kept: list[int], result: SequenceScores, most_nodes: int) -> Iterator[ListTree]:
    """One tree for the sequences kept, or several where one would have too many nodes."""
    if not kept:
        return
    prefix, embeddings = split_prefix(request.prefix)
    merged = merge([request.sequences[i] for i in kept], prefix)
    if len(merged.tree) > most_nodes and len(kept) > 1:
        ordered = sorted(kept, key=lambda i: request.sequences[i].tolist())
        for half in (ordered[: len(kept) // 2], ordered[len(kept) // 2 :]):
            yield from list_trees(request, half, result, most_nodes)
    else:
        yield ListTree(merged, len(prefix), embeddings, kept, result)
