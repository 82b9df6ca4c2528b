"""The two fusions of a label-synchronous search with an LM of its own pieces: gated, and shallow.

Gated: rows rank by ln((p_leader + w p_helper) / (1 + w)), see `search.token_gate`; the recogniser leads, or the LM.
Shallow: by ln p_asr + lm_weight * ln p_lm + length_bonus per token, the end weighed but without bonus.
Letters: U utterances, B rows of a beam, V vocabulary of the recogniser.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from ctxasr_ray.search.label_fusion import LmRows, Ranked, Steps
from ctxasr_ray.search.token_gate import TokenGate, calibrated, fused
from ctxasr_ray.stage import Costs

if TYPE_CHECKING:
    import torch


class Heard(NamedTuple):
    """Both models at some rows, calibrated, in nats, and what the gate made of them."""

    recogniser: "torch.Tensor"
    """(U, B, V)"""
    lm: "torch.Tensor | None"
    """(U, B, V), uniform where `given` is not; None where no row was asked for."""
    given: "torch.Tensor | None"
    """(U, B) rows with a distribution of the LM."""
    weights: "torch.Tensor"
    """(U, B) of the helper, 0 where it is not heard."""
    fused: "torch.Tensor"
    """(U, B, V)"""


@dataclass(frozen=True, kw_only=True, slots=True)
class GatedRows:
    """Gated token fusion; a `label_fusion.RowFusion`.

    Where the weight is 0 the LM is not asked: that is counted as `lm_rows_skipped`, and a row below is caught up with.
    """

    lm: LmRows
    gate: TokenGate
    leader: Literal["recogniser", "lm"] = "recogniser"
    """Whose uncertainty opens the gate to the other. With the LM as leader it is asked for every row."""
    opened_by: Literal["row", "best_row"] = "row"
    """Whose weight must reach the gate's least one: each row's own, or that of the utterance's best row for all of its
    rows; then a step whose best row is sure asks nothing. Ours."""
    temperature: float = 1.0
    """Of the recogniser."""
    lm_temperature: float = 1.0
    """Of the LM."""
    costs: Costs = field(default_factory=Costs)

    @property
    def max_gain(self) -> float:
        """Probabilities raise no score."""
        return 0.0

    def ranked(self, log_probs_UBV: "torch.Tensor") -> Ranked:
        """As `label_fusion.RowFusion`; rows of an utterance that the LM cannot serve stay as they are."""
        return Ranked(self.heard(log_probs_UBV).fused, None)

    def heard(self, log_probs_UBV: "torch.Tensor", *, asks_all: bool = False) -> Heard:
        """What the gate makes of rows.

        Args:
            log_probs_UBV: As for `ranked`.
            asks_all: Ask the LM where it is not heard too, so that its distribution is known; changes no weight.
        """
        own_UBV = calibrated(log_probs_UBV, self.temperature)
        real_UB = _real(self.lm, own_UBV.shape[1])
        if self.leader == "lm":
            lm_UBV, given_UB = self._distributions(real_UB, own_UBV)
            weights_UB = self.gate.weights(lm_UBV)
            fused_UBV = fused(lm_UBV, own_UBV, weights_UB).where(given_UB[..., None], own_UBV)
            return Heard(own_UBV, lm_UBV, given_UB, weights_UB * given_UB, fused_UBV)
        weights_UB = self.gate.weights(own_UBV)
        if self.opened_by == "best_row":  # rows stand best first
            weights_UB = weights_UB * (weights_UB[:, :1] > 0)
        asked_UB = real_UB if asks_all else real_UB & (weights_UB > 0).cpu().numpy()
        self.costs.count("lm_rows_skipped", int(real_UB.sum() - asked_UB.sum()))
        if not asked_UB.any():
            return Heard(own_UBV, None, None, weights_UB.zero_(), own_UBV)
        lm_UBV, given_UB = self._distributions(asked_UB, own_UBV)
        weights_UB = weights_UB * given_UB
        return Heard(own_UBV, lm_UBV, given_UB, weights_UB, fused(own_UBV, lm_UBV, weights_UB))

    def advance(self, steps: Steps) -> None:
        """As `label_fusion.RowFusion`."""
        self.lm.advance(steps)

    def keep(self, utterances: Sequence[int]) -> None:
        """As `label_fusion.RowFusion`."""
        self.lm.keep(utterances)

    def _distributions(
        self, asked_UB: npt.NDArray[np.bool_], like: "torch.Tensor"
    ) -> "tuple[torch.Tensor, torch.Tensor]":
        """The LM's distributions over the shared pieces, summing to 1, and which rows have one; others are uniform."""
        import torch

        found_UBV, given_UB = self.lm.log_probs(asked_UB)
        given = torch.from_numpy(given_UB).to(like.device)
        lm_UBV = torch.from_numpy(found_UBV).to(like).masked_fill(~given[..., None], 0.0)
        return (lm_UBV / self.lm_temperature).log_softmax(-1), given


@dataclass(frozen=True, kw_only=True, slots=True)
class ShallowRows:
    """Shallow fusion by token; a `label_fusion.RowFusion`."""

    lm: LmRows
    eos_id: int
    """The recogniser's end, which gets no bonus."""
    lm_weight: float
    """Of ln P_LM, end of sequence included."""
    length_bonus: float = 0.0
    """Nats per token."""

    @property
    def max_gain(self) -> float:
        """Only the bonus can raise a score."""
        return max(0.0, self.length_bonus)

    def ranked(self, log_probs_UBV: "torch.Tensor") -> Ranked:
        """As `label_fusion.RowFusion`; rows of an utterance that the LM cannot serve get the bonus alone."""
        import torch

        found_UBV, _ = self.lm.log_probs(_real(self.lm, log_probs_UBV.shape[1]))
        added_UBV = self.lm_weight * torch.from_numpy(found_UBV).to(log_probs_UBV).nan_to_num(neginf=0.0)
        added_UBV += self.length_bonus
        added_UBV[..., self.eos_id] -= self.length_bonus
        return Ranked(log_probs_UBV, added_UBV)

    def advance(self, steps: Steps) -> None:
        """As `label_fusion.RowFusion`."""
        self.lm.advance(steps)

    def keep(self, utterances: Sequence[int]) -> None:
        """As `label_fusion.RowFusion`."""
        self.lm.keep(utterances)


def _real(lm: LmRows, width: int) -> npt.NDArray[np.bool_]:
    """(U, B) rows that are no padding and that the LM serves."""
    real: npt.NDArray[np.bool_] = np.arange(width) < np.array(lm.num_rows)[:, None]
    return real
