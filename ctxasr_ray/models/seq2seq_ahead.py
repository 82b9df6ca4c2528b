"""Phrases behind the rows of a beam: what a decoder says of them, without writing them.

Letters: R rows of a beam, Q phrases, N nodes of the tree that they make below the rows, S log-probs that are asked for,
D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from ctxasr_ray.token_tree import merge

LOGITS_LIMIT_BYTES: Final = 64 * 2**20
"""Largest logits buffer."""
Ints = npt.NDArray[np.int64]
Phrases = Sequence[tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Branches:
    """Phrases below rows as one tree; a phrase's last token is predicted and not forwarded.

    Args:
        rows: (N,) the row that each node hangs below.
        tokens: (N,) of the nodes, ancestors first.
        depths: (N,) 0 of a phrase's first token.
        seen: (N, N) whether a node reads another one: itself and its ancestors.
        predicting: (S,) node before each token of the phrases but their first.
        predicted: (S,) those tokens.
        phrase: (S,) the phrase that each belongs to.
    """

    rows: Ints
    tokens: Ints
    depths: Ints
    seen: npt.NDArray[np.bool_]
    predicting: Ints
    predicted: Ints
    phrase: Ints


def branches(rows: Sequence[int], phrases: Phrases) -> Branches:
    """The tree of some phrases; equal beginnings behind the same row are one.

    Args:
        rows: (Q,) the row before each phrase.
        phrases: Q, each of at least one token.
    """
    merged = merge([(row, *phrase[:-1]) for row, phrase in zip(rows, phrases, strict=True)])  # a row as a first token
    tree, is_row = merged.tree, merged.tree.depths == 0
    nodes = np.flatnonzero(~is_row).astype(np.int32)
    above = np.maximum.accumulate(np.where(is_row, np.arange(len(tree)), 0))  # depth-first: the last row before a node
    place = np.cumsum(~is_row) - 1
    lengths = [len(phrase) - 1 for phrase in phrases]
    before = [place[own[1 : 1 + length]] for own, length in zip(merged.nodes, lengths, strict=True)]
    return Branches(
        rows=tree.tokens[above[nodes]].astype(np.int64),
        tokens=tree.tokens[nodes].astype(np.int64),
        depths=tree.depths[nodes].astype(np.int64) - 1,
        seen=tree.visible(nodes, nodes),
        predicting=np.concatenate(before).astype(np.int64),
        predicted=np.array([token for phrase in phrases for token in phrase[1:]], np.int64),
        phrase=np.repeat(np.arange(len(phrases)), lengths),
    )


def log_probs_behind(head: Any, hidden_RD: torch.Tensor, rows_S: Ints, tokens_S: Ints) -> npt.NDArray[np.float64]:
    """(S,) log-probs of single tokens; the head runs over a bounded number of rows at a time.

    Args:
        head: Hidden states to logits.
        hidden_RD: States.
        rows_S: The state that predicts each token.
        tokens_S: Tokens.
    """
    needed, local = np.unique(rows_S, return_inverse=True)
    values, device = np.empty(len(rows_S)), hidden_RD.device
    step = max(1, LOGITS_LIMIT_BYTES // (4 * int(head.weight.shape[0])))
    for start in range(0, len(needed), step):
        logits = head(hidden_RD[to_ids(needed[start : start + step], device)]).float()
        mine = np.flatnonzero((local >= start) & (local < start + step))
        rows = to_ids(local[mine] - start, device)
        picked = logits[rows, to_ids(tokens_S[mine], device)]
        values[mine] = (picked - logits.logsumexp(-1)[rows]).cpu().numpy()
    return values


def sums(values_S: npt.NDArray[np.float64], phrase_S: Ints, num_phrases: int) -> npt.NDArray[np.float64]:
    """(Q,) sum of the values of each phrase, 0 without any."""
    found = np.zeros(num_phrases)
    np.add.at(found, phrase_S, values_S)
    return found


def to_ids(ids: npt.NDArray[Any], device: torch.device) -> torch.Tensor:
    """int64 indices on a device."""
    return torch.from_numpy(np.asarray(ids, np.int64)).to(device)
