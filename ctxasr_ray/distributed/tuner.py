"""Ray Tune around any trial: settings in, what each reported out; killed and restored it repeats only what is cheap.

Tune repeats or redraws trials after a kill (notes/probes.md, section 6), so a trial must be idempotent and cached by
what it is; ours are runs of committed tables. A trial that runs on pools holds no CPU: its pools do. One that runs in
its own process holds one, and the process takes trial after trial, so that what it imports is paid once.
"""

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from ctxasr_ray.distributed.cluster import connected, ray

SETTINGS: Final = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}
"""Read by Tune: no logger of its own per trial, a snapshot each second, nothing on standard output, and trials stay in
the folder of the command, from which its relative paths go."""
NO_CPU: Final = {"cpu": 0, "memory": 1}
"""What a trial on pools asks for; Tune refuses to ask for nothing, so it is one byte."""
RUNG: Final = "training_iteration"
"""Tune's own count of reports: our rung."""

Trial = Callable[[Mapping[str, Any]], Iterable[Mapping[str, float]]]


@dataclass(frozen=True, slots=True)
class Tried:
    """One trial: its setting, its last report, the number of reports, and why it failed."""

    setting: Mapping[str, Any]
    figures: Mapping[str, float]
    num_reports: int
    error: str | None


@dataclass(frozen=True, slots=True)
class Range:
    """A stretch of numbers to draw from, both ends within it."""

    low: float
    high: float
    is_integer: bool


def tune(
    trial: Trial,
    settings: Sequence[Mapping[str, Any]] | Mapping[str, Range | Sequence[Any]],
    *,
    search: Literal["grid", "random", "optuna"],
    num_trials: int,
    metric: str,
    num_rungs: int,
    max_concurrent: int,
    num_cpus: float,
    is_inline: bool,
    seed: int,
    directory: Path,
    name: str,
    address: str | None,
) -> list[Tried]:
    """Runs trials, or restores a killed sweep of the same name, and gives them in the order of their settings.

    Args:
        trial: Setting -> one report per rung, each with `metric`.
        settings: A list of settings for a grid, else what each value is drawn from.
        search: How settings are chosen.
        num_trials: For random and optuna.
        metric: Minimised.
        num_rungs: Reports of a whole trial; above 1 the worse half of the trials stops at each rung (ASHA).
        max_concurrent: Trials at a time; 0: as many as the cluster has CPUs for.
        num_cpus: Logical CPUs that one trial needs; a local cluster gets at least these.
        is_inline: The trial itself works and holds them; False where the pools that it starts do.
        seed: Of the search.
        directory: Local folder for Tune's own state.
        name: Of the sweep; the same name goes on where it stopped.
        address: Of a Ray cluster.
    """
    for key, value in SETTINGS.items():
        os.environ.setdefault(key, value)
    with connected(address, num_cpus * max(1, max_concurrent)):
        from ray import tune as ray_tune

        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # what failed is in the results, without traceback

        def trainable(config: dict[str, Any]) -> None:
            for figures in trial(config.get("setting", config)):
                ray_tune.report(dict(figures))

        holder = ray_tune.with_resources(trainable, {"cpu": num_cpus} if is_inline else NO_CPU)
        place = directory.resolve() / name
        if ray_tune.Tuner.can_restore(str(place)):
            tuner = ray_tune.Tuner.restore(
                str(place), trainable=holder, resume_unfinished=True, resume_errored=True, restart_errored=False
            )
        else:
            tuner = ray_tune.Tuner(
                holder,
                param_space=_space(ray_tune, settings),
                tune_config=ray_tune.TuneConfig(
                    metric=metric,
                    mode="min",
                    num_samples=1 if search == "grid" else num_trials,
                    max_concurrent_trials=max_concurrent or _side_by_side(num_cpus),
                    search_alg=_searcher(search, metric, seed),
                    scheduler=_scheduler(ray_tune, num_rungs),
                    reuse_actors=True,
                ),
                run_config=ray_tune.RunConfig(name=name, storage_path=str(directory.resolve()), verbose=0),
            )
        results = tuner.fit()
        trials = results._experiment_analysis.trials  # a result has its config only once the trial has reported
        found = [_tried(result, each.config) for result, each in zip(results, trials, strict=True)]
        order = [] if isinstance(settings, Mapping) else [dict(setting) for setting in settings]
        return sorted(found, key=lambda tried: order.index(dict(tried.setting)) if order else 0)


def _side_by_side(num_cpus: float) -> int:
    """Trials whose pools find their CPUs at the same time; the pools of any others would wait for these."""
    return max(1, int(ray.cluster_resources().get("CPU", 0.0) // num_cpus))


def _space(ray_tune: Any, settings: Sequence[Mapping[str, Any]] | Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(settings, Mapping):
        return {"setting": ray_tune.grid_search([dict(setting) for setting in settings])}
    return {name: _domain(ray_tune, values) for name, values in settings.items()}


def _domain(ray_tune: Any, values: Range | Sequence[Any]) -> Any:
    if not isinstance(values, Range):
        return ray_tune.choice(list(values))
    if values.is_integer:
        return ray_tune.randint(int(values.low), int(values.high) + 1)
    return ray_tune.uniform(values.low, values.high)


def _searcher(search: str, metric: str, seed: int) -> Any:
    if search == "optuna":
        from ray.tune.search.optuna import OptunaSearch

        return OptunaSearch(metric=metric, mode="min", seed=seed)
    from ray.tune.search import BasicVariantGenerator

    return BasicVariantGenerator(random_state=seed, constant_grid_search=True)


def _scheduler(ray_tune: Any, num_rungs: int) -> Any:
    if num_rungs == 1:
        return None
    return ray_tune.schedulers.ASHAScheduler(
        time_attr=RUNG, max_t=num_rungs, grace_period=1, reduction_factor=2, stop_last_trials=False
    )


def _tried(result: Any, config: Mapping[str, Any]) -> Tried:
    metrics = result.metrics or {}
    figures = {k: float(v) for k, v in metrics.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    return Tried(config.get("setting", config), figures, int(metrics.get(RUNG, 0)), _why(result.error))


def _why(error: Exception | None) -> str | None:
    """What the trial itself raised, without Ray's wrapping."""
    if isinstance(error, ray.exceptions.RayActorError | ray.exceptions.OutOfMemoryError):
        return "its process was killed from outside (most often for memory) or crashed in a library."
    cause = getattr(error, "cause", None) or error
    return None if cause is None else str(cause).strip() or type(cause).__name__
