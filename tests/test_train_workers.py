"""A batch in parts, alone, in a group of processes and on Ray: the same weights, also after a worker is killed."""

import contextlib
import dataclasses
import json
import os
import signal
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_training import ToneSpeech, joint_task, same_weights, short, small_lm, tone_ctc, tone_task

from ctxasr_ray.stage import Resources
from ctxasr_ray.train_command import Train, train, train_on_ray
from ctxasr_ray.training.config import Optimiser, Task, TrainingConfig
from ctxasr_ray.training.loop import TrainingDivergedError, run, run_together

HERE = Path(__file__).parent


def still_lm(**changes: object) -> TrainingConfig:
    """Nothing is drawn inside of a batch, so it may be cut as one likes."""
    task: Any = small_lm().task
    fast = Optimiser(learning_rate=3e-3, warm_up_steps=2)
    return small_lm(**{"task": dataclasses.replace(task, dropout=0.0), "optimiser": fast, **changes})


def losses(directory: Path) -> list[float]:
    entries = [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]
    return [entry["loss"] for entry in entries if "loss" in entry]


# ---- parts, in one process


def joint(folder: Path) -> TrainingConfig:
    task = dataclasses.replace(joint_task(folder, num_utterances=9), augment=None)
    return short(TrainingConfig(name="joint", task=task, num_steps=1, batch_size=1000))


@pytest.mark.parametrize(
    "make", [lambda _: small_lm(), lambda _: tone_ctc(task=dataclasses.replace(tone_task(), augment=None)), joint]
)
def test_the_losses_of_parts_add_up_to_the_loss_of_the_batch(make: Any, tmp_path: Path) -> None:
    task = make(tmp_path).task.build(tmp_path, 0)
    task.model.eval()
    whole = task.batch(np.arange(9), np.random.default_rng(0))
    counts = task.counts(whole)
    parts = [task.batch(np.arange(9)[place::3], np.random.default_rng(0)) for place in range(3)]
    for name, count in counts.items():
        assert sum(task.counts(part)[name] for part in parts) == pytest.approx(count)
    with torch.no_grad():
        total = sum(float(task.loss(part, counts)) for part in parts)
        assert total == pytest.approx(float(task.loss(whole, counts)), rel=1e-5)


def test_parts_and_recomputed_layers_change_no_weight(tmp_path: Path) -> None:
    whole = run(still_lm(log_every=1), tmp_path / "whole")
    config = still_lm(num_parts=40, gradient_checkpointing=True, log_every=1)  # more parts than a batch has sentences
    same_weights(whole, run(config, tmp_path / "parts"), "in parts")
    assert losses(tmp_path / "whole") == pytest.approx(losses(tmp_path / "parts"), abs=1e-5)


def test_a_model_without_layers_to_recompute_is_refused(tmp_path: Path) -> None:
    config = still_lm(task=Plain(), gradient_checkpointing=True)
    with pytest.raises(ValueError, match=r"Linear has no layers to compute again; leave it off"):
        run(config, tmp_path)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Plain:
    """A task around a model that is none of transformers'."""

    def build(self, directory: Path, num_processes: int) -> Any:
        task: Any = still_lm().task.build(directory, num_processes)
        task.model = torch.nn.Linear(2, 2)
        return task


# ---- a group of processes, without Ray


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def in_group(rank: int, port: int, runs: list[tuple[TrainingConfig, str]]) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    for config, directory in runs:
        run_together(config, directory)
    torch.distributed.destroy_process_group()


def test_copies_and_pieces_of_the_model_train_as_one_process_does(tmp_path: Path) -> None:
    whole = run(still_lm(log_every=1, evaluate_every=4), tmp_path / "whole")
    dropping = small_lm(num_parts=4, evaluate_every=4)
    runs = {
        "copies": still_lm(num_parts=2, log_every=1, evaluate_every=4),
        "pieces": still_lm(num_parts=4, log_every=1, evaluate_every=4, sharded=True, gradient_checkpointing=True),
        "dropping": dropping,
    }
    torch.multiprocessing.spawn(  # type: ignore[no-untyped-call]  # torch leaves it unannotated
        in_group, (free_port(), [(config, str(tmp_path / name)) for name, config in runs.items()]), nprocs=2
    )
    for name in ("copies", "pieces"):
        same_weights(whole, tmp_path / name / "model", name)
        assert losses(tmp_path / name) == pytest.approx(losses(tmp_path / "whole"), abs=1e-5)
    same_weights(run(dropping, tmp_path / "alone"), tmp_path / "dropping" / "model", "the draws are those of the parts")
    figures = [json.loads((tmp_path / n / "training.json").read_text())["figures"] for n in ("whole", "pieces")]
    assert figures[0] == pytest.approx(figures[1], rel=1e-5)


# ---- on Ray


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One local cluster for the module; its workers can import the tests."""
    before = {name: os.environ.get(name) for name in ("PYTHONPATH", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S")}
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE), before["PYTHONPATH"]]))
    os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.3"
    from ctxasr_ray.distributed.cluster import connected

    with connected(None, 2):
        yield
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Killed:
    """A task whose first process to come so far dies by SIGKILL in the middle of a step, once."""

    task: object
    steps: int
    token: str

    def build(self, directory: Path, num_processes: int) -> Task:
        built = self.task.build(directory, num_processes)  # type: ignore[attr-defined]
        done, loss = iter(range(10**9)), built.loss

        def die(batch: object, counts: object) -> object:
            if next(done) == self.steps:
                with contextlib.suppress(FileExistsError):
                    os.close(os.open(self.token, os.O_CREAT | os.O_EXCL))
                    os.kill(os.getpid(), signal.SIGKILL)
            return loss(batch, counts)

        built.loss = die
        return built  # type: ignore[no-any-return]


def on_ray(config: TrainingConfig, directory: Path, max_failures: int = 1) -> None:
    from ctxasr_ray.distributed import trainer

    group = trainer.Group(Resources(num_actors=2, num_cpus=0.5), max_failures)
    trainer.train(partial(run_together, config, directory), group, directory, name=config.name, address=None)


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True])
def test_a_worker_killed_at_a_random_step_changes_no_weight(cluster: None, tmp_path: Path, sharded: bool) -> None:
    config = still_lm(num_steps=15, num_parts=2, log_every=1)
    whole = run(config, tmp_path / "whole")
    steps = int(np.random.default_rng().integers(1, 15))
    dying = Killed(task=config.task, steps=steps, token=str(tmp_path / "token"))
    on_ray(dataclasses.replace(config, task=dying, sharded=sharded), tmp_path / "killed")
    assert (tmp_path / "token").exists()
    same_weights(whole, tmp_path / "killed" / "model", f"killed in step {steps}")
    assert losses(tmp_path / "killed") == pytest.approx(losses(tmp_path / "whole"), abs=1e-5)


@pytest.mark.slow
def test_workers_lost_too_often_and_a_diverging_loss_end_the_run_in_words(cluster: None, tmp_path: Path) -> None:
    from ctxasr_ray.execution.stage_calls import RunError

    dying = Killed(task=still_lm().task, steps=0, token=str(tmp_path / "token"))
    with pytest.raises(RunError, match=r"failed 1 times.*give the same command again"):
        on_ray(still_lm(task=dying, num_parts=2), tmp_path / "lost", max_failures=0)
    broken = tone_ctc(task=tone_task(ToneSpeech(num_utterances=12, nan_at=5)), num_parts=2)
    with pytest.raises(TrainingDivergedError, match=r"tone-5\b"):
        on_ray(broken, tmp_path / "diverged", max_failures=100)


@pytest.mark.slow
def test_the_command_trains_on_workers(cluster: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["lm", "--directory", str(tmp_path), "--num-workers", "2", "--cpus-per-worker", "0.5", "--num-steps", "2"]
    words += ["--task.hidden-size", "8", "--task.num-layers", "1", "--task.train.num-sentences", "50"]
    assert train([*words, "--task.dev.num-sentences", "3", "--num-threads", "1"]) == 0
    assert "dev_perplexity" in capsys.readouterr().out
    assert json.loads((tmp_path / "config.json").read_text())["num_parts"] == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_workers": -1}, "expected 0 or more"),
        ({"training": still_lm(sharded=True)}, "num_workers is 0; give --num-workers too"),
    ],
)
def test_workers_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Train(**{"directory": Path(), "training": still_lm(), **changes})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("sharded", [False, True])
def test_a_worker_on_a_gpu_learns_what_a_cpu_does(tmp_path: Path, sharded: bool) -> None:
    run(still_lm(log_every=1), tmp_path / "whole")
    training = still_lm(device="cuda", sharded=sharded, log_every=1)
    train_on_ray(Train(directory=tmp_path / "gpu", training=training, num_workers=1))
    assert losses(tmp_path / "gpu") == pytest.approx(losses(tmp_path / "whole"), abs=1e-3)
