"""Requests to a causal LM -> token trees that fit one forward pass each, and the way back to scores.

Letters: P prefix, D width.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from ctxasr_ray.models.tree_forward import split_prefix
from ctxasr_ray.token_tree import MergedSequences, merge

if TYPE_CHECKING:
    from ctxasr_ray.models.causal_lm import ScoreRequest, SequenceScores


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
    result: "SequenceScores"

    def finish(self, values: npt.NDArray[np.float64], eos: npt.NDArray[np.float64]) -> None:
        """Writes the sums: of a log-prob per node, and of one per node and a last entry where nothing stands before."""
        log_probs = self.merged.sums(values)
        self.result.eos_log_probs[self.sequences] = eos[self.merged.ends]
        self.result.log_probs[self.sequences] = np.where(np.isfinite(log_probs), log_probs, np.nan)
        for i in np.flatnonzero(~np.isfinite(log_probs)):
            self.result.reasons[self.sequences[i]] = f"the model gives log_prob {log_probs[i]}; try dtype float32"


def list_trees(
    request: "ScoreRequest", kept: list[int], result: "SequenceScores", most_nodes: int
) -> Iterator[ListTree]:
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
