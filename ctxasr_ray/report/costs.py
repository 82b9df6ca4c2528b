"""COSTS of shards -> what each step cost: seconds by kind, counters, rates."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

_NOT_WORK: Final = ("load",)
"""Kinds of seconds that a longer run does not pay again; left out of rates."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepCost:
    """One step of a run over all its shards."""

    step: str
    table: str
    devices: tuple[str, ...]
    num_shards: int
    rows: int
    wall_s: float
    """Busy wall seconds, summed over shards: what one worker would have needed."""
    seconds: Mapping[str, float]
    """Seconds by kind (load, decode, search, llm, ...), summed over shards."""
    counters: Mapping[str, int]
    """Work counters, summed over shards; those that start with `peak_` are the largest of any shard."""

    @property
    def device(self) -> str:
        """The devices that the step ran on."""
        return ", ".join(self.devices) or "-"

    @property
    def other_s(self) -> float:
        """Wall seconds that no kind accounts for, for example reading and writing tables."""
        return max(0.0, self.wall_s - sum(self.seconds.values()))

    @property
    def warm_s(self) -> float:
        """Wall seconds without model loading."""
        return max(0.0, self.wall_s - sum(self.seconds.get(kind, 0.0) for kind in _NOT_WORK))


def by_step(costs: Sequence[Mapping[str, Any]]) -> list[StepCost]:
    """Adds up the costs of a run's shards per step, in the order of their first appearance.

    Args:
        costs: One mapping per step and shard with `step`, `shard`, `table`, `rows`, `seconds`,
            `counters`, `device` and `wall_s`; `device` may be None or missing.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for cost in costs:
        groups.setdefault(str(cost["step"]), []).append(cost)
    return [_add(step, shards) for step, shards in groups.items()]


def _add(step: str, shards: Sequence[Mapping[str, Any]]) -> StepCost:
    seconds: dict[str, float] = {}
    counters: dict[str, int] = {}
    for shard in shards:
        for name, value in shard["seconds"].items():
            seconds[name] = seconds.get(name, 0.0) + float(value)
        for name, value in shard["counters"].items():
            if name.startswith("peak_"):
                counters[name] = max(counters.get(name, 0), int(value))
            else:
                counters[name] = counters.get(name, 0) + int(value)
    return StepCost(
        step=step,
        table=str(shards[0]["table"]),
        devices=tuple(dict.fromkeys(str(shard["device"]) for shard in shards if shard.get("device"))),
        num_shards=len(shards),
        rows=sum(int(shard["rows"]) for shard in shards),
        wall_s=sum(float(shard["wall_s"]) for shard in shards),
        seconds=seconds,
        counters=counters,
    )
