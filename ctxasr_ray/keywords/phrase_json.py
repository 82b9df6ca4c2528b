"""JSON and JSON lines -> entries of one global list, or of a list per utterance."""

import json
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any, Final

from ctxasr_ray.keywords.phrase_entries import Entry, refused, score, whole

_DIGITS: Final = 300
"""Integers of more are read as float64; no score is so large."""


class _Object(dict[str, Any]):
    """A JSON object that remembers a key which stands twice."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.pairs = pairs


def _integer(digits: str) -> float:
    return int(digits) if len(digits) < _DIGITS else float(digits)


def parsed(path: str, line: int, text: str) -> Any:
    """The value that a file or one of its lines holds.

    Raises:
        ValueError: it is no JSON.
    """
    try:
        return json.loads(text, object_pairs_hook=_Object, parse_int=_integer)
    except (json.JSONDecodeError, RecursionError) as error:
        at = line or getattr(error, "lineno", 0)
        raise refused(path, at, f"is no JSON: {error}") from error


def entry(path: str, line: int, value: Any) -> Entry:
    """A string, or an object with phrase, score and spellings.

    Raises:
        ValueError: neither, unknown keys, or text or score that no phrase has.
    """
    if isinstance(value, str):
        return Entry(line, whole(path, line, value))
    if isinstance(value, _Object) and isinstance(phrase := value.get("phrase"), str):
        extra = sorted(set(value) - {"phrase", "score", "spellings"})
        if extra:
            raise refused(path, line, f"unknown keys {extra} in an entry; expected phrase, score, spellings")
        if len(value) < len(value.pairs):
            raise refused(path, line, f"a key of the entry of {phrase!r:.60} stands twice; give each once")
        weight = score(path, line, phrase, value.get("score"))
        return Entry(line, whole(path, line, phrase), weight, _spellings(path, line, value))
    raise refused(path, line, f'{value!r:.60} is no phrase; expected a string or {{"phrase": ..., "score": ...}}')


def _spellings(path: str, line: int, value: Mapping[str, Any]) -> tuple[str, ...]:
    spellings = value.get("spellings") or []
    if not isinstance(spellings, list) or not all(isinstance(spelling, str) for spelling in spellings):
        raise refused(path, line, f"spellings of '{value['phrase']}' are no list of strings")
    return tuple(whole(path, line, spelling) for spelling in spellings)


def global_list(path: str, lines: Iterator[tuple[int, str]], text: str) -> Iterator[Entry]:
    """The entries of one global list; a phrase that stands twice gives two.

    Args:
        path: `.jsonl` is read line by line.
        lines: Number and text of each line.
        text: The whole file.

    Raises:
        ValueError: as `parsed` and `entry`, or a list per utterance.
    """
    if _has_lines(path):
        for number, line in lines:
            yield entry(path, number, parsed(path, number, line)) if line.strip() else Entry(number, "")
        return
    value = parsed(path, 0, text)
    if isinstance(value, _Object):
        if any(isinstance(weight, (list, Mapping)) for weight in value.values()):
            raise refused(path, 0, "holds a list per key: that is one list per utterance, not one global list")
        for phrase, weight in value.pairs:
            yield Entry(0, whole(path, 0, phrase), score(path, 0, phrase, weight))
    elif isinstance(value, list):
        yield from (entry(path, 0, each) for each in value)
    else:
        raise refused(path, 0, "expected a list of phrases, or an object phrase -> score")


def lists(path: str, lines: Iterator[tuple[int, str]], text: str) -> Iterator[tuple[int, str, list[Entry]]]:
    """Line, utterance_id and entries of each list, in the order of the file.

    Args:
        path: `.jsonl` is read line by line.
        lines: Number and text of each line.
        text: The whole file.

    Raises:
        ValueError: as `parsed` and `entry`, or no lists per utterance.
    """
    for number, utterance_id, phrases in _json_lists(path, lines, text):
        if not isinstance(phrases, list):
            raise refused(path, number, f"{phrases!r:.60} is no list of phrases")
        yield number, whole(path, number, utterance_id), [entry(path, number, phrase) for phrase in phrases]


def _json_lists(path: str, lines: Iterator[tuple[int, str]], text: str) -> Iterator[tuple[int, str, Any]]:
    if _has_lines(path):
        for number, line in lines:
            if not line.strip():
                continue
            row = parsed(path, number, line)
            if not isinstance(row, Mapping) or not isinstance(row.get("utterance_id"), str):
                raise refused(path, number, 'expected {"utterance_id": ..., "phrases": [...]}')
            yield number, row["utterance_id"], row.get("phrases")
        return
    value = parsed(path, 0, text)
    if not isinstance(value, _Object):
        raise refused(path, 0, "expected an object utterance_id -> list of phrases; a global list is a catalogue")
    yield from ((0, utterance_id, phrases) for utterance_id, phrases in value.pairs)


def _has_lines(path: str) -> bool:
    return PurePosixPath(path).suffix.lower() == ".jsonl"
