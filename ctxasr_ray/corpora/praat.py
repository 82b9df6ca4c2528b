"""TextGrid files of Praat, long or short, read as the tiers of intervals that they hold.

Both forms are one stream of quoted strings, free-standing numbers and flags; everything between them is decoration.

Reference:
    Praat manual, "TextGrid file formats", https://www.fon.hum.uva.nl/praat/manual/TextGrid_file_formats.html
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ctxasr_ray.corpora.lines import ManifestError

_TOKEN: Final = re.compile(
    r'"(?P<string>(?:[^"]|"")*)"'
    r"|(?<!\S)(?P<number>[-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?)(?!\S)"
    r"|<(?P<flag>exists|absent)>"
    r"|(?<!\S)![^\n]*"
    r'|(?P<open>")'
)
_TOLERANCE_S: Final = 1e-6
"""What neighbours may overlap by: their common boundary, written with different digits."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A stretch of a tier with its label."""

    start_s: float
    end_s: float
    text: str
    """As it stands, tags included; empty where nothing is said."""
    line: int
    """Of the label, from 1."""


@dataclass(frozen=True, slots=True)
class Tier:
    """A tier of intervals, in the order of their times."""

    name: str
    intervals: tuple[Interval, ...]


def read_tiers(path: Path) -> list[Tier]:
    """Reads all tiers of a file.

    Args:
        path: In the long or the short text form; UTF-8, or UTF-16 with a BOM, as Praat writes it.

    Returns:
        The tiers in the order of the file.

    Raises:
        ManifestError: not a TextGrid, cut short, without a tier, with a tier of points, with a count that is no whole
            number, or with intervals that overlap within their tier or start below 0; names file, line and remedy.
    """
    tokens = _Tokens(path, _text(path))
    kind = tokens.string(), tokens.string()
    if kind[1] != "TextGrid":
        raise ManifestError(path, f"is a '{kind[1]}', expected a TextGrid; save the TextGrid as a text file")
    tokens.number(), tokens.number()
    if tokens.take("flag") == "absent":
        raise ManifestError(path, "has no tiers; transcribe it, or move the file away")
    return [_tier(path, tokens) for _ in range(tokens.count("tiers"))]


def _tier(path: Path, tokens: "_Tokens") -> Tier:
    kind, name = tokens.string(), tokens.string()
    if kind != "IntervalTier":
        problem = f"tier '{name}' is a {kind}, which says when and not from when to when; remove the tier"
        raise ManifestError(path, problem, tokens.line)
    tokens.number(), tokens.number()
    intervals: list[Interval] = []
    for _ in range(tokens.count("intervals")):
        start_s, end_s, label = tokens.number(), tokens.number(), tokens.string()
        found = Interval(start_s, end_s, label.strip(), tokens.line)
        if found.start_s < 0:
            raise ManifestError(path, f"the interval starts at {start_s} s, expected 0 or more", found.line)
        if found.end_s <= found.start_s:
            raise ManifestError(path, f"the interval ends at {end_s} s, before or where it starts", found.line)
        if intervals and found.start_s < intervals[-1].end_s - _TOLERANCE_S:
            raise ManifestError(
                path,
                f"the interval starts at {start_s} s, before the one in line {intervals[-1].line} ends "
                f"({intervals[-1].end_s} s); give each speaker a tier",
                found.line,
            )
        intervals.append(found)
    return Tier(name, tuple(intervals))


def _text(path: Path) -> str:
    data = path.read_bytes()
    encoding = "utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise ManifestError(path, f"is no {encoding} text: {error}; save it in Praat as a text file") from error


class _Tokens:
    """The strings, numbers and flags of a file, taken one after the other."""

    def __init__(self, path: Path, text: str) -> None:
        self._path, self._text = path, text
        self._left: Iterator[re.Match[str]] = (m for m in _TOKEN.finditer(text) if m.lastgroup)
        self.line = 1
        self._counted = 0

    def take(self, kind: str) -> str:
        token = next(self._left, None)
        if token is None:
            raise ManifestError(self._path, f"ends where a {kind} was expected; copy it again", self.line)
        self.line += self._text.count("\n", self._counted, token.start())
        self._counted = token.start()
        if token.lastgroup != kind:
            got = "a quotation mark that is never closed" if token.lastgroup == "open" else token.group()
            raise ManifestError(self._path, f"got {got[:60]}, expected a {kind} of a TextGrid", self.line)
        return str(token.group(kind))

    def string(self) -> str:
        return self.take("string").replace('""', '"')

    def number(self) -> float:
        return float(self.take("number"))

    def count(self, what: str) -> int:
        digits = self.take("number")
        if not digits.isdecimal():
            raise ManifestError(
                self._path, f"says that it has {digits[:40]} {what}, expected a whole number", self.line
            )
        return int(digits)
