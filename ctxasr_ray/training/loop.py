"""The one training loop: a config and a directory in, a Hugging Face directory out; killed and repeated, the same.

What a step does depends on the seed and its number alone (batch, dropout, augmentation), so a run that was killed
at any moment goes on from its last checkpoint and ends with the weights of an undisturbed one.
"""

import contextlib
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ctxasr_ray.stage import identity
from ctxasr_ray.training import batches, checkpoint
from ctxasr_ray.training.config import Optimiser, Task, TrainingConfig
from ctxasr_ray.training.progress import bar
from ctxasr_ray.training.publish import digests

CONFIG = "config.json"
LOG = "log.jsonl"
RESULT = "training.json"
MODEL = "model"


class TrainingDivergedError(ArithmeticError):
    """A loss or gradient is not finite; says at which step, on which examples, and what is kept."""


def run(config: TrainingConfig, directory: str | Path) -> Path:
    """Trains, or goes on where a killed run of the same config stopped.

    Args:
        config: The recipe.
        directory: Of the run; made if missing. It holds the config, a log (`log.jsonl`), the last checkpoint, and
            in the end `training.json` (dev figures, seconds, digests) and `model/`.

    Returns:
        `directory/model`, which transformers loads without any code of ours.

    Raises:
        ValueError: the directory belongs to another config, or the data is unusable.
        TrainingDivergedError: a loss or gradient was not finite; the last checkpoint is kept.
        OSError: the disk; the last checkpoint is kept.
    """
    directory = Path(directory)
    _claim(config, directory)
    if (directory / RESULT).exists():
        return directory / MODEL
    threads = torch.get_num_threads()
    torch.set_num_threads(config.num_threads)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            task = config.task.build(directory, config.num_processes)
            seconds = _train(config, task, directory)
            task.model.eval()
            with torch.inference_mode():
                figures = task.evaluate()
            _finish(config, task, directory, figures, seconds)
    finally:
        torch.set_num_threads(threads)
    return directory / MODEL


def _train(config: TrainingConfig, task: Task, directory: Path) -> float:
    """Runs the steps that are left; returns the seconds of this process."""
    model = task.model.to(config.device)
    optimiser = _adamw(model, config.optimiser)
    path = directory / checkpoint.FILE
    start = checkpoint.load(path, model, optimiser)
    log = _Log(directory / LOG, start, config.log_every)
    began = time.perf_counter()
    steps = batches.steps(task.lengths, config.batch_size, config.seed, start=start, stop=config.num_steps)
    with bar(config.name, config.num_steps, start) as advance:
        for step, indices in steps:
            loss = _step(config, task, optimiser, step, indices, directory)
            advance(f"loss {loss:.3f}")
            done = step + 1
            log.add(done, loss)
            if done % config.evaluate_every == 0 and done < config.num_steps:
                model.eval()
                with torch.inference_mode():
                    log.write({"step": done, **task.evaluate()})
            if done % config.checkpoint_every == 0 or done == config.num_steps:
                checkpoint.save(path, done, model, optimiser)
    return time.perf_counter() - began


def _step(
    config: TrainingConfig,
    task: Task,
    optimiser: torch.optim.Optimizer,
    step: int,
    indices: np.ndarray[Any, np.dtype[np.int64]],
    directory: Path,
) -> float:
    """One update; returns the loss before it."""
    model = task.model
    model.train()
    torch.manual_seed(config.seed * 1_000_003 + step)
    batch = task.batch(indices, np.random.default_rng([config.seed, step]))
    batch = {name: tensor.to(config.device) for name, tensor in batch.items()}
    for group in optimiser.param_groups:
        group["lr"] = config.optimiser.rate(step, config.num_steps)
    half = torch.autocast(config.device.partition(":")[0], torch.bfloat16)
    with half if config.precision == "bfloat16" else contextlib.nullcontext():
        loss = task.loss(batch)
    value = float(loss.detach())
    norm = float("nan")
    if np.isfinite(value):
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
        norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimiser.clip_norm))
    if not np.isfinite(norm):
        raise TrainingDivergedError(_divergence(config, task, step, value, indices, directory))
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return value


def _divergence(
    config: TrainingConfig,
    task: Task,
    step: int,
    loss: float,
    indices: np.ndarray[Any, np.dtype[np.int64]],
    directory: Path,
) -> str:
    names = task.names(indices)
    shown = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    path = directory / checkpoint.FILE
    kept = f"the last good checkpoint is {path}" if path.exists() else "no checkpoint was written yet"
    what = f"the loss is {loss}" if not np.isfinite(loss) else f"the loss is {loss:.4f}, but its gradient is not finite"
    return (
        f"training '{config.name}', step {step}: {what} on the batch of {shown}; {kept}. Look at these examples, or "
        f"start again in a new directory with a lower learning rate (now {config.optimiser.learning_rate:g})."
    )


def _adamw(model: torch.nn.Module, settings: Optimiser) -> torch.optim.Optimizer:
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, settings.beta_2))


def _claim(config: TrainingConfig, directory: Path) -> None:
    """Writes the config, or finds that the directory belongs to an equal one."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / CONFIG
    mine = json.loads(json.dumps(identity(config)))
    if not path.exists():
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(mine, indent=2) + "\n", "utf-8")
        temporary.replace(path)
        return
    theirs = json.loads(path.read_text("utf-8"))
    if theirs != mine:
        changed = sorted(key for key in mine.keys() | theirs.keys() if mine.get(key) != theirs.get(key))
        raise ValueError(
            f"training '{config.name}': {directory} holds a run of another config (different: {', '.join(changed)}); "
            "give a new directory, or the old settings to go on with that run."
        )


def _finish(config: TrainingConfig, task: Task, directory: Path, figures: dict[str, float], seconds: float) -> None:
    task.model.to("cpu")
    task.publish(directory / MODEL)
    result = {
        "recipe": config.name,
        "config": identity(config),
        "num_parameters": sum(p.numel() for p in task.model.parameters()),
        "num_examples": len(task.lengths),
        "left_out": dict(task.left_out),
        "figures": figures,
        "seconds_of_the_last_process": round(seconds, 1),
        "digests": digests(directory / MODEL),
    }
    temporary = directory / f"{RESULT}.tmp"
    temporary.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    temporary.replace(directory / RESULT)


@dataclasses.dataclass(slots=True)
class _Log:
    """Mean losses and dev figures as JSON lines; lines after the checkpoint that a run goes on from are taken back."""

    path: Path
    start: int
    every: int
    losses: list[float] = dataclasses.field(default_factory=list)
    began: float = dataclasses.field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        lines = self.path.read_text("utf-8").splitlines() if self.path.exists() else []
        kept = [line for line in lines if json.loads(line)["step"] <= self.start]
        self.path.write_text("".join(f"{line}\n" for line in kept), "utf-8")

    def add(self, done: int, loss: float) -> None:
        self.losses.append(loss)
        if done % self.every == 0:
            self.write({"step": done, "loss": float(np.mean(self.losses))})
            self.losses.clear()

    def write(self, entry: dict[str, Any]) -> None:
        entry["seconds"] = round(time.perf_counter() - self.began, 1)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
