"""Exact CTC scores of given texts: log-probs and label sequences -> ln P over all alignments and frames.

Texts of an N-best list share prefixes, and a prefix's forward variables do not depend on what follows. Sequences
are therefore walked in lexicographic order and every shared prefix is computed once. Letters: T frames, V labels of
the recogniser, N sequences, D depth (0 is the empty prefix), S tokens of all sequences in one line.

Reference:
    Graves et al. 2006, Connectionist temporal classification, ICML, section 4.1 (forward variables);
    sharing them between texts is ours.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from ctxasr_ray.search.ctc_forward import forward_of_texts
from ctxasr_ray.search.ctc_state import Floats, Int32s, compiled

FLUSHED: Final = 1e-300
"""Probabilities below become 0 in the linear recursion; denormal numbers are 100 times slower."""
TRUSTED: Final = 1e-280
"""P(text) from which the linear recursion is exact: all that was flushed is 1e-14 of it at most, because the rest of
a path multiplies it by at most 1. Below, the logarithmic recursion runs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ForcedScore:
    """ln P(text | audio) over all alignments and all frames, or why there is none."""

    log_prob: float | None
    reason: str | None = None
    """Set where the recogniser cannot write the text at all; such a score is None, never -inf."""


def ctc_forward_score(log_probs_TV: npt.ArrayLike, token_ids: Sequence[int] | Int32s, blank_id: int) -> ForcedScore:
    """The exact score of one text, without any pruning.

    Args:
        log_probs_TV: Natural logarithms, log-softmax at temperature 1.
        token_ids: The text's labels, without blanks; may be empty.
        blank_id: Label of the blank.

    Raises:
        ValueError: a token that is the blank or no label at all.
    """
    return ctc_forward_scores(log_probs_TV, [token_ids], blank_id)[0]


def ctc_forward_scores(
    log_probs_TV: npt.ArrayLike, sequences: Sequence[Sequence[int] | Int32s], blank_id: int
) -> list[ForcedScore]:
    """The exact scores of many texts of one utterance; shared prefixes are computed once.

    Args:
        log_probs_TV: Natural logarithms, log-softmax at temperature 1.
        sequences: Label sequences without blanks, any order, repeats allowed.
        blank_id: Label of the blank.

    Returns:
        One score per sequence, in the order given.

    Raises:
        ValueError: a token that is the blank or no label at all.
    """
    log_probs = np.ascontiguousarray(log_probs_TV, dtype=np.float64)
    results: list[ForcedScore] = [ForcedScore(log_prob=None)] * len(sequences)
    batch = sorted_sequences(sequences, log_probs.shape[1], blank_id)
    probs = _forward_linear(np.exp(log_probs), batch.token_ids, batch.offsets, batch.shared, blank_id)
    rest = [n for place, n in enumerate(batch.order) if not TRUSTED <= probs[place] < np.inf]
    for place, n in enumerate(batch.order):
        if TRUSTED <= probs[place] < np.inf:
            results[n] = ForcedScore(log_prob=float(np.log(probs[place])))
    if rest:
        batch = sorted_sequences([sequences[n] for n in rest], log_probs.shape[1], blank_id)
        scores = forward_of_texts(log_probs, batch.token_ids, batch.offsets, batch.shared, blank_id)
        for place, n in enumerate(rest[i] for i in batch.order):
            possible = scores[place] > -np.inf
            results[n] = ForcedScore(
                log_prob=float(scores[place]) if possible else None,
                reason=None if possible else _impossible(sequences[n], len(log_probs)),
            )
    return results


@dataclass(frozen=True, slots=True)
class SortedSequences:
    """Label sequences in lexicographic order.

    Args:
        order: Index of each sequence in the list that was given.
        token_ids: (S,) all of them in one line.
        offsets: (N + 1,) sequence n owns tokens offsets[n] to offsets[n + 1].
        shared: (N,) tokens that each has in common with the one before it.
    """

    order: list[int]
    token_ids: Int32s
    offsets: npt.NDArray[np.int64]
    shared: npt.NDArray[np.int64]


def sorted_sequences(sequences: Sequence[Sequence[int] | Int32s], num_labels: int, blank_id: int) -> SortedSequences:
    """Sorts label sequences so that those with a common prefix are neighbours.

    Raises:
        ValueError: a token that is the blank or no label at all.
    """
    rows = [tuple(np.asarray(sequence, dtype=np.int64).tolist()) for sequence in sequences]
    for n, row in enumerate(rows):
        wrong = [token for token in row if token == blank_id or not 0 <= token < num_labels]
        if wrong:
            raise ValueError(
                f"sequence {n} holds label {wrong[0]}; expected 0 to {num_labels - 1} without the blank {blank_id}."
            )
    order = sorted(range(len(rows)), key=rows.__getitem__)
    shared = np.zeros(len(rows), dtype=np.int64)
    for place, (before, n) in enumerate(itertools.pairwise(order), start=1):
        pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(rows[before], rows[n], strict=False))
        shared[place] = sum(1 for _ in pairs)
    tokens = np.asarray([token for n in order for token in rows[n]], dtype=np.int32)
    offsets = np.cumsum([0, *(len(rows[n]) for n in order)]).astype(np.int64)
    return SortedSequences(order, tokens, offsets, shared)


def _impossible(sequence: Sequence[int] | Int32s, num_frames: int) -> str:
    repeats = sum(int(a == b) for a, b in itertools.pairwise(sequence))
    needed = len(sequence) + repeats
    if needed > num_frames:
        labels = f"{len(sequence)} labels, {repeats} of them repeats"
        return f"text needs at least {needed} frames ({labels}), audio has {num_frames}"
    return "every alignment of the text has probability zero"


@compiled
def _forward_linear(
    probs_TV: Floats, tokens_S: Int32s, offsets: npt.NDArray[np.int64], shared: npt.NDArray[np.int64], blank_id: int
) -> Floats:
    """(N,) P of the sorted sequences; values below `TRUSTED` are not to be trusted."""
    T, N = probs_TV.shape[0], len(offsets) - 1
    longest = 0
    for n in range(N):
        longest = max(longest, offsets[n + 1] - offsets[n])
    blank_DT = np.zeros((longest + 1, T + 1))  # column 0 is the state before the first frame
    label_DT = np.zeros((longest + 1, T + 1))
    blank_T, label_T = np.ascontiguousarray(probs_TV[:, blank_id]), np.empty(T)
    blank_DT[0, 0] = 1.0
    for t in range(T):
        blank_DT[0, t + 1] = blank_DT[0, t] * blank_T[t]
    result = np.empty(N)
    for n in range(N):
        length = offsets[n + 1] - offsets[n]
        for depth in range(shared[n] + 1, length + 1):
            token = tokens_S[offsets[n] + depth - 1]
            weight = 0.0 if depth > 1 and tokens_S[offsets[n] + depth - 2] == token else 1.0
            for t in range(T):
                label_T[t] = probs_TV[t, token]
            first = min(depth, T + 1)
            label_DT[depth, :first] = 0.0
            blank_DT[depth, :first] = 0.0
            in_label, in_blank = 0.0, 0.0
            for t in range(depth - 1, T):
                entering = blank_DT[depth - 1, t] + weight * label_DT[depth - 1, t]
                in_blank = (in_blank + in_label) * blank_T[t]
                in_label = (in_label + entering) * label_T[t]
                if in_label < FLUSHED:
                    in_label = 0.0
                if in_blank < FLUSHED:
                    in_blank = 0.0
                label_DT[depth, t + 1] = in_label
                blank_DT[depth, t + 1] = in_blank
        result[n] = label_DT[length, T] + blank_DT[length, T]
    return result
