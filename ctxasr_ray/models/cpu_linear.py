"""Linear layers of a loaded model on a CPU: oneDNN's float32 product where torch would take MKL's.

MKL leaves the AVX-512 units of AMD's processors unused: 400 rows through 144 x 576 weights take 613 us there and 284 us
in oneDNN (EPYC, one core), and the ratio is the same from 16 rows to 1,500. torch itself turns to oneDNN for float32
only when it compiles a model, with this same operator.
"""

from typing import Any, Final

import torch

LEAST_ROWS: Final = 16
"""Fewer rows, those of a beam, take as long in both."""


class OneDnnLinear(torch.nn.Linear):
    """A linear layer that multiplies in oneDNN where that is faster, and is `torch.nn.Linear` everywhere else."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(..., outputs) of (..., inputs), within float32's rounding of `torch.nn.Linear`."""
        plain = input.device.type != "cpu" or input.dtype != torch.float32 or self.weight.dtype != torch.float32
        if plain or torch.is_grad_enabled() or input.numel() < LEAST_ROWS * self.in_features:
            return super().forward(input)
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(input, self.weight, self.bias, "none", [], "")
        return product


def multiply_in_onednn(model: Any) -> Any:
    """The same model, its plain linear layers turned to `OneDnnLinear` on a processor where that helps.

    Layers of other classes (quantised, adapted) stay. What is trained stays as it was: with gradients a layer is
    `torch.nn.Linear`.
    """
    has_onednn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]  # torch's own
    if has_onednn and torch.backends.cpu.get_cpu_capability() == "AVX512":
        for module in model.modules():
            if type(module) is torch.nn.Linear:
                module.__class__ = OneDnnLinear
    return model
