"""`ctxasr sweep`: axes on the command line -> trials on Ray, a table of all of them, a test report of the best."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ctxasr_ray import axes, sweep
from ctxasr_ray.experiment import Experiment
from ctxasr_ray.opening import open_run
from ctxasr_ray.recipes.evaluation import find

if TYPE_CHECKING:
    from ctxasr_ray.storage.store import Shard, Store


@dataclass(frozen=True, kw_only=True, slots=True)
class Sweep:
    """Tries settings of a recipe on dev and reports the best on test; the same command goes on where it stopped."""

    root: str
    """Run folder that all trials share. Also s3://bucket/folder."""
    state: Path = Path("runs/sweeps")
    """Folder of this machine for the search's own state and for the sweep's table."""
    manifest: Path | None = None
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
    """Runs the trials, prints their table and the best one's results, and returns the exit status."""
    from rich.console import Console

    from ctxasr_ray import pipeline
    from ctxasr_ray.report.tables import results_records
    from ctxasr_ray.report.terminal import terminal_tables

    config, experiment = options.sweep, options.experiment
    found = axes.parse_axes(experiment, config.axes)
    store, shards = open_run(experiment, options.root, options.manifest)
    name = sweep.sweep_name(experiment, config, shards)
    outcomes = _tried(options, found, store, shards, name)
    rows = _rows(outcomes, config.metric)
    options.state.mkdir(parents=True, exist_ok=True)
    table = options.state / f"{name}.json"
    table.write_text(json.dumps(rows, indent=1) + "\n")
    chosen = sweep.best(outcomes, config.metric)
    final = _setting_of(options, chosen.setting)
    pipeline.run(final, store, shards, address=options.address)
    results = sweep.tried(pipeline.results(final, store, shards), len(outcomes))
    if options.json:
        for record in [*rows, *results_records(results)]:
            print(json.dumps(record, ensure_ascii=False))
        return 0
    console, errors = Console(), Console(stderr=True)
    console.print(_trials_table(rows, config))
    console.print(terminal_tables(results))
    picked = ", ".join(f"{key} {value}" for key, value in chosen.setting.items())
    errors.print(f"Chosen on dev among {len(outcomes)} settings: {picked}.", highlight=False)
    errors.print(f"Table of the trials: {table.resolve()}", highlight=False, soft_wrap=True)
    return 0


def _tried(
    options: Sweep, found: Sequence[axes.Axis], store: "Store", shards: "Sequence[Shard]", name: str
) -> list[sweep.Outcome]:
    from ctxasr_ray import layout
    from ctxasr_ray.distributed.pools import needed_cpus
    from ctxasr_ray.distributed.tuner import Range, tune

    config, address = options.sweep, options.address
    rungs = sweep.rungs(config, shards)
    first = {axis.name: axis.values[0] for axis in found if axis.values}

    def trial(setting: Mapping[str, Any]) -> Iterator[dict[str, float]]:
        own = replace(config, system=setting.get(axes.SYSTEM, config.system))
        return sweep.trial(_setting_of(options, setting), own, type(store)(store.root), rungs, address)

    spaces = {axis.name: axis.values or Range(axis.low, axis.high, axis.is_integer) for axis in found}
    tried = tune(
        trial,
        axes.grid(found) if config.search == "grid" else spaces,
        search=config.search,
        num_trials=config.num_trials,
        metric=config.metric,
        num_rungs=len(rungs),
        max_concurrent=config.max_concurrent,
        num_cpus=needed_cpus(layout.line(_setting_of(options, first)).steps),
        seed=config.search_seed,
        directory=options.state,
        name=name,
        address=address,
    )
    return [sweep.Outcome(t.setting, t.figures, t.num_reports >= len(rungs), t.error) for t in tried]


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
            shown["pareto"] = row["error"][:60]
        table.add_row(*(_cell(value) for name, value in shown.items() if name not in skipped))
    return table


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
