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

from ctxasr_ray.search.ctc_forward import begun, extended
from ctxasr_ray.search.ctc_state import Floats


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
        self._following_BV: Floats | None = None
        blank_T = np.concatenate([[0.0], np.cumsum(self._log_probs_VT[blank_id])])
        self._forward_B2T = np.stack([blank_T, np.full(len(blank_T), -np.inf)])[None]
        self.totals = np.zeros(1)

    def extended(self, tokens_BC: npt.NDArray[np.int64]) -> Floats:
        """(B, C) ln P of all texts that begin with a prefix and one more label; -inf where no alignment is left.

        Args:
            tokens_BC: Labels; the blank extends nothing and gets -inf.
        """
        found: Floats = np.take_along_axis(self._following(), tokens_BC, axis=1)
        return found

    def _following(self) -> Floats:
        """(B, V) ln P of all texts that begin with a prefix and each label; computed once per step of the beam.

        It is the ln of the sum over frames of P(prefix before) P(label); 1e-300 of a prefix's best frame is nothing.
        """
        if self._following_BV is None:
            before_BT = np.logaddexp(self._forward_B2T[:, 0, :-1], self._forward_B2T[:, 1, :-1])
            peak_B1, probs_BT = _from_peak(before_BT)
            repeated = np.flatnonzero(self._last_B >= 0)
            last = self._last_B[repeated]
            peak_R1, blank_RT = _from_peak(
                self._forward_B2T[repeated, 0, :-1]
            )  # a repeated label begins only behind a blank
            with np.errstate(divide="ignore"):
                found = np.log(probs_BT @ self._probs_TV) + peak_B1
                found[repeated, last] = np.log((blank_RT * self._probs_TV.T[last]).sum(axis=1)) + peak_R1[:, 0]
            found[:, self._blank_id] = -np.inf
            self._following_BV = found
        return self._following_BV

    def phrases(self, rows: npt.NDArray[np.int64], phrases: Sequence[Sequence[int]]) -> Floats:
        """(Q,) ln P of all texts that begin with a prefix and a phrase, less that of the prefix; nothing goes on.

        Args:
            rows: (Q,) index of the prefix before each phrase.
            phrases: (Q,) labels of each, at least one.
        """
        labels = np.array([label for phrase in phrases for label in phrase], np.int64)
        ends = np.cumsum([len(phrase) for phrase in phrases])
        before = (self._log_probs_VT, self._forward_B2T, self._last_B)
        found: Floats = begun(*before, labels, ends, rows, self._blank_id) - self.totals[rows]
        return found

    def ended(self) -> Floats:
        """(B,) ln P of each prefix as the whole text."""
        found: Floats = np.logaddexp(self._forward_B2T[:, 0, -1], self._forward_B2T[:, 1, -1])
        return found

    def advance(self, tokens: Sequence[int], parents: Sequence[int]) -> None:
        """Goes on with other prefixes.

        Args:
            tokens: Last label of each.
            parents: Index of the prefix that it extends.
        """
        above = np.asarray(parents, np.int64)
        labels = np.asarray(tokens, np.int64)
        self.totals = self._following()[above, labels]
        self._following_BV = None
        before = (self._log_probs_VT, self._forward_B2T, self._last_B)
        self._forward_B2T = extended(*before, labels, above, self._blank_id)
        self._last_B = labels


def _from_peak(log_probs_BT: Floats) -> tuple[Floats, Floats]:
    """(B, 1) the largest of each row, and (B, T) probabilities over its own; zeros where a row is -inf throughout."""
    peak_B1 = np.maximum(log_probs_BT.max(axis=1, keepdims=True), -1e300)
    return peak_B1, np.exp(log_probs_BT - peak_B1)
