"""Reference and hypothesis files -> utterances, joined by id and never by line number.

| format | references | hypotheses |
|---|---|---|
| is21 | `id TAB text TAB JSON list of rare words [TAB JSON list of all phrases]` | `id [TAB text]` |
| kaldi | `id words`; `utt2spk` beside it is read where it is there | `id words` |
| trn | `words (speaker-utterance)` | the same |
| stm | stm segments | ctm words, put into the segment that holds their middle |
| nemo | JSON lines with `text` and `utterance_id` or `audio_filepath` | JSON lines with `pred_text`, else `text` |
| tsv | `id TAB text`, or columns named in a first line that starts with `utterance_id` | the same |

Files are UTF-8; a BOM and CRLF are read over. An id that stands twice, a line that cannot be read and a number that is
nan are refused with file and line. "nan" as a word is a word.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

from ctxasr_ray.corpora.lines import ManifestError, read_lines, refuse_duplicates
from ctxasr_ray.metrics.spoken import Spoken, plain_words
from ctxasr_ray.metrics.timed_files import read_ctm, read_stm

Numbered = Iterator[tuple[int, Spoken]]


def read_references(path: str | Path, form: str) -> list[Spoken]:
    """The utterances of a reference file, in its order.

    Args:
        path: Local path or URL.
        form: One of `FORMATS`.

    Raises:
        ValueError: an unknown format, or a file that cannot be taken as it is, naming file, line and remedy.
    """
    return _unique(path, _reader(form)(path, True))


def read_hypotheses(path: str | Path, form: str, references: Sequence[Spoken]) -> dict[str, str]:
    """Utterance id -> text of a hypothesis file.

    Args:
        path: Local path or URL.
        form: One of `FORMATS`.
        references: Of the same format; their segments place the words of a ctm.

    Raises:
        ValueError: as `read_references`.
    """
    if form == "stm":
        return read_ctm(path, references)
    return {spoken.utterance_id: spoken.text or "" for spoken in _unique(path, _reader(form)(path, False))}


def _unique(path: str | Path, found: Numbered) -> list[Spoken]:
    numbered = list(found)
    refuse_duplicates(path, ((line, spoken.utterance_id) for line, spoken in numbered))
    return [spoken for _, spoken in numbered]


def _speaker_and_chapter(utterance_id: str) -> tuple[str | None, str | None]:
    """LibriSpeech ids are speaker-chapter-number; other ids say nothing."""
    match = re.fullmatch(r"(\d+)-(\d+)-\d+", utterance_id)
    return (match[1], f"{match[1]}-{match[2]}") if match else (None, None)


def _read_is21(path: str | Path, is_reference: bool) -> Numbered:
    expected = (3, 4) if is_reference else (1, 2)
    for number, line in read_lines(path):
        cells = line.split("\t")
        if len(cells) not in expected:
            shape = "id, text, rare words[, all phrases]" if is_reference else "id[, text]"
            raise ManifestError(path, f"got {len(cells)} columns, expected {shape}, with tabs between", number)
        text = cells[1] if len(cells) > 1 else ""
        keywords = _string_list(path, number, cells[2]) if is_reference else None
        speaker, chapter = _speaker_and_chapter(cells[0])
        yield (
            number,
            Spoken(utterance_id=cells[0], text=text, speaker_id=speaker, session_id=chapter, keywords=keywords),
        )


def _string_list(path: str | Path, number: int, cell: str) -> list[str]:
    try:
        found = json.loads(cell)
    except ValueError as error:
        raise ManifestError(path, f'broken JSON: {error}; expected a list such as ["word"]', number, 3) from error
    if not isinstance(found, list) or not all(isinstance(word, str) for word in found):
        raise ManifestError(path, f'got {cell[:40]}, expected a JSON list of strings such as ["word"]', number, 3)
    return found


def _read_kaldi(path: str | Path, is_reference: bool) -> Numbered:
    speakers: dict[str, str] = {}
    beside = Path(path).parent / "utt2spk"
    if is_reference and beside.is_file():
        for number, line in read_lines(beside):
            cells = line.split()
            if len(cells) != 2:
                raise ManifestError(beside, f"got {len(cells)} words, expected an utterance and a speaker", number)
            speakers[cells[0]] = cells[1]
    for number, line in read_lines(path):
        utterance_id, *text = line.split(maxsplit=1)
        yield number, Spoken(utterance_id=utterance_id, text="".join(text), speaker_id=speakers.get(utterance_id))


_TRN: Final = re.compile(r"(.*)\(([^()\s]+)\)\s*")


def _read_trn(path: str | Path, is_reference: bool) -> Numbered:
    for number, line in read_lines(path):
        match = _TRN.fullmatch(line)
        if match is None:
            raise ManifestError(path, "does not end with an id in parentheses; expected 'words (speaker-1)'", number)
        speaker, *rest = re.split("[-_]", match[2], maxsplit=1)
        yield (
            number,
            Spoken(
                utterance_id=match[2], text=plain_words(path, number, match[1]), speaker_id=speaker if rest else None
            ),
        )


def _read_nemo(path: str | Path, is_reference: bool) -> Numbered:
    rows = [(number, _json_object(path, number, line)) for number, line in read_lines(path)]
    key = "text" if is_reference or not any("pred_text" in row for _, row in rows) else "pred_text"
    for number, row in rows:
        text = row.get(key)
        if text is None and not is_reference:
            raise ManifestError(path, 'is missing; an empty hypothesis is ""', number, key)
        if text is not None and not isinstance(text, str):
            raise ManifestError(path, f"got {json.dumps(text)[:40]}, expected a string", number, key)
        audio, offset = row.get("audio_filepath"), row.get("offset")
        utterance_id = row.get("utterance_id", f"{audio}@{offset}" if audio and offset else audio)
        if not isinstance(utterance_id, str) or not utterance_id:
            raise ManifestError(path, "names no utterance; expected utterance_id or audio_filepath", number)
        keywords = row.get("keywords")
        yield (
            number,
            Spoken(
                utterance_id=utterance_id,
                text=text,
                speaker_id=_label(row, "speaker_id") or _label(row, "speaker"),
                session_id=_label(row, "session_id"),
                keywords=None if keywords is None else _string_list(path, number, json.dumps(keywords)),
                attributes={name: str(value) for name, value in row.items() if isinstance(value, str | int | float)},
            ),
        )


def _label(row: Mapping[str, Any], name: str) -> str | None:
    return None if row.get(name) is None else str(row[name])


def _json_object(path: str | Path, number: int, line: str) -> dict[str, Any]:
    def refuse(constant: str) -> NoReturn:
        raise ManifestError(path, f"{constant} is no JSON; leave the key out where the value is unknown", number)

    try:
        row = json.loads(line, parse_constant=refuse)
        json.dumps(row, ensure_ascii=False).encode()
    except ManifestError:
        raise
    except (ValueError, RecursionError) as error:
        raise ManifestError(path, f"broken JSON: {error}; write one object per line", number) from error
    if not isinstance(row, dict):
        raise ManifestError(path, f"got a {type(row).__name__}, expected one object per line", number)
    return row


def _read_tsv(path: str | Path, is_reference: bool) -> Numbered:
    names: list[str] | None = None
    for number, line in read_lines(path):
        cells = line.split("\t")
        if names is None:
            if cells[0] == "utterance_id":
                names = ["text" if name in ("reference", "hypothesis") else name for name in cells]
                if "text" not in names or len(set(names)) < len(names):
                    raise ManifestError(path, f"got columns {cells}, expected utterance_id and one text", number)
                continue
            names = ["utterance_id", "text"]
        is_empty = len(cells) == 1 and not is_reference and not any(c.isspace() for c in line.strip())
        if len(cells) != len(names) and not is_empty:
            problem = f"got {len(cells)} columns, expected {len(names)} ({', '.join(names)}), with tabs between"
            raise ManifestError(path, problem, number)
        row = dict(zip(names, cells, strict=False))
        yield (
            number,
            Spoken(
                utterance_id=row["utterance_id"],
                text=row.get("text", ""),
                speaker_id=row.get("speaker_id"),
                session_id=row.get("session_id"),
                keywords=_string_list(path, number, row["keywords"]) if "keywords" in row else None,
                attributes={name: cell for name, cell in row.items() if name not in ("utterance_id", "text")},
            ),
        )


_READERS: Final[Mapping[str, Callable[[str | Path, bool], Numbered]]] = {
    "is21": _read_is21,
    "kaldi": _read_kaldi,
    "trn": _read_trn,
    "stm": read_stm,
    "nemo": _read_nemo,
    "tsv": _read_tsv,
}
FORMATS: Final = tuple(_READERS)


def _reader(form: str) -> Callable[[str | Path, bool], Numbered]:
    if form not in _READERS:
        raise ValueError(f"format '{form}' is unknown; choose one of {', '.join(FORMATS)}.")
    return _READERS[form]
