"""One entry of a phrase list, and what every format checks about its text and its score."""

import math
import re
from typing import Any, Final, NamedTuple

import numpy as np

LARGEST_SCORE: Final = float(np.finfo(np.float32).max)
"""Catalogues and CONTEXT hold scores as float32."""
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_CONTROL: Final = re.compile("[\0-\x1f\x7f-\x9f]")


class Entry(NamedTuple):
    """One phrase as a file writes it."""

    line: int
    """From 1; 0 in a JSON file of one value."""
    phrase: str
    """Raw; blank where the line is."""
    score: float | None = None
    """As the file gives it, finite as a float32; None where it gives none."""
    spellings: tuple[str, ...] = ()
    """Other ways in which a recogniser may write it."""


def refused(path: str, line: int, problem: str) -> ValueError:
    """The error of a line; of the whole file where `line` is 0."""
    where = f", line {line}" if line else ""
    return ValueError(f"phrase list '{path}'{where}: {problem}.")


def whole(path: str, line: int, text: str) -> str:
    """A phrase, a spelling or an utterance_id as it stands.

    Raises:
        ValueError: it holds a control character, which no phrase has but a file of another format, or half of a
            surrogate pair, which no file can be written with.
    """
    if control := _CONTROL.search(text):
        fits = ": phrase TAB score is --catalogue-format scored, or nemo, is21" if control[0] == "\t" else ""
        raise refused(path, line, f"{text!r:.60} holds the control character {control[0]!r}; write plain text{fits}")
    if not text.isascii() and _SURROGATE.search(text):
        raise refused(path, line, f"{text!r:.60} holds half of a surrogate pair; write whole characters")
    return text


def score(path: str, line: int, phrase: str, value: Any) -> float | None:
    """The score of a phrase, None where the file gives none.

    Args:
        path: Stands in messages.
        line: Stands in messages.
        phrase: Stands in messages.
        value: As the file gives it.

    Raises:
        ValueError: it is no number, or not finite as a float32.
    """
    if value is None:
        return None
    try:
        found = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not abs(found) <= LARGEST_SCORE:
        problem = f"score {value!r:.40} of {phrase!r:.60} is not a finite number up to {LARGEST_SCORE:.1e}"
        raise refused(path, line, f"{problem}; write a number such as 2.5, or none")
    return found
