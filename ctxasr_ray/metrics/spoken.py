"""One utterance of a reference or hypothesis file, and what its text may hold."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ctxasr_ray.corpora.lines import ManifestError


@dataclass(frozen=True, kw_only=True, slots=True)
class Spoken:
    """One utterance of a file."""

    utterance_id: str
    text: str | None
    """None: the reference is unknown."""
    speaker_id: str | None = None
    session_id: str | None = None
    keywords: Sequence[str] | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)
    segment: tuple[str, float, float] | None = None
    """stm only: file and channel, start and end in seconds."""


_MARKUP: Final = re.compile(r"(?:^|\s)(\{(?=\s)|\([^()\s]*\)|@)(?=\s|$)")


def plain_words(path: str | Path, number: int, text: str) -> str:
    """The words of a transcript without sclite's markup, whose scoring is not one edit distance.

    Raises:
        ManifestError: it holds alternatives or optional words.
    """
    found = _MARKUP.search(text)
    if found:
        problem = (
            f"'{found[1]}' is sclite markup (alternatives, optional words), which is not scored; write plain words"
        )
        raise ManifestError(path, problem, number)
    return text.strip()
