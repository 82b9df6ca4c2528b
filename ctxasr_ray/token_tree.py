"""Many token sequences as one tree in which every shared prefix stands once.

A node is a token behind a path of tokens; a causal LM that scores each node once has scored every sequence.
Parents stand before their children, and any set of nodes has a depth-first order in which "k lies on the path to
q" is an interval test. numpy only.

Shapes: n nodes, N sequences, L tokens of the longest sequence, Q query nodes, K key nodes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Int32 = npt.NDArray[np.int32]


@dataclass(slots=True)
class TokenTree:
    """Nodes with a token each, parents before children; nodes are appended, never moved or taken away.

    Args:
        tokens: (n,) int32 token ids.
        parents: (n,) int32 index of the node above, -1 at the top.
        depths: (n,) int32 number of nodes above; the position of the token in its sequence.
    """

    tokens: Int32
    parents: Int32
    depths: Int32
    _children: dict[tuple[int, int], int] = field(default_factory=dict, repr=False)
    _indexed: int = 0

    def __len__(self) -> int:
        return len(self.tokens)

    def append(self, tokens: Sequence[int] | Int32, parents: Sequence[int] | Int32) -> Int32:
        """Adds nodes and returns their indices.

        Args:
            tokens: (m,) token ids.
            parents: (m,) indices of old nodes or of new ones that stand before; -1 is the top.

        Raises:
            ValueError: a parent that does not stand before its child, or unequal lengths.
        """
        first = len(self)
        new_tokens, new_parents = np.asarray(tokens, np.int32), np.asarray(parents, np.int32)
        indices = np.arange(first, first + len(new_tokens), dtype=np.int32)
        if new_tokens.shape != new_parents.shape:
            raise ValueError(f"token tree: {len(new_tokens)} tokens for {len(new_parents)} parents; give one each.")
        wrong = np.flatnonzero((new_parents >= indices) | (new_parents < -1))
        if len(wrong):
            raise ValueError(
                f"token tree: new node {wrong[0]} (index {indices[wrong[0]]}) has parent {new_parents[wrong[0]]}; "
                "a parent is -1 or stands before its child."
            )
        depths = np.concatenate([self.depths, np.zeros(len(indices), np.int32)])
        for node, parent in zip(indices.tolist(), new_parents.tolist(), strict=True):
            depths[node] = depths[parent] + 1 if parent >= 0 else 0
        self.tokens = np.concatenate([self.tokens, new_tokens])
        self.parents = np.concatenate([self.parents, new_parents])
        self.depths = depths
        return indices

    def insert(self, sequence: Sequence[int] | Int32, top: int = -1) -> tuple[int, Int32]:
        """Walks a sequence down from a node and appends what is not there yet.

        Args:
            sequence: Token ids below `top`.
            top: Node to start from; -1 is above all nodes.

        Returns:
            The node of the last token (`top` for an empty sequence) and the indices of the new nodes.
        """
        for node in range(self._indexed, len(self)):
            self._children.setdefault((int(self.parents[node]), int(self.tokens[node])), node)
        self._indexed = len(self)
        node, known = top, 0
        for token in sequence:
            child = self._children.get((node, int(token)))
            if child is None:
                break
            node, known = child, known + 1
        rest, first = sequence[known:], len(self)
        new = self.append(rest, np.array([node, *range(first, first + len(rest) - 1)][: len(rest)], np.int32))
        return (int(new[-1]) if len(new) else node), new

    def path(self, node: int) -> Int32:
        """Indices of the nodes from the top down to `node`, which is the last; empty for -1."""
        nodes = []
        while node >= 0:
            nodes.append(node)
            node = int(self.parents[node])
        return np.array(nodes[::-1], np.int32)

    def leaves(self, nodes: Int32 | None = None) -> Int32:
        """Those of the nodes (None: of all) that have no child among them."""
        chosen = np.arange(len(self), dtype=np.int32) if nodes is None else np.unique(np.asarray(nodes, np.int32))
        return chosen[~np.isin(chosen, self.parents[chosen])]

    def intervals(self) -> tuple[Int32, Int32]:
        """A depth-first order: (n,) rank of each node and (n,) rank behind the last node of its subtree.

        k lies on the path to q, or is q, if and only if rank[k] <= rank[q] < end[k].
        """
        n, parents = len(self), self.parents.tolist()
        sizes = [1] * n
        for node in range(n - 1, -1, -1):
            if parents[node] >= 0:
                sizes[parents[node]] += sizes[node]
        ranks, free = [0] * n, [0] * (n + 1)  # free[-1] belongs to the top
        for node in range(n):
            rank = free[parents[node]]
            free[parents[node]] = rank + sizes[node]
            free[node] = rank + 1
            ranks[node] = rank
        rank_n = np.array(ranks, np.int32)
        return rank_n, rank_n + np.array(sizes, np.int32)

    def visible(self, queries: Int32, keys: Int32) -> npt.NDArray[np.bool_]:
        """(Q, K) whether each key node lies on the path to the query node or is that node itself.

        Args:
            queries: (Q,) node indices; a negative one sees nothing.
            keys: (K,) node indices; a negative one (an empty cache slot) is seen by nobody.
        """
        if not len(self):
            return np.zeros((len(queries), len(keys)), np.bool_)
        rank, end = self.intervals()
        rank_Q, rank_K, end_K = rank[queries][:, None], rank[keys][None, :], end[keys][None, :]
        seen: npt.NDArray[np.bool_] = (rank_K <= rank_Q) & (rank_Q < end_K)
        return seen & (queries >= 0)[:, None] & (keys >= 0)[None, :]


def chain(tokens: Sequence[int] | Int32) -> TokenTree:
    """A tree of one branch, for example a prompt."""
    tokens_n = np.array(tokens, np.int32).reshape(-1)
    depths = np.arange(len(tokens_n), dtype=np.int32)
    return TokenTree(tokens_n, depths - 1, depths)


@dataclass(frozen=True, slots=True)
class MergedSequences:
    """Sequences as one tree in depth-first order, and where each of them lies in it.

    Args:
        tree: The prefix, if any, as the first nodes, and below it every distinct continuation once.
        nodes: (N, L) int32 node of each token of each sequence, -1 behind its end; the prefix is left out.
        ends: (N,) int32 node of each sequence's last token; the last node of the prefix for an empty one
            (-1 without a prefix).
        num_distinct: Distinct sequences.
        num_distinct_tokens: Their tokens, without the prefix.
    """

    tree: TokenTree
    nodes: Int32
    ends: Int32
    num_distinct: int
    num_distinct_tokens: int

    def sums(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """(N,) sum of a per-node value over each sequence's tokens; 0 for an empty sequence."""
        padded = np.concatenate([values, [0.0]])
        total: npt.NDArray[np.float64] = padded[self.nodes].sum(axis=1)
        return total


def merge(sequences: Sequence[Sequence[int] | Int32], prefix: Sequence[int] | Int32 = ()) -> MergedSequences:
    """One tree of all sequences behind one prefix; equal sequences and equal beginnings are merged.

    Args:
        sequences: N token sequences, any may be empty.
        prefix: Tokens that stand before all of them.
    """
    top = chain(prefix)
    lengths = np.array([len(s) for s in sequences], np.int64)
    shape = (len(sequences), int(lengths.max(initial=0)))
    tokens_NL = np.full(shape, -1, np.int64)
    inside_NL = np.arange(shape[1]) < lengths[:, None]
    if inside_NL.any():
        tokens_NL[inside_NL] = np.concatenate([np.asarray(s, np.int64) for s in sequences])
    order = np.lexsort(tokens_NL.T[::-1]) if shape[1] else np.arange(shape[0])
    sorted_NL, inside_NL = tokens_NL[order], inside_NL[order]
    # In sorted order a token stands in the tree already if its row agrees with the row above it up to here.
    known_NL = np.zeros(shape, np.bool_)
    known_NL[1:] = np.logical_and.accumulate(sorted_NL[1:] == sorted_NL[:-1], axis=1)
    new_NL = inside_NL & ~known_NL
    index_NL = np.where(new_NL, np.cumsum(new_NL).reshape(shape) - 1 + len(top), -1)
    index_NL = np.where(inside_NL, np.maximum.accumulate(index_NL, axis=0), -1)
    above_NL = np.concatenate([np.full((shape[0], 1), len(top) - 1), index_NL[:, :-1]], axis=1)[:, : shape[1]]
    depth_NL = np.broadcast_to(np.arange(shape[1]) + len(top), shape)
    tree = TokenTree(
        np.concatenate([top.tokens, sorted_NL[new_NL]]).astype(np.int32),
        np.concatenate([top.parents, above_NL[new_NL]]).astype(np.int32),
        np.concatenate([top.depths, depth_NL[new_NL]]).astype(np.int32),
    )
    nodes_NL = np.empty(shape, np.int32)
    nodes_NL[order] = index_NL
    ends = np.full(shape[0], len(top) - 1, np.int32)
    filled = np.flatnonzero(lengths)
    ends[filled] = nodes_NL[filled, lengths[filled] - 1]
    repeated = np.zeros(shape[0], np.bool_)
    repeated[1:] = (sorted_NL[1:] == sorted_NL[:-1]).all(axis=1)
    return MergedSequences(tree, nodes_NL, ends, int((~repeated).sum()), int(inside_NL[~repeated].sum()))
