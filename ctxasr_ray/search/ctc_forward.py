"""CTC forward variables as natural logarithms, compiled: of whole texts, and of prefixes that grow label by label.

They stand in one file because numba's cache notices changes of a kernel's own file alone. Letters: B prefixes, Q
phrases, N texts, S their labels in one row, T frames, V labels.
"""

import numpy as np
import numpy.typing as npt

from ctxasr_ray.search.ctc_state import Floats, Int32s, compiled

Ids = npt.NDArray[np.int64]


@compiled
def log_add(a: float, b: float) -> float:
    """ln(exp(a) + exp(b)); exp(-37) is below half a float64 step beside 1, so adding it changes nothing."""
    if a < b:
        a, b = b, a
    if b == -np.inf or b - a < -37.0:
        return a
    return float(a + np.log1p(np.exp(b - a)))


@compiled
def forward_of_texts(
    log_probs_TV: Floats, tokens_S: Int32s, offsets: npt.NDArray[np.int64], shared: npt.NDArray[np.int64], blank_id: int
) -> Floats:
    """(N,) ln P of the sorted sequences, however improbable; -inf where impossible."""
    T, N = log_probs_TV.shape[0], len(offsets) - 1
    longest = 0
    for n in range(N):
        longest = max(longest, offsets[n + 1] - offsets[n])
    blank_DT = np.full((longest + 1, T + 1), -np.inf)
    label_DT = np.full((longest + 1, T + 1), -np.inf)
    blank_DT[0, 0] = 0.0
    for t in range(T):
        blank_DT[0, t + 1] = blank_DT[0, t] + log_probs_TV[t, blank_id]
    result = np.empty(N)
    for n in range(N):
        length = offsets[n + 1] - offsets[n]
        for depth in range(shared[n] + 1, length + 1):
            token = tokens_S[offsets[n] + depth - 1]
            repeat = depth > 1 and tokens_S[offsets[n] + depth - 2] == token
            first = min(depth, T + 1)
            label_DT[depth, :first] = -np.inf
            blank_DT[depth, :first] = -np.inf
            for t in range(depth - 1, T):
                entering = blank_DT[depth - 1, t]
                if not repeat:
                    entering = log_add(entering, label_DT[depth - 1, t])
                stay = log_add(label_DT[depth, t], blank_DT[depth, t])
                label_DT[depth, t + 1] = log_add(label_DT[depth, t], entering) + log_probs_TV[t, token]
                blank_DT[depth, t + 1] = stay + log_probs_TV[t, blank_id]
        result[n] = log_add(label_DT[length, T], blank_DT[length, T])
    return result


@compiled
def _one_more(log_prob_T: Floats, blank_prob_T: Floats, repeats: bool, before: Floats, after: Floats) -> None:
    """Forward variables of a prefix and one more label.

    Args:
        log_prob_T: Of the label.
        blank_prob_T: ln P of the blank.
        repeats: Whether the prefix ends with this label, which then begins only behind a blank.
        before: (2, T + 1) of the prefix, those that end in a blank first.
        after: (2, T + 1), is written.
    """
    in_blank, in_label = -np.inf, -np.inf
    after[0, 0], after[1, 0] = in_blank, in_label
    for t in range(len(log_prob_T)):
        entering = before[0, t] if repeats else log_add(before[0, t], before[1, t])
        stay = log_add(in_blank, in_label)
        in_label = log_add(in_label, entering) + log_prob_T[t]
        in_blank = stay + blank_prob_T[t]
        after[0, t + 1], after[1, t + 1] = in_blank, in_label


@compiled
def extended(log_probs_VT: Floats, before_B2T: Floats, last_B: Ids, labels: Ids, parents: Ids, blank_id: int) -> Floats:
    """Forward variables of prefixes that are each one label longer than their parents, as `before_B2T`.

    Args:
        log_probs_VT: Of one utterance.
        before_B2T: (B, 2, T + 1) of the parents, those that end in a blank first.
        last_B: Their last labels, -1 of the empty prefix.
        labels: Of the new prefixes, one each.
        parents: Their rows in `before_B2T`.
        blank_id: The blank.
    """
    after = np.empty((len(labels), 2, before_B2T.shape[2]))
    for row in range(len(labels)):
        label, parent = labels[row], parents[row]
        repeats = last_B[parent] == label
        _one_more(log_probs_VT[label], log_probs_VT[blank_id], repeats, before_B2T[parent], after[row])
    return after


@compiled
def begun(
    log_probs_VT: Floats, before_B2T: Floats, last_B: Ids, labels_S: Ids, ends_Q: Ids, parents_Q: Ids, blank_id: int
) -> Floats:
    """(Q,) ln P of all texts that begin with a prefix and a phrase.

    Args:
        log_probs_VT: Of one utterance.
        before_B2T: As for `extended`.
        last_B: As for `extended`.
        labels_S: Labels of all phrases, one behind the other; each has at least one.
        ends_Q: Where each phrase ends in `labels_S`.
        parents_Q: Row of the prefix before each.
        blank_id: The blank.
    """
    found = np.empty(len(ends_Q))
    frames = log_probs_VT.shape[1]
    buffers = np.empty((2, 2, frames + 1))
    start = 0
    for q in range(len(ends_Q)):
        now, last = before_B2T[parents_Q[q]], last_B[parents_Q[q]]
        for place in range(start, ends_Q[q] - 1):
            label = labels_S[place]
            after = buffers[place % 2]
            _one_more(log_probs_VT[label], log_probs_VT[blank_id], last == label, now, after)
            now, last = after, label
        start = ends_Q[q]
        label, peak = labels_S[start - 1], -np.inf
        begins_T = np.empty(frames)
        for t in range(frames):
            before = now[0, t] if last == label else log_add(now[0, t], now[1, t])
            begins_T[t] = before + log_probs_VT[label, t]
            peak = max(peak, begins_T[t])
        found[q] = peak if peak == -np.inf else peak + np.log(np.exp(begins_T - peak).sum())
    return found
