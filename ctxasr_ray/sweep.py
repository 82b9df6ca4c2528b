"""An experiment and axes -> trials: what each setting does on dev, the Pareto front, and one test report of the best.

An axis is a field of the experiment that needs models again (a beam, an N, a list size, an in-search weight, which LM)
or the method, which is the system that is judged. Fusion weights are no axes: every trial finds its own by exact
search. A trial is an ordinary run of what its system needs in the same root, so it shares every committed table with
the others, and doing it again costs nothing.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from ctxasr_ray import pipeline
from ctxasr_ray.axes import Value, numbers
from ctxasr_ray.experiment import Experiment
from ctxasr_ray.stage import identity
from ctxasr_ray.storage.identity import digest
from ctxasr_ray.storage.store import Shard, Store


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepConfig:
    """What is varied, how, and what counts."""

    axes: tuple[str, ...]
    """FIELD=A,B,C (choices) or FIELD=LOW..HIGH (a range), for example first_pass.beam_size=10,50,100; system=A,B sets
    methods against each other."""
    search: Literal["grid", "random", "optuna"] = "grid"
    """grid takes every combination of choices; random and optuna draw `num_trials` settings."""
    num_trials: int = 16
    """Settings that random and optuna try."""
    system: str = "lm_rescoring"
    """Whose figure on dev decides, where no axis names it."""
    metric: str = "wer"
    """What is minimised on dev."""
    rungs: tuple[float, ...] = ()
    """Shares of the dev shards after which the worse half of the trials stops (ASHA), for example 0.25 0.5."""
    max_concurrent: int = 0
    """Trials at a time; 0: as many as the machine has CPUs, or as the given cluster holds side by side."""
    search_seed: int = 7
    """Draws the settings."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One setting and what it gave on dev.

    Args:
        setting: Axis -> value.
        figures: Metric -> value: the swept metric, its interval, `real_time_factor`.
        is_complete: False where ASHA stopped it before all dev shards were read.
        error: Why it failed; None where it did not.
    """

    setting: Mapping[str, Value]
    figures: Mapping[str, float]
    is_complete: bool
    error: str | None = None


def rungs(config: SweepConfig, shards: Sequence[Shard]) -> list[list[Shard]]:
    """The dev shards that each rung reads, growing; the cut into shards is a random draw, so any first ones will do.

    Raises:
        ValueError: no dev shard, or shares that do not grow between 0 and 1.
    """
    dev = [shard for shard in shards if shard.split == "dev"]
    if not dev:
        raise ValueError("a sweep tunes on dev, and the corpus has no dev utterance; test is for reporting only.")
    shares = (*config.rungs, 1.0)
    if list(shares) != sorted(set(shares)) or shares[0] <= 0:
        raise ValueError(f"rungs are {list(config.rungs)}; expected growing shares above 0 and below 1.")
    return [dev[: max(1, math.ceil(share * len(dev)))] for share in shares]


def trial(
    experiment: Experiment, config: SweepConfig, store: Store, steps: Sequence[Sequence[Shard]], address: str | None
) -> Iterator[dict[str, float]]:
    """Runs one setting of an experiment that was cut down to its system, and gives figures on dev after each rung.

    Raises:
        ValueError: the system or metric that decides is not among the results.
    """
    for shards in steps:
        pipeline.run(experiment, store, shards, address=address)
        yield dev_figures(pipeline.results(experiment, store, shards), config)


def dev_figures(results: pa.Table, config: SweepConfig) -> dict[str, float]:
    """The swept metric with its interval and the real-time factor, of the deciding system on dev.

    Raises:
        ValueError: the system or metric is not among the results.
    """
    rows = [row for row in results.to_pylist() if row["split"] == "dev" and row["system"] == config.system]
    own = [row for row in rows if row["metric"] == config.metric]
    if not own:
        systems = sorted({row["system"] for row in results.to_pylist()})
        metrics = sorted({row["metric"] for row in rows})
        raise ValueError(
            f"no {config.metric} of system '{config.system}' on dev; systems are {systems}, metrics of it {metrics}. "
            "Set --system and --metric."
        )
    figures = {config.metric: own[0]["value"], "ci_low": own[0]["ci_low"], "ci_high": own[0]["ci_high"]}
    figures |= {row["metric"]: row["value"] for row in rows if row["metric"] == "real_time_factor"}
    return {name: float(value) for name, value in figures.items() if value is not None}


def best(outcomes: Sequence[Outcome], metric: str) -> Outcome:
    """The complete outcome with the lowest figure; of equal ones the first.

    Raises:
        ValueError: no trial finished.
    """
    done = [o for o in outcomes if o.is_complete and o.error is None]
    if not done:
        raise ValueError(f"no trial finished; the first failed with: {outcomes[0].error if outcomes else 'no trial'}")
    return min(done, key=lambda outcome: outcome.figures[metric])


def pareto(outcomes: Sequence[Outcome], metrics: Sequence[str]) -> list[bool]:
    """Which outcomes no other one beats: not worse in every metric and better in one; incomplete ones never."""
    figures = [
        tuple(o.figures.get(m, math.inf) for m in metrics) if o.is_complete and not o.error else None for o in outcomes
    ]
    return [
        own is not None
        and not any(
            other is not None and other != own and all(a <= b for a, b in zip(other, own, strict=True))
            for other in figures
        )
        for own in figures
    ]


def tried(results: pa.Table, num_configurations: int) -> pa.Table:
    """RESULTS of the chosen setting, with the number of settings that were tried to choose it in every row."""
    counted = [n + num_configurations - 1 for n in results["num_configurations"].to_pylist()]
    signed = [f"{text}|configurations:{n}" for text, n in zip(results["signature"].to_pylist(), counted, strict=True)]
    for name, values in (("num_configurations", counted), ("signature", signed)):
        place = results.column_names.index(name)
        results = results.set_column(
            place, results.schema.field(name), pa.array(values, results.schema.field(name).type)
        )
    return results


def sweep_name(experiment: Experiment, config: SweepConfig, shards: Sequence[Shard]) -> str:
    """Names a sweep by all that changes its trials, so that the same command finds it again."""
    about = [numbers(experiment), identity(config), sorted(shard.name for shard in shards)]
    return f"sweep-{digest(about)[:16]}"
