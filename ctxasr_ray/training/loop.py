"""The one training loop: a config and a directory in, a Hugging Face directory out; killed and repeated, the same.

What a step does depends on the seed and its number alone (batch, dropout, augmentation), so a run that was killed
at any moment goes on from its last checkpoint and ends with the weights of an undisturbed one.
"""

import contextlib
import dataclasses
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ctxasr_ray.stage import identity
from ctxasr_ray.training import batches, checkpoint
from ctxasr_ray.training.config import Optimiser, Task, TrainingConfig
from ctxasr_ray.training.left_out import in_words, refuse_nothing
from ctxasr_ray.training.progress import bar
from ctxasr_ray.training.publish import digests
from ctxasr_ray.training.sources import Recordings, TableSpeech, TextFile, described
from ctxasr_ray.training.update import TaskLoss, TrainingDivergedError, Update
from ctxasr_ray.training.workers import Alone, Copies, Pieces, Workers

__all__ = ["RESULT", "TrainingDivergedError", "run", "run_together"]

CONFIG = "config.json"
DATA = "data.json"
LOG = "log.jsonl"
RESULT = "training.json"
MODEL = "model"


def run(config: TrainingConfig, directory: str | Path) -> Path:
    """Trains in this process, or goes on where a killed run of the same config stopped.

    Args:
        config: The recipe.
        directory: Of the run; made if missing. It holds the config, a log (`log.jsonl`), the last checkpoint, and
            in the end `training.json` (dev figures, seconds, digests) and `model/`.

    Returns:
        `directory/model`, which transformers loads without any code of ours.

    Raises:
        ValueError: the directory belongs to another config, or the data is unusable.
        TrainingDivergedError: a loss, gradient, weight or dev figure was not finite; the last good checkpoint is kept.
        OSError: the disk; the last checkpoint is kept.
    """
    directory = Path(directory)
    _claim(config, directory)
    if not (directory / RESULT).exists():
        with _settled(config):
            task = config.task.build(directory, config.num_processes)
            seconds, figures = _train(config, task, directory, Alone(torch.device(config.device)))
            _finish(config, task, directory, seconds, figures)
    return directory / MODEL


def run_together(config: TrainingConfig, directory: str | Path) -> None:
    """Trains as one of the processes of a torch group, all of which call this; see `run`.

    Each takes its share of the parts of every batch, so the gradient is that of one process with as many parts.

    Args:
        config: The recipe; `num_parts` is a multiple of the number of processes.
        directory: Of the run, on a disk that all of them see.

    Raises:
        ValueError: as `run`, or the parts cannot be shared out evenly.
    """
    directory, device = Path(directory), torch.device(config.device)
    workers = Pieces(device) if config.sharded else Copies(device)
    if config.num_parts % workers.size:
        raise ValueError(
            f"training '{config.name}': {workers.size} workers cannot share num_parts {config.num_parts} evenly; give "
            "a multiple of the workers."
        )
    with workers.first():
        _claim(config, directory)
    if (directory / RESULT).exists():
        return
    with _settled(config):
        with workers.first():
            task = config.task.build(directory, config.num_processes)
        seconds, figures = _train(config, task, directory, workers)
        if workers.rank == 0:  # the model may lie in pieces, and so cannot be published
            task = config.task.build(directory, config.num_processes)
            checkpoint.load(directory / checkpoint.FILE, task.model, _adamw(task.model, config.optimiser))
            _finish(config, task, directory, seconds, figures)


@contextlib.contextmanager
def _settled(config: TrainingConfig) -> Iterator[None]:
    """Threads and first seed of the run; what was before is put back."""
    threads = torch.get_num_threads()
    torch.set_num_threads(config.num_threads)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            yield
    finally:
        torch.set_num_threads(threads)


def _train(config: TrainingConfig, task: Task, directory: Path, workers: Workers) -> tuple[float, dict[str, float]]:
    """Runs the steps that are left; returns the seconds of this process and the figures on dev.

    A checkpoint counts once the loss of the next step, or at the end dev, has shown that its weights are good.
    """
    refuse_nothing(task.lengths, f"example to train on of '{config.name}'", task.left_out, "mend them or give others")
    if task.left_out and workers.rank == 0:
        print(f"training '{config.name}': {in_words(task.left_out)}.", file=sys.stderr)
    if config.gradient_checkpointing:
        _recompute(task.model)
    module = workers.spread(TaskLoss(task))
    optimiser = _adamw(task.model, config.optimiser)
    path = directory / checkpoint.FILE
    start = checkpoint.load(path, task.model, optimiser)
    writes = workers.rank == 0
    unproven, proving = path.with_suffix(".unproven"), -1
    log = _Log(directory / LOG if writes else Path(os.devnull), start, config.log_every)
    began = time.perf_counter()
    steps = batches.steps(task.lengths, config.batch_size, config.seed, start=start, stop=config.num_steps)
    update = Update(config, task, module, optimiser, workers, directory)
    with bar(config.name, config.num_steps, start) as advance:
        for step, indices in steps:
            loss = update(step, indices)
            advance(f"loss {loss:.3f}")
            done = step + 1
            log.add(done, loss)
            if writes and done - 1 == proving:
                unproven.replace(path)
            if done % config.evaluate_every == 0 and done < config.num_steps:
                log.write({"step": done, **_figures(update, done)})
            if done % config.checkpoint_every == 0 and done < config.num_steps:
                update.refuse_weights(done)
                checkpoint.save(unproven, done, task.model, optimiser, writes=writes)
                proving = done
    update.refuse_weights(config.num_steps)
    figures = _figures(update, config.num_steps)
    if start < config.num_steps:
        checkpoint.save(path, config.num_steps, task.model, optimiser, writes=writes)
    return time.perf_counter() - began, figures


def _figures(update: Update, done: int) -> dict[str, float]:
    """Dev, by every worker.

    Raises:
        TrainingDivergedError: a figure is not finite, on every worker.
    """
    update.task.model.eval()
    with update.workers.whole(update.module), torch.inference_mode():
        try:
            figures = update.task.evaluate()
        except OverflowError:  # the exponential of the loss
            figures = {"dev": math.inf}
    update.refuse_figures(done, figures)
    return figures


def _recompute(model: Any) -> None:
    """Lets the layers of the Hugging Face models inside keep their inputs only.

    Raises:
        ValueError: there is none that can.
    """
    able = [part for part in model.modules() if getattr(part, "supports_gradient_checkpointing", False)]
    if not able:
        raise ValueError(
            f"gradient_checkpointing: {type(model).__name__} has no layers to compute again; leave it off."
        )
    for part in able:
        part.gradient_checkpointing_enable({"use_reentrant": False})


def _adamw(model: torch.nn.Module, settings: Optimiser) -> torch.optim.Optimizer:
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, settings.beta_2))


def _claim(config: TrainingConfig, directory: Path) -> None:
    """Writes the config and what the files say that it names, or finds that the directory belongs to equal ones."""
    directory.mkdir(parents=True, exist_ok=True)
    own = {f.name: getattr(config.task, f.name) for f in dataclasses.fields(config.task)}
    files = {
        name: described(part) for name, part in own.items() if isinstance(part, (TableSpeech, Recordings, TextFile))
    }
    for name, mine, what in (
        (CONFIG, identity(config), "another config"),
        (DATA, files, "files that said other things"),
    ):
        path, mine = directory / name, json.loads(json.dumps(mine))
        if not path.exists():
            temporary = path.with_suffix(".tmp")
            temporary.write_text(json.dumps(mine, indent=2) + "\n", "utf-8")
            temporary.replace(path)
        theirs = json.loads(path.read_text("utf-8"))
        changed = sorted(key for key in mine.keys() | theirs.keys() if mine.get(key) != theirs.get(key))
        if changed:
            raise ValueError(
                f"training '{config.name}': {directory} holds a run of {what} (different: {', '.join(changed)}); "
                "give a new directory, or the old settings and files to go on with that run."
            )


def _finish(config: TrainingConfig, task: Task, directory: Path, seconds: float, figures: dict[str, float]) -> None:
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
        whole = (
            self.path.read_text("utf-8").rpartition("\n")[0] if self.path.exists() else ""
        )  # a kill cuts the last line
        kept = [line for line in whole.splitlines() if json.loads(line)["step"] <= self.start]
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
