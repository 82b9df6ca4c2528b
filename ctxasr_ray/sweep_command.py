"""`ctxasr sweep`: axes on the command line -> trials on Ray, a table of all of them, a test report of the best."""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ctxasr_ray import axes, layout, sweep
from ctxasr_ray.experiment import Experiment
from ctxasr_ray.opening import open_run
from ctxasr_ray.recipes.evaluation import find

if TYPE_CHECKING:
    from rich.console import Console

    from ctxasr_ray.storage.store import Shard, Store


@dataclass(frozen=True, kw_only=True, slots=True)
class Sweep:
    """Tries settings of a recipe on dev and reports the best on test; the same command goes on where it stopped."""

    root: str
    """Run folder that all trials share. Also s3://bucket/folder."""
    state: Path = Path("runs/sweeps")
    """Folder of this machine for the search's own state and for the sweep's table."""
    manifest: str | None = None
    """As for evaluate."""
    json: bool = False
    """Print one JSON line per trial and the RESULTS of the best setting, nothing else, on standard output."""
    address: str | None = None
    """Ray cluster, as for evaluate."""
    sweep: Annotated[sweep.SweepConfig, tyro.conf.arg(name="")]
    """What is varied."""
    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    """The recipe."""


def sweep_recipe(words: Sequence[str]) -> int:
    """Try settings of a recipe on dev, with every table shared, and report the best one on test."""
    if not words or words[0].startswith("-"):
        raise ValueError("expected a recipe: ctxasr sweep RECIPE --axes FIELD=A,B,C ...")
    name, *rest = words
    default = Sweep(
        root=f"runs/{name.replace(':', '-')}", sweep=sweep.SweepConfig(axes=tyro.MISSING), experiment=find(name)()
    )
    options = tyro.cli(
        Sweep, default=default, args=rest, prog=f"ctxasr sweep {name}", config=(tyro.conf.AvoidSubcommands,)
    )
    return run_sweep(options)


def run_sweep(options: Sweep) -> int:
    """Runs the trials, prints their table and the best one's results, and returns the exit status: 1 if one failed."""
    from rich.console import Console

    from ctxasr_ray import pipeline
    from ctxasr_ray.distributed.cluster import connected
    from ctxasr_ray.report.tables import results_records
    from ctxasr_ray.report.terminal import terminal_tables

    config, experiment = options.sweep, options.experiment
    found = axes.parse_axes(experiment, config.axes)
    store, shards = open_run(experiment, options.root, options.manifest)
    name = sweep.sweep_name(experiment, config, shards)
    with connected(options.address, _pool_cpus(options, found)):
        outcomes = _tried(options, found, store, shards, name)
        rows = _rows(outcomes, config.metric)
        options.state.mkdir(parents=True, exist_ok=True)
        table = options.state / f"{name}.json"
        table.write_text(json.dumps(rows, indent=1) + "\n")
        chosen = sweep.best(outcomes, config.metric)
        final = _setting_of(options, chosen.setting)
        pipeline.run(final, store, shards, address=options.address)
    results = sweep.tried(pipeline.results(final, store, shards), len(outcomes))
    errors = Console(stderr=True)
    if options.json:
        for record in [*rows, *results_records(results)]:
            print(json.dumps(record, ensure_ascii=False))
    else:
        console = Console()
        console.print(_trials_table(rows, config))
        console.print(terminal_tables(results))
        errors.print(
            f"Chosen on dev among {len(outcomes)} settings: {_written(chosen.setting)}.", highlight=False, markup=False
        )
        errors.print(f"Table of the trials: {table.resolve()}", highlight=False, markup=False, soft_wrap=True)
    return say_failed(outcomes, errors)


def say_failed(outcomes: Sequence[sweep.Outcome], errors: "Console") -> int:
    """Names the settings that failed and why; returns the exit status."""
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    if not failed:
        return 0
    lines = [f"{len(failed)} of {len(outcomes)} settings failed, so the choice is among the others:"]
    lines += [f"  {_written(outcome.setting)}: {outcome.error}" for outcome in failed]
    lines.append("What is committed stays; the same command tries these again.")
    errors.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)
    return 1


def _written(setting: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in setting.items())


def _tried(
    options: Sweep, found: Sequence[axes.Axis], store: "Store", shards: "Sequence[Shard]", name: str
) -> list[sweep.Outcome]:
    from ctxasr_ray.distributed.tuner import Range, tune

    config, address = options.sweep, options.address
    rungs = sweep.rungs(config, shards)
    is_here = _is_here(options)
    is_inline = is_here or options.experiment.executor == "inline"

    def trial(setting: Mapping[str, Any]) -> Iterator[dict[str, float]]:
        own = replace(config, system=setting.get(axes.SYSTEM, config.system))
        experiment = _setting_of(options, setting)
        if is_inline:
            experiment = replace(experiment, executor="inline")
        return sweep.trial(experiment, own, type(store)(store.root), rungs, address)

    spaces = {axis.name: axis.values or Range(axis.low, axis.high, axis.is_integer) for axis in found}
    tried = tune(
        trial,
        axes.grid(found) if config.search == "grid" else spaces,
        search=config.search,
        num_trials=config.num_trials,
        metric=config.metric,
        num_rungs=len(rungs),
        max_concurrent=config.max_concurrent or (os.cpu_count() or 1 if is_here else 0),
        num_cpus=1.0 if is_inline else _pool_cpus(options, found),
        is_inline=is_inline,
        seed=config.search_seed,
        directory=options.state,
        name=name,
        address=address,
    )
    return [sweep.Outcome(t.setting, t.figures, t.num_reports >= len(rungs), t.error) for t in tried]


def _is_here(options: Sweep) -> bool:
    """Whether each trial runs in one process of this machine: no cluster was given and nothing wants a GPU.

    Pools of its own would cost a trial more than its work: each loads the libraries anew.
    """
    steps = layout.line(options.experiment).steps
    no_cluster = options.address is None and "RAY_ADDRESS" not in os.environ
    return no_cluster and not any(step.config.resources.num_gpus for step in steps)


def _pool_cpus(options: Sweep, found: Sequence[axes.Axis]) -> float:
    """Logical CPUs that the pools of one setting ask for, of those that differ in one axis the most."""
    from ctxasr_ray.distributed.pools import needed_cpus

    first = {axis.name: axis.values[0] for axis in found if axis.values}
    settings = [{**first, axis.name: value} for axis in found for value in axis.values]
    return max(needed_cpus(layout.line(_setting_of(options, setting)).steps) for setting in settings or [first])


def _setting_of(options: Sweep, setting: Mapping[str, Any]) -> Experiment:
    """What a setting runs: the experiment with its fields set, cut down to the system that decides."""
    return axes.override(options.experiment, {axes.SYSTEM: options.sweep.system, **setting})


def _rows(outcomes: Sequence[sweep.Outcome], metric: str) -> list[dict[str, Any]]:
    names = (metric, "ci_low", "ci_high", "real_time_factor")
    front = sweep.pareto(outcomes, (metric, "real_time_factor"))
    rows = [
        {
            **o.setting,
            **{n: o.figures.get(n) for n in names},
            "complete": o.is_complete,
            "pareto": on_front,
            "error": o.error,
        }
        for o, on_front in zip(outcomes, front, strict=True)
    ]
    return sorted(rows, key=lambda row: math.inf if row[metric] is None else row[metric])


def _trials_table(rows: Sequence[Mapping[str, Any]], config: sweep.SweepConfig) -> Any:
    from rich.table import Table

    of = "the system" if axes.SYSTEM in rows[0] else config.system
    title = f"{len(rows)} settings on dev, {config.metric} of {of}; * no other is better and faster"
    table = Table(title=title, title_justify="left", box=None)
    skipped = ("ci_low", "ci_high", "complete", "error")
    for name in (key for key in rows[0] if key not in skipped):
        table.add_column({"pareto": "*", "real_time_factor": "RTF"}.get(name, name), justify="right")
    for row in rows:
        shown = {**row, "pareto": "*" if row["pareto"] else "" if row["complete"] else "stopped"}
        if row["error"]:
            shown["pareto"] = "failed"
        table.add_row(*(_cell(value) for name, value in shown.items() if name not in skipped))
    return table


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
