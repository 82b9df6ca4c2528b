"""A folder of recordings with a TSV, or with one .txt beside each -> UTTERANCES."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from ctxasr_ray import schema
from ctxasr_ray.corpora.lines import (
    ManifestError,
    corpus_name,
    folder_of,
    read_lines,
    refuse_corpus_name,
    refuse_duplicates,
    resolve,
)

EXTENSIONS: Final = frozenset(
    {".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".aiff", ".aif", ".au", ".sph", ".w64", ".caf"}
)
"""What counts as a recording in a folder without a TSV."""
AUDIO_FOLDERS: Final = ("", "audio", "clips", "wavs", "wav")
"""Where beside a TSV its recordings may lie."""

_NAMES: Final[Mapping[str, str]] = {
    **dict.fromkeys(("audio_filepath", "audio", "path", "file", "file_name", "filename"), "audio_uri"),
    **dict.fromkeys(("text", "sentence", "transcript", "transcription"), "reference"),
    **dict.fromkeys(("speaker", "client_id"), "speaker_id"),
    **dict.fromkeys(("lang", "locale"), "language"),
    **dict.fromkeys(("offset", "start"), "start_s"),
    "duration": "duration_s",
    "id": "utterance_id",
}
"""Column of a TSV -> column of UTTERANCES; names of UTTERANCES themselves are taken as they are."""
_NOT_TRANSCRIPTS: Final = frozenset({"readme", "license", "licence", "copying", "changelog", "notice"})


def read(path: str | Path, corpus: str | None = None) -> pa.Table:
    """Reads a folder, or the TSV in it.

    Args:
        path: The folder, or a TSV file. In a folder without a TSV each recording, at any depth, takes the `.txt`
            of the same name beside it as reference; without one its reference is unknown.
        corpus: Name of the corpus; by default the folder's.

    Returns:
        UTTERANCES, in the order of the TSV or of the sorted paths. The split is the TSV's column, or the first
        folder below `path` where that is called train, dev or test, or test.

    Raises:
        ManifestError: no recording, several TSV files, two recordings of one name, a text without its recording,
            or a TSV that is empty, not UTF-8, or has a line with a wrong number of columns or a wrong value.
    """
    path = Path(path)
    if path.is_file():
        return _read_tsv(path, corpus or corpus_name(path))
    tables = sorted(path.glob("*.tsv"))
    if len(tables) > 1:
        raise ManifestError(path, f"holds {len(tables)} TSV files ({tables[0].name}, {tables[1].name}, ...); name one")
    name = corpus or corpus_name(path.absolute() / "manifest")
    return _read_tsv(tables[0], name) if tables else _read_texts(path, name)


def _read_texts(folder: Path, corpus: str) -> pa.Table:
    files = sorted(p for p in folder.absolute().rglob("*") if p.is_file())
    recordings = [p for p in files if p.suffix.lower() in EXTENSIONS]
    if not recordings:
        raise ManifestError(
            folder, f"holds no recording ({', '.join(sorted(EXTENSIONS))}); name a folder of audio, a .tsv or a .jsonl"
        )
    stems = {p.with_suffix("") for p in recordings}
    orphans = [
        p
        for p in files
        if p.suffix.lower() == ".txt" and p.with_suffix("") not in stems and p.stem.lower() not in _NOT_TRANSCRIPTS
    ]
    if orphans:
        raise ManifestError(
            orphans[0], "has no recording of that name beside it; add the recording or move the text away"
        )
    rows = []
    for recording in recordings:
        relative = recording.relative_to(folder.absolute())
        text = recording.with_suffix(".txt")
        rows.append(
            {
                "utterance_id": relative.with_suffix("").as_posix(),
                "corpus": corpus,
                "split": relative.parts[0] if relative.parts[0] in schema.SPLITS else "test",
                "recording_id": relative.as_posix(),
                "audio_uri": str(recording),
                "start_s": 0.0,
                "reference": _text(text) if text.exists() else None,
            }
        )
    twice: dict[str, str] = {}
    for row in rows:
        other = twice.setdefault(str(row["utterance_id"]), str(row["recording_id"]))
        if other != row["recording_id"]:
            raise ManifestError(folder, f"'{other}' and '{row['recording_id']}' have one name; rename one of them")
    return schema.conform(pa.Table.from_pylist(rows, schema=schema.UTTERANCES), "utterances")


def _text(path: Path) -> str:
    if not path.read_bytes().strip():
        return ""  # a recording in which nothing is said
    return " ".join(line.strip() for _, line in read_lines(path))


def _read_tsv(path: Path, corpus: str) -> pa.Table:
    lines = list(read_lines(path))
    columns, body = _header(path, lines)
    folder = folder_of(path)
    rows = []
    for number, line in body:
        cells = line.split("\t")
        if len(cells) != len(columns):
            problem = (
                f"got {len(cells)} columns, expected {len(columns)} ({', '.join(columns)}), separated by one tab each"
            )
            raise ManifestError(path, problem, number, min(len(cells), len(columns)) + 1)
        rows.append(table_row(path, number, dict(zip(columns, cells, strict=True)), folder, corpus))
    refuse_duplicates(path, ((number, str(row["utterance_id"])) for (number, _), row in zip(body, rows, strict=True)))
    return schema.conform(pa.Table.from_pylist(rows, schema=schema.UTTERANCES), "utterances")


def _header(path: Path, lines: list[tuple[int, str]]) -> tuple[list[str], list[tuple[int, str]]]:
    """Gives the columns and the lines below them; a file without a header has two columns, recording and text."""
    number, first = lines[0]
    names = [_NAMES.get(cell.strip(), cell.strip()) for cell in first.split("\t")]
    if "audio_uri" not in names:
        if Path(first.split("\t")[0]).suffix.lower() in EXTENSIONS and len(names) <= 2:
            return ["audio_uri", "reference"], lines
        problem = f"no column for the recording in {names}; name one audio_filepath, or write: recording, tab, text"
        raise ManifestError(path, problem, number, 1)
    for place, name in enumerate(names):
        if name in names[:place] or not name:
            raise ManifestError(path, f"column '{name}' stands twice or has no name; rename it", number, place + 1)
    if len(lines) == 1:
        raise ManifestError(path, "has a header and no line below it; write one line per utterance", number)
    return names, lines[1:]


_NUMBERS: Final[Mapping[str, Callable[[str], float | int]]] = {
    "start_s": float,
    "duration_s": float,
    "channel": int,
    "window_index": int,
}


def table_row(path: Path, number: int, cells: Mapping[str, str], folder: str, corpus: str) -> dict[str, Any]:
    """A row of UTTERANCES from the cells of one line, with their types checked.

    Args:
        path: Of the table, for messages.
        number: Of the line, for messages.
        cells: By column of UTTERANCES; others become attributes.
        folder: Where recordings are looked for, itself and its `AUDIO_FOLDERS`.
        corpus: Name of the corpus where the line has none.

    Returns:
        The row; defaults stand where a cell is empty.

    Raises:
        ManifestError: no recording, or a value of a wrong type.
    """
    row: dict[str, Any] = {}
    extra: dict[str, str] = {}
    for column, cell in cells.items():
        if column == "attributes" or column not in schema.UTTERANCES.names:
            extra[column] = cell
        elif column == "keywords":
            row[column] = [phrase.strip() for phrase in cell.split("|") if phrase.strip()]
        elif column in _NUMBERS and cell.strip():
            row[column] = _number(path, number, column, cell)
        elif cell.strip() or column == "reference":
            row[column] = cell.strip()
    if "audio_uri" not in row:
        raise ManifestError(path, "is empty; every line names its recording", number, "audio_uri")
    if row.setdefault("split", "test") not in schema.SPLITS:
        raise ManifestError(path, f"got '{row['split']}', expected one of {', '.join(schema.SPLITS)}", number, "split")
    if "corpus" in row:
        refuse_corpus_name(path, row["corpus"], number)
    audio = row["audio_uri"]
    row["audio_uri"] = _beside(folder, audio)
    row.setdefault(
        "utterance_id", str(Path(audio).with_suffix("")) + (f"@{row['start_s']:.3f}" if row.get("start_s") else "")
    )
    row.setdefault("recording_id", audio)
    row.setdefault("start_s", 0.0)
    row.setdefault("corpus", corpus)
    row["attributes"] = list(extra.items()) or None
    return row


def _number(path: Path, line: int, column: str, cell: str) -> float | int:
    try:
        value = _NUMBERS[column](cell)
    except ValueError as error:
        raise ManifestError(path, f"got '{cell}', expected a number", line, column) from error
    if not math.isfinite(value) or (column.endswith("_s") and value < 0):
        raise ManifestError(path, f"got '{cell}', expected seconds, 0 or more", line, column)
    return value


def _beside(folder: str, audio: str) -> str:
    for name in AUDIO_FOLDERS:
        place = Path(folder, name, audio)
        if place.exists():
            return str(place)
    return resolve(folder, audio)
