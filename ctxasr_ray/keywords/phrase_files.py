"""Phrase lists as people keep them -> entries with file and line; nothing is guessed.

| format | extension | one entry |
|---|---|---|
| lines | .txt | a phrase per line |
| scored | .tsv | phrase, TAB, score (also NeMo's word boosting) |
| nemo | declared | phrase_spelling_spelling, perhaps TAB and score (NeMo's context biasing) |
| sherpa | declared | phrase, perhaps a space and :score |
| is21 | .tsv of lists | id, TAB, reference, TAB, JSON list of rare words, TAB, JSON list with distractors |
| json | .json, .jsonl | a string, or {"phrase": ..., "score": ..., "spellings": [...]}; or one object phrase -> score |

A list per utterance is an `is21` file, a JSON object utterance_id -> phrases, or JSON lines
{"utterance_id": ..., "phrases": [...]}. A line that another format explains better is refused with that format's name.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, Final, NamedTuple

from ctxasr_ray.archive import AudioError, open_binary

FORMATS: Final = ("lines", "scored", "nemo", "sherpa", "is21", "json")
_BY_EXTENSION: Final = {".txt": "lines", ".tsv": "scored", ".json": "json", ".jsonl": "json"}
_LISTS_BY_EXTENSION: Final = {".tsv": "is21", ".json": "json", ".jsonl": "json"}
_SHERPA_SCORE: Final = re.compile(r"(.*\S)\s+:(\S*)")
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_SHERPA_SPOTTER: Final = re.compile(r"\s[#@]\S+")


class Entry(NamedTuple):
    """One phrase as a file writes it."""

    line: int
    """From 1; 0 in a JSON file of one value."""
    phrase: str
    """Raw; blank where the line is."""
    score: float | None = None
    """As the file gives it, finite; None where it gives none."""
    spellings: tuple[str, ...] = ()
    """Other ways in which a recogniser may write it."""


def read_bytes(path: str) -> bytes:
    """The file as it lies, from a local path or a URL.

    Raises:
        ValueError: no such file.
    """
    try:
        with open_binary(path) as stream:
            return stream.read()
    except AudioError as error:
        raise ValueError(f"phrase list '{path}': {error.reason}") from error


def format_of(path: str, declared: str | None, *, lists: bool = False) -> str:
    """The declared format, or the one that the extension tells.

    Args:
        path: Its extension decides where nothing is declared.
        declared: One of `FORMATS`, or None.
        lists: The file holds a list per utterance.

    Raises:
        ValueError: an unknown format, an extension that tells nothing, or a format without lists per utterance.
    """
    if declared is not None:
        if declared not in FORMATS:
            raise ValueError(f"phrase list '{path}': format '{declared}' is unknown; choose {', '.join(FORMATS)}.")
        if lists and declared not in ("is21", "json"):
            raise ValueError(f"phrase list '{path}': format '{declared}' has one list; per utterance: is21 or json.")
        return declared
    extension = PurePosixPath(path).suffix.lower()
    known = _LISTS_BY_EXTENSION if lists else _BY_EXTENSION
    if extension not in known:
        told = ", ".join(f"{name} is {kind}" for name, kind in known.items())
        raise ValueError(
            f"phrase list '{path}': its extension tells no format ({told}). Declare one of {', '.join(FORMATS)}."
        )
    return known[extension]


def read_entries(data: bytes, path: str, format: str) -> list[Entry]:
    """The entries of one global list, in the order of the file; blank lines are entries without a phrase.

    Args:
        data: From `read_bytes`.
        path: Stands in messages.
        format: One of `FORMATS`; of an `is21` file the union of the last columns.

    Raises:
        ValueError: not UTF-8, a line that the format does not allow, or a score that is no finite number; names
            file, line and remedy.
    """
    text = _decoded(data, path)
    if format == "json":
        return list(_json_entries(text, path))
    if format == "is21":
        lists = _is21_lists(text, path).values()
        return list({entry.phrase: entry for entries in lists for entry in entries}.values())
    parse = {"lines": _plain, "scored": _scored, "nemo": _nemo, "sherpa": _sherpa}[format]
    return [parse(path, number, line) if line.strip() else Entry(number, "") for number, line in _lines(text)]


def read_lists(data: bytes, path: str, format: str) -> dict[str, list[Entry]]:
    """The entries of each utterance's own list.

    Args:
        data: From `read_bytes`.
        path: Stands in messages.
        format: `is21` or `json`.

    Raises:
        ValueError: as `read_entries`, or an utterance_id that stands twice.
    """
    text = _decoded(data, path)
    if format == "is21":
        return _is21_lists(text, path)
    lists: dict[str, list[Entry]] = {}
    for line, utterance_id, phrases in _json_lists(text, path):
        if utterance_id in lists:
            raise _refused(path, line, f"utterance_id '{utterance_id}' stands twice; give each utterance one list")
        lists[utterance_id] = [_json_entry(path, line, phrase) for phrase in phrases]
    return lists


def _refused(path: str, line: int, problem: str) -> ValueError:
    where = f", line {line}" if line else ""
    return ValueError(f"phrase list '{path}'{where}: {problem}.")


def _decoded(data: bytes, path: str) -> str:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise _refused(path, 1, "is UTF-16; save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise _refused(path, line, f"byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8") from error


def _lines(text: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(text.removesuffix("\n").split("\n"), start=1):
        yield number, line.removesuffix("\r")


def _finite(path: str, line: int, value: Any) -> float | None:
    if value is None:
        return None
    try:
        score = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        score = math.nan
    if not math.isfinite(score):
        raise _refused(path, line, f"score {value!r} is not a finite number; write a number such as 2.5, or none")
    return score


def _plain(path: str, line: int, text: str) -> Entry:
    if "\t" in text:
        raise _refused(
            path,
            line,
            "a TAB in a list of plain phrases; declare its format: --catalogue-format scored (or nemo, is21)",
        )
    if _SHERPA_SCORE.fullmatch(text):
        raise _refused(
            path, line, f"'{text}' ends like a score of sherpa; declare its format: --catalogue-format sherpa"
        )
    return Entry(line, text)


def _scored(path: str, line: int, text: str) -> Entry:
    columns = text.split("\t")
    if len(columns) == 4:
        raise _refused(path, line, "4 columns, expected phrase TAB score; a list per utterance is of format is21")
    if len(columns) != 2:
        raise _refused(path, line, f"{len(columns)} column(s), expected phrase TAB score; plain lines are a .txt")
    return Entry(line, columns[0], _finite(path, line, columns[1].strip()))


def _nemo(path: str, line: int, text: str) -> Entry:
    columns = text.split("\t")
    if len(columns) > 2:
        raise _refused(path, line, f"{len(columns)} columns, expected phrase_spelling_spelling, perhaps TAB score")
    phrase, *spellings = columns[0].split("_")
    score = _finite(path, line, columns[1].strip()) if len(columns) == 2 else None
    return Entry(line, phrase, score, tuple(s for s in spellings if s.strip()))


def _sherpa(path: str, line: int, text: str) -> Entry:
    if _SHERPA_SPOTTER.search(text):
        raise _refused(
            path, line, "has #threshold or @name of sherpa's keyword spotter, whose phrases are tokens; write the text"
        )
    parts = _SHERPA_SCORE.fullmatch(text.rstrip())
    return Entry(line, parts[1], _finite(path, line, parts[2])) if parts else Entry(line, text)


def _is21_lists(text: str, path: str) -> dict[str, list[Entry]]:
    lists: dict[str, list[Entry]] = {}
    for number, line in _lines(text):
        if not line.strip():
            continue
        columns = line.split("\t")
        if len(columns) != 4:
            raise _refused(path, number, f"{len(columns)} column(s), expected 4: id, reference, rare words, whole list")
        phrases = _json(path, number, columns[3])
        if not isinstance(phrases, list):
            raise _refused(path, number, "the fourth column is no JSON list of phrases")
        if columns[0] in lists:
            raise _refused(path, number, f"utterance_id '{columns[0]}' stands twice; give each utterance one list")
        lists[columns[0]] = [_json_entry(path, number, phrase) for phrase in phrases]
    return lists


def _json(path: str, line: int, text: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        at = line or getattr(error, "lineno", 0)
        raise _refused(path, at, f"is no JSON: {error}") from error


def _json_entry(path: str, line: int, value: Any) -> Entry:
    if isinstance(value, str):
        if not value.isascii() and _SURROGATE.search(value):
            raise _refused(path, line, f"{value!r:.60} holds half of a surrogate pair; write whole characters")
        return Entry(line, value)
    if isinstance(value, Mapping) and isinstance(value.get("phrase"), str):
        extra = sorted(set(value) - {"phrase", "score", "spellings"})
        if extra:
            raise _refused(path, line, f"unknown keys {extra} in an entry; expected phrase, score, spellings")
        score = _finite(path, line, value.get("score"))
        return _json_entry(path, line, value["phrase"])._replace(score=score, spellings=_spellings(path, line, value))
    raise _refused(path, line, f'{value!r:.60} is no phrase; expected a string or {{"phrase": ..., "score": ...}}')


def _spellings(path: str, line: int, value: Mapping[str, Any]) -> tuple[str, ...]:
    spellings = value.get("spellings") or []
    if not isinstance(spellings, list) or not all(isinstance(spelling, str) for spelling in spellings):
        raise _refused(path, line, f"spellings of '{value['phrase']}' are no list of strings")
    return tuple(spellings)


def _json_entries(text: str, path: str) -> Iterator[Entry]:
    if PurePosixPath(path).suffix.lower() == ".jsonl":
        for number, line in _lines(text):
            yield _json_entry(path, number, _json(path, number, line)) if line.strip() else Entry(number, "")
        return
    value = _json(path, 0, text)
    if isinstance(value, Mapping):
        if any(isinstance(score, (list, Mapping)) for score in value.values()):
            raise _refused(path, 0, "holds a list per key: that is one list per utterance, not one global list")
        yield from (Entry(0, phrase, _finite(path, 0, score)) for phrase, score in value.items())
    elif isinstance(value, list):
        yield from (_json_entry(path, 0, entry) for entry in value)
    else:
        raise _refused(path, 0, "expected a list of phrases, or an object phrase -> score")


def _json_lists(text: str, path: str) -> Iterator[tuple[int, str, Sequence[Any]]]:
    if PurePosixPath(path).suffix.lower() == ".jsonl":
        rows = [(n, _json(path, n, line)) for n, line in _lines(text) if line.strip()]
        for number, row in rows:
            if not isinstance(row, Mapping) or not isinstance(row.get("utterance_id"), str):
                raise _refused(path, number, 'expected {"utterance_id": ..., "phrases": [...]}')
            yield number, row["utterance_id"], _list(path, number, row.get("phrases"))
        return
    value = _json(path, 0, text)
    if not isinstance(value, Mapping):
        raise _refused(path, 0, "expected an object utterance_id -> list of phrases; a global list is a catalogue")
    for utterance_id, phrases in value.items():
        yield 0, utterance_id, _list(path, 0, phrases)


def _list(path: str, line: int, phrases: Any) -> Sequence[Any]:
    if not isinstance(phrases, list):
        raise _refused(path, line, f"{phrases!r:.60} is no list of phrases")
    return phrases
