"""The LM head alone, run only where a score is read and in chunks, so that memory is bounded for any vocabulary.

Letters: R hidden states, V vocabulary, D width, Q scores to read.
"""

from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ctxasr_ray.models.cpu_linear import OneDnnLinear, linear
from ctxasr_ray.stage import Costs

LOGITS_LIMIT_BYTES: Final = 64 * 2**20
"""Largest logits buffer at any moment."""
BLOCK_BYTES: Final = 2 * 2**20
"""On a CPU the vocabulary comes in blocks whose logits stay in its cache; larger buffers are mapped anew each time."""
LEAST_COLUMNS: Final = 512
"""Narrower blocks slow the product down."""


class LmHead:
    """Hidden states to logits exactly as the whole model computes them, soft-caps and scales included.

    Args:
        model: A causal LM of transformers.
        base: Its body, whose output's first entry is the last hidden state.
        probe_ids: (1, T) token ids on the model's device, on which the head is compared with the whole model.

    Raises:
        ValueError: the head cannot be separated from this model.
    """

    def __init__(self, model: Any, base: nn.Module, probe_ids: torch.Tensor, limit_bytes: int = LOGITS_LIMIT_BYTES):
        self._model, self._base, self._limit_bytes = model, base, limit_bytes
        self._probe_ids = probe_ids[:, :1]
        self._linear: Any = model.get_output_embeddings()
        config = model.config.get_text_config()
        self._scale = float(getattr(model, "logit_scale", None) or 1.0)  # Cohere
        self._scale /= float(getattr(config, "logits_scaling", None) or 1.0)  # Granite
        self._cap = getattr(config, "final_logit_softcapping", None)  # Gemma2
        hidden = base(input_ids=probe_ids, use_cache=False)[0][0]
        expected = model(input_ids=probe_ids, use_cache=False).logits[0].float()
        self.num_outputs: int = expected.shape[-1]
        self.width: int = hidden.shape[-1]
        self._is_linear = type(self._linear) in (nn.Linear, OneDnnLinear)
        self._multiply = linear if isinstance(self._linear, OneDnnLinear) else nn.functional.linear
        self._logits: Callable[[torch.Tensor], torch.Tensor] = self._direct
        if not self._direct_is_exact(hidden, expected):
            self._logits, self._is_linear = self._through_model, False
            if not _close(self._through_model(hidden), expected, model.dtype):
                raise ValueError(
                    f"{type(model).__name__}: its logits are not a function of its last hidden state, so they cannot "
                    "be computed in bounded memory; choose another causal LM."
                )

    def logits(self, hidden_RD: torch.Tensor) -> torch.Tensor:
        """(R, V) float32 of every token, in one buffer: for the few rows of a beam."""
        return self._logits(hidden_RD)

    def read(
        self, hidden_RD: torch.Tensor, rows_Q: npt.NDArray[np.int64], tokens_Q: npt.NDArray[np.int64], costs: Costs
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Logits of single tokens and the normaliser of every row.

        Args:
            hidden_RD: Last hidden states, in the model's dtype.
            rows_Q: Row of each score to read.
            tokens_Q: Token id of each score to read.
            costs: Counts `head_rows` and `peak_logits_bytes`.

        Returns:
            (Q,) float64 logits and (R,) float64 log-sum-exp over the vocabulary; log_prob = logit - normaliser.
        """
        order = np.argsort(rows_Q, kind="stable")
        rows, tokens = rows_Q[order], tokens_Q[order]
        picks, normalisers = np.empty(len(rows)), np.empty(len(hidden_RD))
        columns = self._block_columns(hidden_RD)
        half_bytes = 0 if hidden_RD.dtype == torch.float32 else hidden_RD.element_size()
        row_bytes = columns * (2 * 4 + half_bytes)  # the logits and their log_softmax
        step = max(1, self._limit_bytes // row_bytes)
        for start in range(0, len(hidden_RD), step):
            hidden = hidden_RD[start : start + step]
            low, high = np.searchsorted(rows, (start, start + step))
            by_token = low + np.argsort(tokens[low:high], kind="stable")
            sums = []
            for first, logits in self._blocks(hidden, columns):
                inside = slice(*np.searchsorted(tokens[by_token], (first, first + logits.shape[1])))
                at = by_token[inside]
                places = (torch.from_numpy(i).to(logits.device) for i in (rows[at] - start, tokens[at] - first))
                picks[at] = logits[tuple(places)].cpu().numpy()
                # log_softmax is torch's fastest way through the exponentials; what it took off shows at the largest.
                sums.append(logits.amax(dim=1) - logits.log_softmax(dim=1).amax(dim=1))
            normalisers[start : start + step] = torch.stack(sums).logsumexp(dim=0).cpu().numpy()
            costs.count("head_rows", len(hidden))
            costs.peak("logits_bytes", len(hidden) * row_bytes)
        result = np.empty(len(rows))
        result[order] = picks
        return result, normalisers

    def pick(self, hidden_QD: torch.Tensor, tokens_Q: npt.NDArray[np.int64], costs: Costs) -> npt.NDArray[np.float64]:
        """(Q,) float64 logits of one token each, without the rest of the vocabulary where the head is linear."""
        if not self._is_linear:
            return self.read(hidden_QD, np.arange(len(tokens_Q)), tokens_Q, costs)[0]
        tokens = torch.as_tensor(tokens_Q, device=self._linear.weight.device)
        hidden = hidden_QD.to(tokens.device).float()
        logits = (hidden * self._linear.weight[tokens].float()).sum(dim=1)
        if self._linear.bias is not None:
            logits += self._linear.bias[tokens].float()
        picked: npt.NDArray[np.float64] = self._finished(logits).cpu().numpy().astype(np.float64)
        return picked

    def _block_columns(self, hidden_RD: torch.Tensor) -> int:
        """Tokens whose logits are computed at once: all of them, or on a CPU what its cache holds."""
        if not self._is_linear or hidden_RD.device.type != "cpu":
            return self.num_outputs
        return min(self.num_outputs, max(LEAST_COLUMNS, BLOCK_BYTES // (4 * max(1, len(hidden_RD)))))

    def _blocks(self, hidden_RD: torch.Tensor, columns: int) -> Iterator[tuple[int, torch.Tensor]]:
        """The first token of each block of the vocabulary, and its (R, columns) float32 logits."""
        if columns == self.num_outputs:
            yield 0, self._logits(hidden_RD)
            return
        weight, bias = self._linear.weight, self._linear.bias
        for first in range(0, self.num_outputs, columns):
            own = slice(first, first + columns)
            logits = self._multiply(hidden_RD, weight[own], None if bias is None else bias[own])
            yield first, self._finished(logits.float())

    def _direct_is_exact(self, hidden_RD: torch.Tensor, expected: torch.Tensor) -> bool:
        try:
            return self._linear is not None and _close(self._direct(hidden_RD), expected, hidden_RD.dtype)
        except RuntimeError:  # the head projects before its output matrix (ELECTRA), so the widths differ
            return False

    def _direct(self, hidden_RD: torch.Tensor) -> torch.Tensor:
        return self._finished(self._linear(hidden_RD).float())

    def _finished(self, logits: torch.Tensor) -> torch.Tensor:
        if self._scale != 1.0:
            logits.mul_(self._scale)
        if self._cap is not None:
            logits.div_(self._cap).tanh_().mul_(self._cap)
        return logits

    def _through_model(self, hidden_RD: torch.Tensor) -> torch.Tensor:
        """Lets the model itself finish: one token through the body, whose output is replaced by these states."""

        def replace(module: nn.Module, args: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return (hidden_RD[None], *output[1:])
            output.last_hidden_state = hidden_RD[None]
            return output

        handle = self._base.register_forward_hook(replace)
        try:
            logits: torch.Tensor = self._model(input_ids=self._probe_ids, use_cache=False).logits[0].float()
        finally:
            handle.remove()
        return logits


def _close(got: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> bool:
    tolerance = 1e-4 if dtype in (torch.float32, torch.float64) else 2e-2
    return got.shape == expected.shape and bool(
        (got - expected).abs().max() <= tolerance * (1.0 + expected.abs().max())
    )
