"""Where the most probable CTC alignment puts each token, and how sure the recogniser is there.

Letters: T frames, V labels of the recogniser, N sequences, D depth (0 is the empty prefix), S tokens in one line.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ctxasr_ray.search.ctc_forced import sorted_sequences
from ctxasr_ray.search.ctc_state import Floats, Int32s, compiled


@dataclass(frozen=True, kw_only=True, slots=True)
class Alignment:
    """The single most probable alignment, in frames; arrays are parallel to the tokens."""

    start_frame: Int32s
    end_frame: Int32s
    """One past the token's last frame."""
    peak_frame: Int32s
    """The token's frame of highest probability; of equal ones the first."""


def ctc_alignments(
    log_probs_TV: npt.ArrayLike, sequences: Sequence[Sequence[int] | Int32s], blank_id: int
) -> list[Alignment | None]:
    """The most probable alignment (Viterbi) of each text; None where a text has no alignment.

    Of equally probable alignments the one whose labels begin earlier is taken, deterministically.

    Args:
        log_probs_TV: Natural logarithms, log-softmax at temperature 1.
        sequences: Label sequences without blanks.
        blank_id: Label of the blank.

    Raises:
        ValueError: a token that is the blank or no label at all.
    """
    log_probs = np.ascontiguousarray(log_probs_TV, dtype=np.float64)
    batch = sorted_sequences(sequences, log_probs.shape[1], blank_id)
    spans_3S = np.zeros((3, len(batch.token_ids)), dtype=np.int32)
    scores = _viterbi(log_probs, batch.token_ids, batch.offsets, batch.shared, blank_id, spans_3S)
    results: list[Alignment | None] = [None] * len(sequences)
    for place, n in enumerate(batch.order):
        if scores[place] > -np.inf:
            start, end, peak = spans_3S[:, batch.offsets[place] : batch.offsets[place + 1]]
            results[n] = Alignment(start_frame=start, end_frame=end, peak_frame=peak)
    return results


def entropies(log_probs_TV: npt.ArrayLike) -> Floats:
    """(T,) entropy of each frame over all labels, blank included, in nats."""
    log_probs = np.asarray(log_probs_TV, dtype=np.float64)
    finite = np.where(np.isneginf(log_probs), 0.0, log_probs)
    entropy: Floats = -(np.exp(log_probs) * finite).sum(axis=1)
    return np.maximum(entropy, 0.0)


@compiled
def _backtrace(
    log_probs_TV: Floats,
    tokens: Int32s,
    in_label: bool,
    after_label_DT: npt.NDArray[np.bool_],
    source_DT: npt.NDArray[np.int8],
    spans_3S: Int32s,
) -> None:
    """Walks one best alignment from its end."""
    depth = len(tokens)
    for t in range(log_probs_TV.shape[0], 0, -1):
        if depth == 0:
            return
        if not in_label:
            in_label = after_label_DT[depth, t]
            continue
        place = depth - 1
        if spans_3S[1, place] == 0:
            spans_3S[1, place] = t
            spans_3S[2, place] = t - 1
        spans_3S[0, place] = t - 1
        if log_probs_TV[t - 1, tokens[place]] >= log_probs_TV[spans_3S[2, place], tokens[place]]:
            spans_3S[2, place] = t - 1
        source = source_DT[depth, t]
        if source > 0:
            depth -= 1
            in_label = source == 2


@compiled
def _viterbi(
    log_probs_TV: Floats,
    tokens_S: Int32s,
    offsets: npt.NDArray[np.int64],
    shared: npt.NDArray[np.int64],
    blank_id: int,
    spans_3S: Int32s,
) -> Floats:
    """(N,) ln P of each best alignment; fills first frame, one past the last, and peak frame of every token."""
    T, N = log_probs_TV.shape[0], len(offsets) - 1
    longest = 0
    for n in range(N):
        longest = max(longest, offsets[n + 1] - offsets[n])
    blank_DT = np.full((longest + 1, T + 1), -np.inf)  # column 0 is the state before the first frame
    label_DT = np.full((longest + 1, T + 1), -np.inf)
    after_label_DT = np.zeros((longest + 1, T + 1), dtype=np.bool_)  # a blank right after its own label
    source_DT = np.zeros((longest + 1, T + 1), dtype=np.int8)  # of a label: 0 itself, 1 the blank before, 2 the label
    blank_DT[0, 0] = 0.0
    for t in range(T):
        blank_DT[0, t + 1] = blank_DT[0, t] + log_probs_TV[t, blank_id]
    scores = np.empty(N)
    for n in range(N):
        tokens = tokens_S[offsets[n] : offsets[n + 1]]
        for depth in range(shared[n] + 1, len(tokens) + 1):
            token = tokens[depth - 1]
            repeat = depth > 1 and tokens[depth - 2] == token
            first = min(depth, T + 1)
            label_DT[depth, :first] = -np.inf
            blank_DT[depth, :first] = -np.inf
            for t in range(depth - 1, T):
                stay, source = label_DT[depth, t], 0
                if blank_DT[depth - 1, t] > stay:
                    stay, source = blank_DT[depth - 1, t], 1
                if not repeat and label_DT[depth - 1, t] > stay:
                    stay, source = label_DT[depth - 1, t], 2
                label_DT[depth, t + 1] = stay + log_probs_TV[t, token]
                source_DT[depth, t + 1] = source
                after_label = label_DT[depth, t] > blank_DT[depth, t]
                after_label_DT[depth, t + 1] = after_label
                before = label_DT[depth, t] if after_label else blank_DT[depth, t]
                blank_DT[depth, t + 1] = before + log_probs_TV[t, blank_id]
        in_label = label_DT[len(tokens), T] > blank_DT[len(tokens), T]
        scores[n] = max(label_DT[len(tokens), T], blank_DT[len(tokens), T])
        if scores[n] > -np.inf:
            spans_3S_n = spans_3S[:, offsets[n] : offsets[n + 1]]
            _backtrace(log_probs_TV, tokens, in_label, after_label_DT, source_DT, spans_3S_n)
    return scores
