"""Linear layers of a loaded model on a CPU: oneDNN's float32 product where torch would take MKL's.

MKL leaves the AVX-512 units of AMD's processors unused: 400 rows through 144 x 576 weights take 613 us there and 284 us
in oneDNN (EPYC, one core), and the ratio is the same from 16 rows to 1,500. torch itself turns to oneDNN for float32
only when it compiles a model, with this same operator.
"""

import functools
from typing import Any, Final

import torch

LEAST_ROWS: Final = 16
"""Fewer rows, those of a beam, take as long in both."""


@functools.cache
def _helps() -> bool:
    has_onednn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]  # torch's own
    return has_onednn and torch.backends.cpu.get_cpu_capability() == "AVX512"


def linear(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """`torch.nn.functional.linear`, within float32's rounding, in oneDNN where that is faster."""
    plain = input.device.type != "cpu" or input.dtype != torch.float32 or weight.dtype != torch.float32
    if plain or torch.is_grad_enabled() or input.numel() < LEAST_ROWS * input.shape[-1] or not _helps():
        return torch.nn.functional.linear(input, weight, bias)
    product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")
    return product


class OneDnnLinear(torch.nn.Linear):
    """A linear layer that multiplies by `linear`."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(..., outputs) of (..., inputs)."""
        return linear(input, self.weight, self.bias)


def multiply_in_onednn(model: Any) -> Any:
    """The same model, its plain linear layers turned to `OneDnnLinear` on a processor where that helps.

    Layers of other classes (quantised, adapted) stay. What is trained stays as it was: with gradients a layer is
    `torch.nn.Linear`.
    """
    if _helps():
        for module in model.modules():
            if type(module) is torch.nn.Linear:
                module.__class__ = OneDnnLinear
    return model
