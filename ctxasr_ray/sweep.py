"""An experiment and axes -> trials: what each setting does on dev, the Pareto front, and one test report of the best.

An axis is a field of the experiment that needs models again: a beam, an N, a list size, an in-search weight, which LM.
Fusion weights are no axes: every trial finds its own by exact search. A trial is an ordinary run in the same root, so
it shares every committed table with the others, and doing it again costs nothing.
"""

import dataclasses
import difflib
import itertools
import math
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import pyarrow as pa

from ctxasr_ray import layout, pipeline
from ctxasr_ray.experiment import Experiment
from ctxasr_ray.stage import identity
from ctxasr_ray.storage.identity import digest
from ctxasr_ray.storage.store import Shard, Store

Value = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Axis:
    """One field and what it may be.

    Args:
        name: Dotted path of a field of the experiment, for example first_pass.beam_size.
        values: Choices, of the field's type; empty for a range.
        low: Lower end of a range.
        high: Upper end of a range.
        is_integer: Whether the range holds whole numbers only.
    """

    name: str
    values: tuple[Value, ...] = ()
    low: float = math.nan
    high: float = math.nan
    is_integer: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepConfig:
    """What is varied, how, and what counts."""

    axes: tuple[str, ...]
    """FIELD=A,B,C (choices) or FIELD=LOW..HIGH (a range), for example first_pass.beam_size=10,50,100."""
    search: Literal["grid", "random", "optuna"] = "grid"
    """grid takes every combination of choices; random and optuna draw `num_trials` settings."""
    num_trials: int = 16
    """Settings that random and optuna try."""
    system: str = "lm_rescoring"
    """Whose figure on dev decides."""
    metric: str = "wer"
    """What is minimised on dev."""
    rungs: tuple[float, ...] = ()
    """Shares of the dev shards after which the worse half of the trials stops (ASHA), for example 0.25 0.5."""
    max_concurrent: int = 0
    """Trials at a time; 0: as many as the cluster holds. A trial itself asks for no CPU, its pools do."""
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


def parse_axes(experiment: Experiment, axes: Sequence[str]) -> tuple[Axis, ...]:
    """Reads axes and checks them against the experiment's fields.

    Raises:
        ValueError: no axis, an unknown field (the nearest is named), a value of a wrong type, an empty or a twice
            named axis, or one that changes no number.
    """
    if not axes:
        raise ValueError("the search space is empty; name an axis: --axes first_pass.beam_size=10,50,100")
    found = [_parse_axis(experiment, text) for text in axes]
    names = [axis.name for axis in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"axes {twice} stand twice; give all values of a field in one axis.")
    for axis in found:
        ends = axis.values or (axis.low, axis.high)
        ways = {digest(_numbers(override(experiment, {axis.name: _whole(axis, value)}))) for value in ends}
        if len(ways) == 1:
            raise ValueError(f"axis '{axis.name}' changes no number: all its values give the same run. Leave it out.")
    return tuple(found)


def grid(axes: Sequence[Axis]) -> list[dict[str, Value]]:
    """Every combination of the axes' choices, the last axis fastest.

    Raises:
        ValueError: an axis is a range.
    """
    if ranges := [axis.name for axis in axes if not axis.values]:
        raise ValueError(f"axes {ranges} are ranges, which a grid cannot hold; list their values or use --search.")
    return [dict(zip([a.name for a in axes], row, strict=True)) for row in itertools.product(*(a.values for a in axes))]


def override(experiment: Experiment, setting: Mapping[str, Value]) -> Experiment:
    """The experiment with some fields, named by dotted paths, set to other values."""
    for name, value in setting.items():
        experiment = _set(experiment, name.split("."), value)
    return experiment


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
    """Runs one setting, rung by rung, and gives its figures on dev after each.

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
    about = [_numbers(experiment), identity(config), sorted(shard.name for shard in shards)]
    return f"sweep-{digest(about)[:16]}"


_RANGE: Final = ".."


def _parse_axis(experiment: Experiment, text: str) -> Axis:
    name, equals, written = text.partition("=")
    if not equals or not written.strip(", "):
        raise ValueError(f"axis '{text}' has no values; write FIELD=A,B,C or FIELD=LOW..HIGH.")
    hint = _hint(experiment, name, name.split("."))
    if _RANGE in written:
        low, _, high = written.partition(_RANGE)
        ends = [_parse(name, part, hint) for part in (low, high)]
        if not all(isinstance(end, int | float) and not isinstance(end, bool) for end in ends):
            raise ValueError(f"axis '{name}' is no number, so it has no range; list its values.")
        numbers = [float(typing.cast(float, end)) for end in ends]
        if not numbers[0] < numbers[1]:
            raise ValueError(f"axis '{name}' goes from {low} to {high}; expected a lower and a higher number.")
        return Axis(name, low=numbers[0], high=numbers[1], is_integer=all(isinstance(end, int) for end in ends))
    return Axis(name, values=tuple(_parse(name, part, hint) for part in written.split(",") if part.strip()))


def _hint(value: Any, name: str, path: Sequence[str]) -> Any:
    """The type of the field at a path."""
    head, *rest = path
    if isinstance(value, tuple) and head.isdigit() and int(head) < len(value):
        below, hint = value[int(head)], type(value[int(head)])
    elif isinstance(value, Mapping) and head in value:
        below, hint = value[head], type(value[head])
    elif dataclasses.is_dataclass(value) and head in {f.name for f in dataclasses.fields(value)}:
        below, hint = getattr(value, head), typing.get_type_hints(type(value))[head]
    else:
        names = _names(value)
        near = difflib.get_close_matches(head, names, n=1)
        suggestion = f" Did you mean '{near[0]}'?" if near else ""
        raise ValueError(f"axis '{name}': there is no '{head}'; expected one of {', '.join(names)}.{suggestion}")
    return _hint(below, name, rest) if rest else hint


def _names(value: Any) -> list[str]:
    if dataclasses.is_dataclass(value):
        return [f.name for f in dataclasses.fields(value)]
    if isinstance(value, Mapping):
        return [str(key) for key in value]
    return [str(i) for i in range(len(value))] if isinstance(value, tuple) else ["nothing: it is a plain value"]


def _parse(name: str, text: str, hint: Any) -> Value:
    """A written value as the field's type; the members of a union are tried in turn, text last."""
    text = text.strip()
    members = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    for member in sorted(members, key=lambda member: member is str):
        if member is types.NoneType and text in ("None", "none"):
            return None
        if member is bool and text.lower() in ("true", "false"):
            return text.lower() == "true"
        if typing.get_origin(member) is Literal and text in typing.get_args(member):
            return text
        if member in (int, float, str):
            try:
                value: Value = member(text)
            except ValueError:
                continue
            if value == value and value not in (math.inf, -math.inf):
                return value
    expected = " or ".join(getattr(member, "__name__", str(member)) for member in members)
    raise ValueError(f"axis '{name}': got '{text}', expected {expected}.")


def _set(value: Any, path: Sequence[str], new: Value) -> Any:
    head, *rest = path
    if isinstance(value, tuple):
        place = int(head)
        return (*value[:place], _set(value[place], rest, new) if rest else new, *value[place + 1 :])
    if isinstance(value, Mapping):
        return {**value, head: _set(value[head], rest, new) if rest else new}
    return dataclasses.replace(value, **{head: _set(getattr(value, head), rest, new) if rest else new})


def _whole(axis: Axis, value: Value) -> Value:
    return int(value) if axis.is_integer and isinstance(value, float) else value


def _numbers(experiment: Experiment) -> list[Any]:
    """All that changes the tables of an experiment: configs and model digests of its steps."""
    steps = layout.line(experiment).steps
    return [
        *([step.name, identity(step.config), dict(step.config.fingerprint())] for step in steps[1:]),
        experiment.shard_audio_s,
        identity(experiment.synthetic),
    ]
