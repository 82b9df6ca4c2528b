"""What a training leaves out, in words: nothing is dropped in silence, nothing is measured on nothing."""

from collections.abc import Mapping, Sized
from typing import Final

SHOWN: Final = 3
"""Examples that are named."""


def in_words(left_out: Mapping[str, str]) -> str:
    """Says how many examples are left out, and of the first ones why."""
    if not left_out:
        return "nothing was left out"
    first = "; ".join(f"{name}: {why}" for name, why in list(left_out.items())[:SHOWN])
    return f"{len(left_out)} left out ({first}{'; ...' if len(left_out) > SHOWN else ''})"


def refuse_nothing(kept: Sized, what: str, left_out: Mapping[str, str], remedy: str) -> None:
    """Refuses a part of which nothing is left.

    Args:
        kept: What can be used.
        what: The part and where it is from, for example "recording of split 'dev' in corpus.jsonl".
        left_out: Example -> why it cannot be used.
        remedy: What to do.

    Raises:
        ValueError: nothing is kept; says why.
    """
    if not len(kept):
        raise ValueError(f"training: no {what} can be used: {in_words(left_out)}; {remedy}.")
