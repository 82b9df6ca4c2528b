"""Delayed fusion: the language model is asked rarely, about many words of the surviving rows at once.

Between two triggers rows compete with scores of the same age. All triggers are for `LmFusion`.

Reference:
    Hori et al. 2025, arXiv:2501.09258, shortest-hypothesis and fixed-interval fusion. The exact inequality of the
    first and the choice of what is scored are ours: the paper's text leaves them open.
"""

from dataclasses import dataclass

from ctxasr_ray.search.ctc_state import NEVER
from ctxasr_ray.search.fusion import Wake
from ctxasr_ray.search.lm_fusion import Scope


@dataclass(frozen=True, kw_only=True, slots=True)
class FixedInterval:
    """Scores whenever a multiple of `frames` is done."""

    frames: int
    """Interval in frames of the recogniser, skipped ones included (the paper's I)."""
    scope: Scope = "common_words"

    def __post_init__(self) -> None:
        if self.frames < 1:
            raise ValueError(f"interval is {self.frames} frames; expected at least 1.")

    def wake(self, frame: int, shortest: int) -> Wake:
        """At the next multiple."""
        return Wake(frame=min(NEVER, (frame // self.frames + 1) * self.frames))

    def is_due(self, frame: int, fewest: int, shortest: int) -> bool:
        """At every multiple."""
        return frame % self.frames == 0


@dataclass(frozen=True, kw_only=True, slots=True)
class ShortestHypothesis:
    """Scores whenever the row with the fewest complete words has more of them than at the last time."""

    scope: Scope = "common_words"

    def wake(self, frame: int, shortest: int) -> Wake:
        """When every row has one more word."""
        return Wake(shortest=shortest + 1)

    def is_due(self, frame: int, fewest: int, shortest: int) -> bool:
        """Where the fewest words are more than last time."""
        return fewest > shortest
