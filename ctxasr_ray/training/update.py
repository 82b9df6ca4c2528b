"""One step of training: a batch in parts, the gradient of all of them, and the weights moved.

A batch of P parts on N workers: worker n takes the parts n, n + N, ... What a part draws depends on the seed, the step
and its number alone, so how many workers there are changes nothing but the rounding. (For batch norm, which Parakeet
has, a part is a batch, and the running statistics that are kept are those of the first worker's parts.)
"""

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.distributed.tensor import DTensor

from ctxasr_ray.training import checkpoint
from ctxasr_ray.training.config import Task, TrainingConfig
from ctxasr_ray.training.workers import Workers

Indices = npt.NDArray[np.int64]


class TrainingDivergedError(ArithmeticError):
    """A loss, gradient, weight or dev figure is not finite; says at which step, on which examples, and what is kept."""


class TaskLoss(torch.nn.Module):
    """A task's loss as what a module gives: where DDP and FSDP2 take hold."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.model = task.model
        self._task = task

    def forward(self, batch: Mapping[str, torch.Tensor], counts: Mapping[str, float]) -> torch.Tensor:
        """See `Task.loss`."""
        return self._task.loss(batch, counts)


@dataclasses.dataclass(slots=True)
class Update:
    """One step after the other: the own parts of a batch, the gradient of all, the weights."""

    config: TrainingConfig
    task: Task
    module: Any
    """The spread `TaskLoss`."""
    optimiser: torch.optim.Optimizer
    workers: Workers
    directory: Path

    def __call__(self, step: int, indices: Indices) -> float:
        """Moves the weights; returns the loss before that.

        Raises:
            TrainingDivergedError: the loss or its gradient is not finite, on every worker.
        """
        config, workers = self.config, self.workers
        self.task.model.train()
        parts = [self._part(step, number, indices) for number in range(workers.rank, config.num_parts, workers.size)]
        counts = self._counts(parts)
        value = 0.0
        for place, part in enumerate(parts):
            with workers.part(self.module, is_last=place == len(parts) - 1):
                torch.manual_seed(config.seed * 1_000_003 + step + (part.number << 40))
                batch = {name: tensor.to(workers.device) for name, tensor in part.batch.items()}
                half = torch.autocast(workers.device.type, torch.bfloat16)
                with half if config.precision == "bfloat16" else contextlib.nullcontext():
                    loss = self.module(batch, counts) * part.weight
                (loss * workers.size).backward()  # the mean over the workers is to be the sum over the parts
            value += float(loss.detach())
        [value] = workers.sum([value])
        norm = torch.nn.utils.clip_grad_norm_(self.task.model.parameters(), config.optimiser.clip_norm)
        if not np.isfinite(value) or not np.isfinite(float(checkpoint.whole(norm))):
            raise TrainingDivergedError(_divergence(config, self.task, step, value, indices, self.directory))
        for group in self.optimiser.param_groups:
            group["lr"] = config.optimiser.rate(step, config.num_steps)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return value

    def refuse_weights(self, done: int) -> None:
        """Refuses weights that could not be published, which is in half precision; frozen ones are not looked at.

        Raises:
            TrainingDivergedError: a weight or buffer is not finite or beyond float16, on every worker.
        """
        model = self.task.model
        moved = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        moved |= {name: buffer for name, buffer in model.named_buffers() if buffer.is_floating_point()}
        bad = [name for name, tensor in moved.items() if not bool(_own(tensor).half().isfinite().all())]
        if self.workers.sum([float(len(bad))])[0]:
            shown = f"{len(bad)} weights are not finite in half precision, first {bad[:3]}"
            raise TrainingDivergedError(_diverged(self.config, f"after step {done}: {shown}", self.directory))

    def refuse_figures(self, done: int, figures: Mapping[str, float]) -> None:
        """Refuses what a broken model gives on dev.

        Raises:
            TrainingDivergedError: a figure is not finite, on every worker.
        """
        bad = {name: value for name, value in figures.items() if not np.isfinite(value)}
        if self.workers.sum([float(len(bad))])[0]:
            shown = f"figures on dev are not finite: {bad}"
            raise TrainingDivergedError(_diverged(self.config, f"after step {done}: {shown}", self.directory))

    def _part(self, step: int, number: int, indices: Indices) -> "_Part":
        own = indices[number :: self.config.num_parts]
        # More parts than examples: every worker takes part in every step, with an example that counts for nothing.
        batch = self.task.batch(
            own if len(own) else indices[:1], np.random.default_rng([self.config.seed, step, number])
        )
        return _Part(number, batch, float(len(own) > 0))

    def _counts(self, parts: "Sequence[_Part]") -> dict[str, float]:
        """Those of the whole batch."""
        totals: dict[str, float] = {}
        for part in parts:
            for name, count in self.task.counts(part.batch).items():
                totals[name] = totals.get(name, 0.0) + part.weight * count
        return dict(zip(totals, self.workers.sum(list(totals.values())), strict=True))


@dataclasses.dataclass(frozen=True, slots=True)
class _Part:
    number: int
    batch: dict[str, torch.Tensor]
    weight: float
    """0 where it stands in for nothing, else 1."""


def _divergence(config: TrainingConfig, task: Task, step: int, loss: float, indices: Indices, directory: Path) -> str:
    names = task.names(indices)
    shown = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    what = f"the loss is {loss}" if not np.isfinite(loss) else f"the loss is {loss:.4f}, but its gradient is not finite"
    return _diverged(config, f"step {step}: {what} on the batch of {shown}", directory)


def _diverged(config: TrainingConfig, what: str, directory: Path) -> str:
    path = directory / checkpoint.FILE
    kept = f"the last good checkpoint is {path}" if path.exists() else "no checkpoint was written yet"
    return (
        f"training '{config.name}', {what}; {kept}. Look at these examples, or start again in a new directory with a "
        f"lower learning rate (now {config.optimiser.learning_rate:g})."
    )


def _own(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor, or the piece of it that lies here."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
