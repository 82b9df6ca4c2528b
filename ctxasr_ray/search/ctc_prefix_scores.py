"""ln P_ctc of all texts that begin with a prefix, for the beam of a label-synchronous search.

A prefix keeps, for every number of frames heard, ln P(it is what was written so far). The score of one more label
sums over the frame in which that label begins: one matrix product for all labels behind all prefixes, without a
recursion; only the prefixes that survive are run forward.
Letters: B prefixes, C candidates of each, T frames, V labels.

Reference:
    Watanabe et al. 2017, Hybrid CTC/Attention architecture for end-to-end speech recognition, IEEE JSTSP 11(8),
    algorithm 2. The sum over the label's first frame is theirs; leaving the forward variables to the survivors is ours.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ctxasr_ray.search.ctc_state import Floats, compiled


class CtcPrefixScores:
    """Prefixes of one utterance, at first the empty one.

    Args:
        log_probs_TV: Natural logarithms, log-softmax at temperature 1.
        blank_id: Label of the blank.
    """

    totals: Floats
    """(B,) ln P of all texts that begin with each prefix; 0 for the empty one."""

    def __init__(self, log_probs_TV: npt.NDArray[np.float32], blank_id: int) -> None:
        self._log_probs_VT = np.ascontiguousarray(log_probs_TV.T, dtype=np.float64)
        self._probs_TV = np.exp(self._log_probs_VT.T)
        self._blank_id = blank_id
        self._last_B = np.full(1, -1, np.int64)
        blank_T = np.concatenate([[0.0], np.cumsum(self._log_probs_VT[blank_id])])
        self._blank_BT, self._label_BT = blank_T[None], np.full((1, len(blank_T)), -np.inf)
        self.totals = np.zeros(1)

    def extended(self, tokens_BC: npt.NDArray[np.int64]) -> Floats:
        """(B, C) ln P of all texts that begin with a prefix and one more label; -inf where no alignment is left.

        Args:
            tokens_BC: Labels; the blank extends nothing and gets -inf.
        """
        before_BT = np.logaddexp(self._blank_BT, self._label_BT)[:, :-1]
        found: Floats = np.take_along_axis(self._beginning(before_BT), tokens_BC, axis=1)
        rows, columns = np.nonzero(tokens_BC == self._last_B[:, None])
        if len(rows):  # a repeated label begins only behind a blank
            found[rows, columns] = self._beginning(self._blank_BT[rows, :-1])[np.arange(len(rows)), self._last_B[rows]]
        found[tokens_BC == self._blank_id] = -np.inf
        return found

    def _beginning(self, before_BT: Floats) -> Floats:
        """(B, V) ln of the sum over frames of P(before) P(label); 1e-300 of a prefix's best frame is nothing."""
        peak_B1 = np.maximum(before_BT.max(axis=1, keepdims=True), -1e300)
        with np.errstate(divide="ignore"):
            found: Floats = np.log(np.exp(before_BT - peak_B1) @ self._probs_TV) + peak_B1
        return found

    def phrases(self, rows: npt.NDArray[np.int64], phrases: Sequence[Sequence[int]]) -> Floats:
        """(Q,) ln P of all texts that begin with a prefix and a phrase, less that of the prefix; nothing goes on.

        Args:
            rows: (Q,) index of the prefix before each phrase.
            phrases: (Q,) labels of each, at least one.
        """
        found = np.empty(len(rows))
        going = np.arange(len(rows))
        blank_QT, label_QT, last_Q = self._blank_BT[rows], self._label_BT[rows], self._last_B[rows]
        for depth in range(max(map(len, phrases), default=0)):
            labels = np.array([phrases[q][depth] for q in going.tolist()], np.int64)
            ends = np.array([len(phrases[q]) == depth + 1 for q in going.tolist()])
            before_QT = np.where((labels != last_Q)[:, None], np.logaddexp(blank_QT, label_QT), blank_QT)[ends, :-1]
            found[going[ends]] = np.logaddexp.reduce(before_QT + self._log_probs_VT[labels[ends]], axis=1)
            above = np.flatnonzero(~ends)
            blank_QT, label_QT = _extended(
                self._log_probs_VT, blank_QT, label_QT, labels[above], above, last_Q, self._blank_id
            )
            last_Q, going = labels[above], going[above]
        return found - self.totals[rows]

    def ended(self) -> Floats:
        """(B,) ln P of each prefix as the whole text."""
        found: Floats = np.logaddexp(self._blank_BT[:, -1], self._label_BT[:, -1])
        return found

    def advance(self, tokens: Sequence[int], parents: Sequence[int]) -> None:
        """Goes on with other prefixes.

        Args:
            tokens: Last label of each.
            parents: Index of the prefix that it extends.
        """
        above = np.asarray(parents, np.int64)
        labels = np.asarray(tokens, np.int64)
        self.totals = self.extended(np.tile(labels, (len(self._last_B), 1)))[above, np.arange(len(above))]
        self._blank_BT, self._label_BT = _extended(
            self._log_probs_VT, self._blank_BT, self._label_BT, labels, above, self._last_B, self._blank_id
        )
        self._last_B = labels


@compiled
def _extended(
    log_probs_VT: Floats,
    blank_BT: Floats,
    label_BT: Floats,
    tokens: npt.NDArray[np.int64],
    parents: npt.NDArray[np.int64],
    last_B: npt.NDArray[np.int64],
    blank_id: int,
) -> tuple[Floats, Floats]:
    """Forward variables of prefixes that are each one label longer than their parents."""
    num, frames = len(tokens), log_probs_VT.shape[1]
    new_blank, new_label = np.full((num, frames + 1), -np.inf), np.full((num, frames + 1), -np.inf)
    for row in range(num):
        parent, token = parents[row], tokens[row]
        for t in range(frames):
            entering = blank_BT[parent, t]
            if last_B[parent] != token:
                entering = np.logaddexp(entering, label_BT[parent, t])
            in_label, in_blank = new_label[row, t], new_blank[row, t]
            new_label[row, t + 1] = np.logaddexp(in_label, entering) + log_probs_VT[token, t]
            new_blank[row, t + 1] = np.logaddexp(in_blank, in_label) + log_probs_VT[blank_id, t]
    return new_blank, new_label
