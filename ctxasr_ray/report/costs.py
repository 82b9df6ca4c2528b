"""COSTS of shards -> what each step cost: seconds by kind, counters, rates."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from ctxasr_ray.stage import Costs

_LOAD: Final = "load"
"""The kind of seconds that a longer run does not pay again; left out of rates."""

_WHOLE: Final = "busy"
"""Not a kind: the stage's own seconds as a whole, all kinds but loading together."""

_PEAKS: Final = ("peak_host_bytes", "peak_device_bytes")


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
    utterances: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Counter -> its value for every utterance that has one."""

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
        return max(0.0, self.wall_s - self.seconds.get(_LOAD, 0.0))


def by_step(costs: Sequence[Mapping[str, Any]]) -> list[StepCost]:
    """Adds up the costs of a run's shards per step, in the order of their first appearance.

    Args:
        costs: One mapping per step and shard, as `store.Store.costs` gives them: `step`, `table`, `rows`, `seconds`,
            `counters`, and where known `device`, `peak_host_bytes`, `peak_device_bytes` and `wall_s`; without
            `wall_s` it is `seconds["busy"]` and `seconds["load"]` together.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for cost in costs:
        groups.setdefault(str(cost["step"]), []).append(cost)
    return [_add(step, shards) for step, shards in groups.items()]


def _add(step: str, shards: Sequence[Mapping[str, Any]]) -> StepCost:
    seconds: dict[str, float] = {}
    counted = Costs()
    utterances: dict[str, list[int]] = {}
    for shard in shards:
        for name, values in shard.get("utterances", {}).items():
            utterances.setdefault(name, []).extend(int(value) for value in values if value is not None)
        for name, value in shard["seconds"].items():
            if name != _WHOLE:
                seconds[name] = seconds.get(name, 0.0) + float(value)
        counted.add(shard["counters"])
        counted.add({name: shard[name] for name in _PEAKS if shard.get(name)})
    return StepCost(
        step=step,
        table=str(shards[0]["table"]),
        devices=tuple(dict.fromkeys(str(shard["device"]) for shard in shards if shard.get("device"))),
        num_shards=len(shards),
        rows=sum(int(shard["rows"]) for shard in shards),
        wall_s=sum(_wall(shard) for shard in shards),
        seconds=seconds,
        counters=counted.counters,
        utterances=utterances,
    )


def _wall(shard: Mapping[str, Any]) -> float:
    if "wall_s" in shard:
        return float(shard["wall_s"])
    return float(shard["seconds"].get(_WHOLE, 0.0)) + float(shard["seconds"].get(_LOAD, 0.0))
