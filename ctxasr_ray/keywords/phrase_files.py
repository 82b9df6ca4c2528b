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
{"utterance_id": ..., "phrases": [...]}. A line that another format explains better is refused with that format's name,
and so is a phrase with a control character. Lines end as on Unix, Windows or old Macs.
"""

import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Final

from ctxasr_ray.archive import AudioError, open_binary
from ctxasr_ray.keywords import phrase_json
from ctxasr_ray.keywords.phrase_entries import Entry, refused, score, whole

FORMATS: Final = ("lines", "scored", "nemo", "sherpa", "is21", "json")
_BY_EXTENSION: Final = {".txt": "lines", ".tsv": "scored", ".json": "json", ".jsonl": "json"}
_LISTS_BY_EXTENSION: Final = {".tsv": "is21", ".json": "json", ".jsonl": "json"}
_SHERPA_SCORE: Final = re.compile(r"(.*\S)\s+:(\S*)")
_SHERPA_SPOTTER: Final = re.compile(r"\s[#@]\S+|\u2581")
_LINE_END: Final = re.compile(b"\r\n?|\n")


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
        return list(phrase_json.global_list(path, _lines(text), text))
    if format == "is21":
        lists = _by_utterance(path, _is21_lists(text, path)).values()
        return list({entry[1:]: entry for entries in lists for entry in entries}.values())
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
    lists = _is21_lists(text, path) if format == "is21" else phrase_json.lists(path, _lines(text), text)
    return _by_utterance(path, lists)


def _by_utterance(path: str, lists: Iterator[tuple[int, str, list[Entry]]]) -> dict[str, list[Entry]]:
    found: dict[str, list[Entry]] = {}
    for line, utterance_id, entries in lists:
        if utterance_id in found:
            raise refused(path, line, f"utterance_id '{utterance_id}' stands twice; give each utterance one list")
        found[utterance_id] = entries
    return found


def _decoded(data: bytes, path: str) -> str:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise refused(path, 1, "is UTF-16; save it as UTF-8")
    if (at := data.find(b"\0")) >= 0:
        raise refused(path, _line_at(data, at), "a NUL byte, as in UTF-16 or in no text at all; save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        problem = f"byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8"
        raise refused(path, _line_at(data, error.start), problem) from error


def _line_at(data: bytes, place: int) -> int:
    return len(_LINE_END.findall(data, 0, place)) + 1


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines as Unix, Windows and old Macs end them."""
    yield from enumerate(text.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n").split("\n"), start=1)


def _plain(path: str, line: int, text: str) -> Entry:
    _no_sherpa_score(path, line, text)
    return Entry(line, whole(path, line, text))


def _no_sherpa_score(path: str, line: int, text: str) -> None:
    if _SHERPA_SCORE.fullmatch(text):
        raise refused(
            path, line, f"'{text}' ends like a score of sherpa; declare its format: --catalogue-format sherpa"
        )


def _scored(path: str, line: int, text: str) -> Entry:
    columns = text.split("\t")
    if len(columns) == 4:
        raise refused(path, line, "4 columns, expected phrase TAB score; a list per utterance is of format is21")
    if len(columns) != 2:
        raise refused(path, line, f"{len(columns)} column(s), expected phrase TAB score; plain lines are a .txt")
    return Entry(line, whole(path, line, columns[0]), score(path, line, columns[0], columns[1].strip()))


def _nemo(path: str, line: int, text: str) -> Entry:
    columns = text.split("\t")
    if len(columns) > 2:
        raise refused(path, line, f"{len(columns)} columns, expected phrase_spelling_spelling, perhaps TAB score")
    _no_sherpa_score(path, line, columns[0])
    phrase, *spellings = whole(path, line, columns[0]).split("_")
    if not phrase.strip():
        raise refused(path, line, f"'{columns[0]:.60}' has no phrase before its first underscore")
    weight = score(path, line, phrase, columns[1].strip()) if len(columns) == 2 else None
    return Entry(line, phrase, weight, tuple(s for s in spellings if s.strip()))


def _sherpa(path: str, line: int, text: str) -> Entry:
    if _SHERPA_SPOTTER.search(text):
        raise refused(
            path,
            line,
            "has #threshold, @name or \u2581 of sherpa's keyword spotter, whose phrases are tokens; write the text",
        )
    parts = _SHERPA_SCORE.fullmatch(whole(path, line, text).rstrip())
    return Entry(line, parts[1], score(path, line, parts[1], parts[2])) if parts else Entry(line, text)


def _is21_lists(text: str, path: str) -> Iterator[tuple[int, str, list[Entry]]]:
    for number, line in _lines(text):
        if not line.strip():
            continue
        columns = line.split("\t")
        if len(columns) != 4:
            raise refused(path, number, f"{len(columns)} column(s), expected 4: id, reference, rare words, whole list")
        phrases = phrase_json.parsed(path, number, columns[3])
        if not isinstance(phrases, list):
            raise refused(path, number, "the fourth column is no JSON list of phrases")
        yield number, columns[0], [phrase_json.entry(path, number, phrase) for phrase in phrases]
