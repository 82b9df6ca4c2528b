"""`ctxasr train`: a recipe's training, in this process or on the workers of a Ray cluster."""

import functools
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from ctxasr_ray.recipes.tiny_models import TRAININGS
from ctxasr_ray.stage import Resources
from ctxasr_ray.training.config import TrainingConfig
from ctxasr_ray.training.left_out import in_words


@dataclass(frozen=True, kw_only=True, slots=True)
class Train:
    """Trains a model by its recipe; the same command again goes on where a killed one stopped."""

    directory: Path
    """Folder of the run: its log, its checkpoint and, in the end, `model/`, an ordinary Hugging Face directory. With
    workers on several nodes, on a disk that all of them see."""
    training: Annotated[TrainingConfig, tyro.conf.arg(name="")]
    """The recipe."""
    num_workers: int = 0
    """Workers on Ray, each on a GPU if `device` is cuda; 0 trains in this process, without Ray. They share the parts of
    each batch evenly; a batch of one part is cut into as many as there are workers."""
    cpus_per_worker: float = 1.0
    """Logical CPUs that a worker holds."""
    max_failures: int = 3
    """How often the workers are started again when one is lost; each time they go on from the last checkpoint."""
    address: str | None = None
    """Of a Ray cluster; None joins a running one or starts one here."""

    def __post_init__(self) -> None:
        """Refuses workers that have nothing to share.

        Raises:
            ValueError: names the fields.
        """
        if self.num_workers < 0 or self.max_failures < 0:
            raise ValueError(f"num_workers {self.num_workers}, max_failures {self.max_failures}: expected 0 or more.")
        if self.training.sharded and not self.num_workers:
            raise ValueError("sharded cuts weights over workers, but num_workers is 0; give --num-workers too.")


def train(words: Sequence[str]) -> int:
    """Train a shipped tiny model again, by its committed recipe.

    Args:
        words: The recipe's name, then options: --directory, and any field of the recipe.

    Raises:
        ValueError: no such recipe, or a directory of another training.
    """
    names = ", ".join(TRAININGS)
    if not words or words[0].startswith("-"):
        raise ValueError(f"expected a recipe: ctxasr train RECIPE ... with RECIPE one of {names}.")
    name, rest = words[0], list(words[1:])
    if name not in TRAININGS:
        raise ValueError(f"training '{name}' is unknown; recipes: {names}.")
    default = Train(directory=Path("runs/train") / name, training=TRAININGS[name]())
    options = tyro.cli(
        Train, default=default, args=rest, prog=f"ctxasr train {name}", config=(tyro.conf.AvoidSubcommands,)
    )
    from ctxasr_ray.training.loop import MODEL, RESULT, TrainingDivergedError, run

    finished = (options.directory / RESULT).exists()
    try:
        if options.num_workers:
            train_on_ray(options)
        else:
            run(options.training, options.directory)
    except TrainingDivergedError as error:
        print(f"ctxasr train: {error}", file=sys.stderr)
        return 1
    if finished:
        print(f"ctxasr train: the training in {options.directory} was finished before; nothing was trained.")
    result = json.loads((options.directory / RESULT).read_text("utf-8"))
    shown = ", ".join(f"{figure} {value:.4g}" for figure, value in result["figures"].items())
    print(f"{options.directory / MODEL}: {shown}; {result['num_examples']} examples, {in_words(result['left_out'])}")
    return 0


def train_on_ray(options: Train) -> None:
    """Trains on workers.

    Raises:
        ValueError: as `training.loop.run_together`, or the cluster cannot hold the workers.
        TrainingDivergedError: as `training.loop.run`.
        RunError: workers were lost more often than they may be.
    """
    from ctxasr_ray.distributed import trainer
    from ctxasr_ray.training.loop import LOG, run_together
    from ctxasr_ray.training.progress import follow

    training = options.training
    if training.num_parts == 1:
        training = replace(training, num_parts=options.num_workers)
    resources = Resources(
        num_actors=options.num_workers,
        num_cpus=options.cpus_per_worker,
        num_gpus=float(training.device.partition(":")[0] == "cuda"),
    )
    directory = options.directory.absolute()
    with follow(directory / LOG, training.name, training.num_steps):
        trainer.train(
            functools.partial(run_together, training, directory),
            trainer.Group(resources, options.max_failures),
            directory,
            name=training.name,
            address=options.address,
        )
