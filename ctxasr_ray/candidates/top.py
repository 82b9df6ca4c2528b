"""HYPOTHESES -> HYPOTHESES: the first N of every list, so that a shorter list is rescored at its own price."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from ctxasr_ray.schema import HYPOTHESES, conform
from ctxasr_ray.stage import Costs, Resources, light


@dataclass(frozen=True, kw_only=True, slots=True)
class TopConfig:
    """Keeps the best hypotheses of each list, in their order; shorter lists stay as they are."""

    NAME: ClassVar[str] = "top"
    STAGE_VERSION: ClassVar[int] = 1
    READS: ClassVar[Mapping[str, tuple[str, ...]]] = {"hypotheses": ("hypotheses", "error_type", "error")}
    WRITES: ClassVar[str] = "hypotheses"

    num_hypotheses: int
    """Length of the longest list that is left; at least 1."""
    resources: Resources = field(default_factory=light)
    """Actors of the pool."""

    def __post_init__(self) -> None:
        """Refuses lists of nothing."""
        if self.num_hypotheses < 1:
            raise ValueError(f"top: num_hypotheses is {self.num_hypotheses}; expected at least 1.")

    def fingerprint(self) -> Mapping[str, str]:
        """Nothing outside the config."""
        return {}

    def build(self) -> "Top":
        """Nothing to load."""
        return Top(self)


@dataclass(frozen=True, slots=True)
class Top:
    """The built stage."""

    config: TopConfig

    def __call__(self, *tables: pa.Table, costs: Costs) -> pa.Table:
        """One HYPOTHESES table in, the same rows out; counts the hypotheses `left_out`."""
        (table,) = tables
        lists = table.column("hypotheses").combine_chunks()
        kept = pc.list_slice(lists, 0, self.config.num_hypotheses, return_fixed_size_list=False)
        costs.count("left_out", len(lists.flatten()) - len(kept.flatten()))
        place = table.column_names.index("hypotheses")
        return conform(
            table.set_column(place, "hypotheses", kept.cast(HYPOTHESES.field("hypotheses").type)), "hypotheses"
        )
