"""Shallow fusion: a language model takes part in every decision of the beam.

Where its vocabulary is not the recogniser's, it is asked whenever a surviving row has a new complete word: the strong
way, survivors only and no text twice. `EveryWord` is the trigger for `LmFusion`.
"""

from dataclasses import dataclass

from ctxasr_ray.search.fusion import Wake
from ctxasr_ray.search.lm_fusion import Scope


@dataclass(frozen=True, kw_only=True, slots=True)
class EveryWord:
    """Scores every surviving row as soon as it has a complete word."""

    scope: Scope = "own_last_word"

    def wake(self, frame: int, shortest: int) -> Wake:
        """At the next new word of any row."""
        return Wake(at_word=True)

    def is_due(self, frame: int, fewest: int, shortest: int) -> bool:
        """Always: the search wakes for nothing else."""
        return True
