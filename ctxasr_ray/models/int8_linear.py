"""Linear layers with weights of 8 bits on a CPU, multiplied in float32: what a row gives depends on no other row.

W is stored as round(W / s) in int8, s the largest weight of an output over 127 (symmetric, one scale per output).
Activations stay as they are: torch's dynamic quantisation scales them by a whole forward pass, so that scores depend on
their neighbours, and its own product of int8 weights (`_weight_int8pack_mm`) takes fifty times as long with float32.

A few rows, those of a beam, are multiplied by a compiled loop that reads a quarter of the bytes: one row through
1,536 x 8,960 weights takes 0.7 ms where float32 takes 2.1. More rows go through oneDNN in float32, the weights written
out block by block: 320 rows through 192 x 512 take 1.02 of float32's time (EPYC, one core). One thread only.

Letters: R rows, D inputs, O outputs.
"""

from typing import Any, Final

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ctxasr_ray.models.cpu_linear import linear

FEW_ROWS: Final = 8
"""Up to here the loop is faster than writing the weights out."""
BLOCK_BYTES: Final = 2**20
"""Of weights that are written out at a time: what a core's cache holds."""

Floats = npt.NDArray[np.float32]
Int8s = npt.NDArray[np.int8]


class Int8Linear(nn.Module):
    """A linear layer of the same weights, rounded.

    Args:
        layer: In float32 on a CPU; it is left as it is.
    """

    _scales: torch.Tensor
    """(O,) float32."""
    _weight: torch.Tensor
    """(O, D) int8."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        weight_OD = layer.weight.detach()
        largest_O = weight_OD.abs().amax(1)
        scales_O = torch.where(largest_O > 0, largest_O, 1.0) / 127
        self.register_buffer("_scales", scales_O)
        self.register_buffer("_weight", (weight_OD / scales_O[:, None]).round().to(torch.int8))
        self.bias = layer.bias
        self.out_features = layer.out_features

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(..., outputs) of (..., inputs), both float32."""
        rows_RD = input.reshape(-1, input.shape[-1])
        output_RO = self._few(rows_RD) if len(rows_RD) <= FEW_ROWS else self._many(rows_RD)
        return output_RO.reshape(*input.shape[:-1], self.out_features)

    def _few(self, rows_RD: torch.Tensor) -> torch.Tensor:
        output_RO = rows_RD.new_empty((len(rows_RD), self.out_features))
        weights = self._weight.numpy(), self._scales.numpy()
        _multiply(rows_RD.contiguous().numpy(), *weights, output_RO.numpy())
        return output_RO if self.bias is None else output_RO.add_(self.bias)

    def _many(self, rows_RD: torch.Tensor) -> torch.Tensor:
        inputs = rows_RD.shape[1]
        step = max(1, min(self.out_features, BLOCK_BYTES // (4 * inputs)))
        block_OD = rows_RD.new_empty((step, inputs))
        parts = []
        for first in range(0, self.out_features, step):
            own = slice(first, first + step)
            weight_OD = self._weight[own]
            _write_out(weight_OD.numpy(), self._scales[own].numpy(), block_OD.numpy())
            parts.append(linear(rows_RD, block_OD[: len(weight_OD)], None if self.bias is None else self.bias[own]))
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def round_weights(model: Any) -> Any:
    """The same model, its linear layers turned to `Int8Linear`; in place.

    The head, which is one with the embeddings in many models, and low-rank updates stay in float32.

    Args:
        model: A causal LM in float32 on a CPU, or the PEFT model around one.

    Raises:
        ValueError: it is on an accelerator, or has no linear layers to round.
    """
    if any(weight.device.type != "cpu" for weight in model.parameters()):
        raise ValueError("dtype int8 is for CPUs; on an accelerator take bfloat16, or a quantised model in vLLM.")
    head, layers = model.get_output_embeddings(), []
    for module in model.modules():
        if not isinstance(module, nn.ModuleDict):  # where PEFT keeps the matrices of its updates
            own = ((name, layer) for name, layer in module.named_children() if isinstance(layer, nn.Linear))
            layers += [(module, name, layer) for name, layer in own if layer is not head]
    if not layers:
        raise ValueError(f"dtype int8: {type(model).__name__} has no linear layers to round; take bfloat16.")
    for module, name, layer in layers:
        setattr(module, name, Int8Linear(layer))
    return model


@numba.njit(cache=True, nogil=True, fastmath=True)  # type: ignore[untyped-decorator]  # numba is untyped
def _multiply(rows_RD: Floats, weight_OD: Int8s, scales_O: Floats, output_RO: Floats) -> None:
    """Sums in an order of the compiler's choice, the same for every row."""
    num_rows, inputs = rows_RD.shape
    written_D = np.empty(inputs, np.float32)
    for o in range(len(weight_OD)):
        for d in range(inputs):
            written_D[d] = weight_OD[o, d]
        for r in range(num_rows):
            total = np.float32(0.0)
            for d in range(inputs):
                total += rows_RD[r, d] * written_D[d]
            output_RO[r, o] = total * scales_O[o]


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]  # numba is untyped
def _write_out(weight_OD: Int8s, scales_O: Floats, block_OD: Floats) -> None:
    for o in range(len(weight_OD)):
        for d in range(weight_OD.shape[1]):
            block_OD[o, d] = weight_OD[o, d] * scales_O[o]
