"""A training on several workers: Ray Train starts a group of torch processes, and starts it again where one is lost.

What the workers do is their own: they keep a log and checkpoints in the run's folder, and go on from there.
"""

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ctxasr_ray.distributed.cluster import JOIN_S, Pool, connected, options, refuse_unfit, refuse_unshared
from ctxasr_ray.execution.stage_calls import RunError
from ctxasr_ray.stage import Resources
from ctxasr_ray.storage.object_store import LocalFolder

SETTINGS: Final = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",
}
"""Read by Ray Train: its second version; workers in the folder of the command, from which relative paths go; and time
for a busy machine to start them."""
GROUP_TIMEOUT_S: Final = 6 * 3600
"""How long workers wait for each other: as long as the first may compute features. A dead one is seen at once."""
FINAL: Final = (ValueError, ArithmeticError)
"""What a repetition meets again: unusable settings or data, a loss that is not finite."""


@dataclass(frozen=True, slots=True)
class Group:
    """The workers of a training."""

    resources: Resources
    """Of one worker, and how many there are."""
    max_failures: int
    """How often the group is started again after a lost worker."""


def train(work: Callable[[], None], group: Group, directory: Path, *, name: str, address: str | None) -> None:
    """Calls `work` in every worker of a group whose `torch.distributed` is initialised (nccl on GPUs, else gloo).

    Args:
        work: Goes on, when it is called again, from what it has left in the folder.
        group: The workers.
        directory: Of the run; all nodes see it. Ray Train's own state goes to `ray/` in it.
        name: Of the training.
        address: Of a Ray cluster; None joins a running one or starts one here.

    Raises:
        ValueError: the cluster cannot hold the workers or does not see the folder; or what `work` raised of `FINAL`.
        RunError: workers were lost more often than they may be.
    """
    for key, value in SETTINGS.items():
        os.environ.setdefault(key, value)
    resources = group.resources
    with connected(address, resources.num_actors * resources.num_cpus):
        refuse_unfit([Pool(f"training {name}", resources)], wait_s=JOIN_S if address else 0)
        directory.mkdir(parents=True, exist_ok=True)
        refuse_unshared(LocalFolder(str(directory)))
        from ray import train as ray_train
        from ray.train import torch as ray_torch

        logging.getLogger("ray.train").setLevel(logging.CRITICAL)  # what failed is raised, without traceback
        trainer = ray_torch.TorchTrainer(
            work,
            torch_config=ray_torch.TorchConfig(timeout_s=GROUP_TIMEOUT_S),
            scaling_config=_scaling(ray_train, resources),
            run_config=ray_train.RunConfig(
                name=name,
                storage_path=str(directory.absolute() / "ray"),
                failure_config=ray_train.FailureConfig(max_failures=group.max_failures),
                callbacks=[_stopper(ray_train)],
                logging_config=ray_train.LoggingConfig(log_level="CRITICAL"),
            ),
        )
        try:
            trainer.fit()
        except ray_train.ControllerError as error:
            raise error.controller_failure from None
        except ray_train.WorkerGroupError as error:
            lost = "; ".join(f"worker {rank}: {_last_line(why)}" for rank, why in error.worker_failures.items())
            raise RunError(
                f"training '{name}': the workers failed {group.max_failures + 1} times, the last time {lost}. What is "
                f"in {directory} is whole; see to the cause and give the same command again."
            ) from error


def _scaling(ray_train: Any, resources: Resources) -> Any:
    asked = options(resources)
    per_worker = {"CPU": asked["num_cpus"]}
    per_worker |= {kind: asked[key] for kind, key in (("GPU", "num_gpus"), ("memory", "memory")) if key in asked}
    return ray_train.ScalingConfig(
        num_workers=resources.num_actors,
        use_gpu=resources.num_gpus > 0,
        resources_per_worker=per_worker,
        label_selector=asked.get("label_selector"),
    )


def _stopper(ray_train: Any) -> Any:
    """A callback that ends the run, without another try, at an error that another try would meet again."""

    class Stopper(ray_train.UserCallback):  # type: ignore[misc]  # Ray has no types
        def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
            for error in worker_exceptions.values():
                raised = getattr(error, "_base_exc", error)
                if isinstance(raised, FINAL):
                    raise raised

    return Stopper()


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1]
