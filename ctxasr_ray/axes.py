"""Axes of a sweep: any field of an experiment by its dotted path, as choices or a range, and `system`."""

import dataclasses
import difflib
import itertools
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from ctxasr_ray import layout
from ctxasr_ray.experiment import Branch, Experiment
from ctxasr_ray.stage import identity
from ctxasr_ray.storage.identity import digest

Value = str | int | float | bool | None
SYSTEM: Final = "system"
"""The axis whose values are rows of the results: which method a setting is judged by."""


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
        if axis.name == SYSTEM:
            for value in axis.values:
                only(experiment, str(value))
            continue
        ends = axis.values or (axis.low, axis.high)
        ways = {digest(numbers(override(experiment, {axis.name: _whole(axis, value)}))) for value in ends}
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
    """The experiment with some fields, named by dotted paths, set to other values, and cut down to its `system`."""
    for name, value in setting.items():
        if name != SYSTEM:
            experiment = _set(experiment, name.split("."), value)
    return only(experiment, str(setting[SYSTEM])) if SYSTEM in setting else experiment


def only(experiment: Experiment, system: str) -> Experiment:
    """The experiment without what a system does not need: the first pass, the system, and the lists it is made of.

    Raises:
        ValueError: no such system; the nearest one is named.
    """
    lists = experiment.lists()
    homes = {name: home for home, branch in lists.items() for name in (home, *branch.rescorings)}
    if system not in homes:
        near = difflib.get_close_matches(system, homes, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise ValueError(f"system '{system}' is none of this recipe's: {', '.join(homes)}.{hint}")
    needed, todo = set(), [homes[system]]
    while todo:
        needed.add(todo[-1])
        todo += lists[todo.pop()].of
    branches: dict[str, Branch] = {}
    for name, branch in experiment.branches.items():
        if name in needed:
            own = {key: value for key, value in branch.rescorings.items() if key == system}
            branches[name] = dataclasses.replace(branch, rescorings=own)
    return dataclasses.replace(
        experiment,
        scorers=experiment.scorers if system == "lm_rescoring" else (),
        rescorings={key: value for key, value in experiment.rescorings.items() if key == system},
        branches=branches,
    )


def numbers(experiment: Experiment) -> list[Any]:
    """All that changes the tables of an experiment: configs and model digests of its steps."""
    steps = layout.line(experiment).steps
    return [
        *([step.name, identity(step.config), dict(step.config.fingerprint())] for step in steps[1:]),
        experiment.shard_audio_s,
        identity(experiment.synthetic),
    ]


_RANGE: Final = ".."


def _parse_axis(experiment: Experiment, text: str) -> Axis:
    name, equals, written = text.partition("=")
    if not equals or not written.strip(", "):
        raise ValueError(f"axis '{text}' has no values; write FIELD=A,B,C or FIELD=LOW..HIGH.")
    hint = str if name == SYSTEM else _hint(experiment, name, name.split("."))
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
