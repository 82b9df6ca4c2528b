"""How far a helper model is let into a decision: by how unsure the leading model is of its next token.

w = sigmoid(u) - 0.5, so a leader that is sure (u = 0) hears nobody (w = 0), and w grows with u towards 0.5. Both
distributions are calibrated by a temperature each before u is taken.

Reference:
    Zhou and Li 2025, Multi-grained fusion, arXiv:2507.12252: late fusion by token, where the recogniser's uncertainty
    gates the LLM's weight (the paper's equation 3, known to us from prose). That u is the entropy in nats, w =
    sigmoid(u) - 0.5 and the temperatures are inferred from Chen et al. 2024, UADF, arXiv:2402.05457 (its equation 10,
    where the LLM leads and the recogniser helps). Dividing by 1 + w, so that a beam adds logarithms of probabilities,
    is ours; so are the margin, the logarithm of the vocabulary as unit, and the least weight.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenGate:
    """The weight of the helper, and the fused distribution."""

    uncertainty: Literal["entropy", "margin"] = "entropy"
    """Entropy, or 1 - (the best token's probability - the second best's)."""
    entropy_scale: Literal["nats", "log_vocab"] = "nats"
    """Nats as in UADF; log_vocab divides by the logarithm of the vocabulary's size, so that u is at most 1."""
    min_weight: float = 0.0
    """Below it the helper is not asked, and what the leader says stands."""

    def __post_init__(self) -> None:
        """Refuses what no gate is.

        Raises:
            ValueError: an unknown name, or a negative weight.
        """
        if self.uncertainty not in ("entropy", "margin"):
            raise ValueError(f"uncertainty is '{self.uncertainty}'; expected entropy or margin.")
        if self.entropy_scale not in ("nats", "log_vocab"):
            raise ValueError(f"entropy_scale is '{self.entropy_scale}'; expected nats or log_vocab.")
        if not self.min_weight >= 0:
            raise ValueError(f"min_weight is {self.min_weight}; expected 0 or more (0.5 is never reached).")

    @property
    def unit(self) -> str:
        """What u is measured in: nats, log_vocab or margin."""
        return "margin" if self.uncertainty == "margin" else self.entropy_scale

    def weights(self, log_probs_V: "torch.Tensor") -> "torch.Tensor":
        """(...) weights in [0, 0.5], 0 where they are below `min_weight`.

        Args:
            log_probs_V: (..., V) of the leader, in nats, calibrated.
        """
        weights: torch.Tensor = self.doubts(log_probs_V).sigmoid() - 0.5
        return weights.masked_fill(weights < self.min_weight, 0.0)

    def doubts(self, log_probs_V: "torch.Tensor") -> "torch.Tensor":
        """(...) u, the leader's uncertainty, in `unit`; `log_probs_V` as in `weights`."""
        probs_V = log_probs_V.exp()
        if self.uncertainty == "margin":
            best = probs_V.topk(2, dim=-1).values
            return 1 - (best[..., 0] - best[..., 1])
        entropy = -(probs_V * log_probs_V).nan_to_num(0.0).sum(-1).clamp_max(0.0)  # 0 ln 0 is 0
        return entropy / math.log(log_probs_V.shape[-1]) if self.entropy_scale == "log_vocab" else entropy


def fused(leader_V: "torch.Tensor", helper_V: "torch.Tensor", weights: "torch.Tensor") -> "torch.Tensor":
    """(..., V) ln((p_leader + w p_helper) / (1 + w)), in nats; the leader itself, to the bit, where w is 0.

    The sum is of probabilities, taken by log-add-exp, so that a token that one model excludes loses nothing to
    underflow.

    Args:
        leader_V: (..., V) log-probs that sum to 1.
        helper_V: (..., V) log-probs that sum to 1; not read where w is 0.
        weights: (...) from `TokenGate.weights`.
    """
    w = weights[..., None]
    mixed = leader_V.logaddexp(helper_V + w.log()) - w.log1p()
    return mixed.where(w > 0, leader_V)


def calibrated(log_probs_V: "torch.Tensor", temperature: float) -> "torch.Tensor":
    """(..., V) log-softmax of log-probs over a temperature; as they are at temperature 1."""
    return log_probs_V if temperature == 1.0 else (log_probs_V / temperature).log_softmax(-1)
