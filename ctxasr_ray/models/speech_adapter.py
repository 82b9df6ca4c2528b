"""The adapter of an LLM recogniser: frames of a speech encoder -> embeddings that a language model reads like words.

A few neighbouring frames are laid side by side and an MLP turns them into one embedding.
Letters of shapes: B utterances, T encoder frames, S = ceil(T / stack) stacked frames, D width.

Reference:
    Wang et al., 2502.16142: an MLP that merges every 2 frames into 1. That they are laid side by side, its layers,
    widths and activation are ours, after Ma et al., 2402.08846 (SLAM-ASR), section 3.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    import torch

ACTIVATIONS: Final = {"relu": "ReLU", "gelu": "GELU", "silu": "SiLU"}
"""Name in a config -> class of torch.nn."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterConfig:
    """Shape of the MLP."""

    stack: int = 2
    """Encoder frames in one embedding."""
    num_layers: int = 2
    """Linear layers."""
    width: int = 2048
    """Of the layers between; unused with one layer."""
    activation: Literal["relu", "gelu", "silu"] = "relu"

    def __post_init__(self) -> None:
        """Refuses what is no MLP.

        Raises:
            ValueError: names the field.
        """
        if min(self.stack, self.num_layers, self.width) < 1:
            raise ValueError(
                f"adapter: stack is {self.stack}, num_layers {self.num_layers}, width {self.width}; "
                "each must be at least 1."
            )
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f"adapter: activation '{self.activation}' is unknown; use one of {', '.join(ACTIVATIONS)}."
            )

    def build(self, encoder_width: int, llm_width: int) -> Any:
        """Makes the MLP with random weights: a `torch.nn.Sequential` from (..., stack * encoder_width) to llm_width."""
        from torch import nn

        widths = [self.stack * encoder_width, *[self.width] * (self.num_layers - 1), llm_width]
        layers: list[nn.Module] = []
        for number in range(self.num_layers):
            if number:
                layers.append(getattr(nn, ACTIVATIONS[self.activation])())
            layers.append(nn.Linear(widths[number], widths[number + 1]))
        return nn.Sequential(*layers)


def stack_frames(
    states_BTD: "torch.Tensor", lengths_B: "torch.Tensor", stack: int
) -> "tuple[torch.Tensor, torch.Tensor]":
    """Lays every `stack` neighbouring frames side by side.

    What stands behind an utterance's end is zero in the result, so it depends on no neighbour in the batch; an
    utterance of 5 frames has 3 pairs, the last one half zero.

    Args:
        states_BTD: Frames, padded in any way.
        lengths_B: Frames of each utterance.
        stack: How many become one.

    Returns:
        (B, S, stack * D) and the stacked frames of each utterance, (B,).
    """
    from torch.nn import functional

    num_utterances, num_frames, width = states_BTD.shape
    inside_BT = states_BTD.new_ones((num_utterances, num_frames)).cumsum(1) <= lengths_B[:, None].to(states_BTD.device)
    padded_BTD = functional.pad(states_BTD * inside_BT[:, :, None], (0, 0, 0, -num_frames % stack))
    stacked_BSD = padded_BTD.reshape(num_utterances, -1, stack * width)
    return stacked_BSD, (lengths_B + stack - 1) // stack
