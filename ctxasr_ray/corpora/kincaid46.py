"""Kincaid46: 46 long recordings of the web, a table with their transcripts -> UTTERANCES.

The table of the blog article lists one recording per line with its reference and what services made of it; it is passed
on as CSV (an export of the table) or as TSV (WhisperS2T's `manifest_wav.tsv`), with the recordings in `audio/`.

Reference:
    Kincaid 2018, "Which automatic transcription service is the most accurate?"; Radford et al. 2022, appendix A.2.
"""

import csv
import re
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from ctxasr_ray import schema
from ctxasr_ray.corpora import folder
from ctxasr_ray.corpora.lines import ManifestError, corpus_name, read_lines, refuse_duplicates

_COLUMNS: Final = {
    "audio_uri": ("audio_path", "audio", "audio file", "audio_filepath", "filename"),
    "reference": ("raw_text", "reference transcript", "reference", "transcript", "text"),
    "utterance_id": ("ref id", "ref_id", "id"),
}
"""Column of UTTERANCES -> its names in the tables that go round, in lower case."""
_ATTACHED: Final = re.compile(r"(.+?) \((https?://\S+)\)")
"""A cell of an exported table: the file's name and the address it was downloaded from."""


def read(path: str | Path, corpus: str | None = None) -> pa.Table:
    """Reads the table, or the folder with it.

    Args:
        path: A .csv or .tsv file, or a folder that holds exactly one.
        corpus: Name of the corpus; by default the folder's.

    Returns:
        UTTERANCES in the order of the table, all of split test; columns that are not the recording, its reference or
        its id (captions, transcripts of services) are attributes. Recordings stay whole; `ctxasr prepare kincaid46
        --segment vad` cuts them.

    Raises:
        ManifestError: no table or several, a column that is missing, a line of a wrong length, or an id twice.
    """
    table = Path(path).absolute()
    if table.is_dir():
        found = sorted(p for p in table.iterdir() if p.suffix in (".csv", ".tsv"))
        if len(found) != 1:
            raise ManifestError(path, f"holds {len(found)} tables (.csv, .tsv), expected one; name it")
        table = found[0]
    name = corpus or corpus_name(table.parent / "manifest")
    lines = _records(table)
    columns = _columns(table, lines[0][1])
    rows = [_row(table, number, columns, cells, name) for number, cells in lines[1:]]
    refuse_duplicates(table, ((n, row["utterance_id"]) for (n, _), row in zip(lines[1:], rows, strict=True)))
    return schema.conform(pa.Table.from_pylist(rows, schema=schema.UTTERANCES), "utterances")


def _records(table: Path) -> list[tuple[int, list[str]]]:
    """(line where it ends, cells) of header and rows; a quoted cell may hold line ends."""
    numbers, lines = zip(*read_lines(table), strict=True)
    reader = csv.reader((f"{line}\n" for line in lines), delimiter="," if table.suffix == ".csv" else "\t")
    try:
        records = [(numbers[reader.line_num - 1], cells) for cells in reader]
    except csv.Error as error:
        raise ManifestError(table, f"is no table: {error}; save it anew", reader.line_num) from error
    if len(records) == 1:
        raise ManifestError(table, "has a header and no line below it; write one line per recording")
    return records


def _columns(table: Path, header: list[str]) -> list[str]:
    lower = [cell.strip().lower() for cell in header]
    columns = [cell.strip() for cell in header]
    for column, names in _COLUMNS.items():
        known = next((name for name in names if name in lower), None)
        if known is not None:
            columns[lower.index(known)] = column
        elif column != "utterance_id":
            raise ManifestError(table, f"has no column {' or '.join(names)}, got {', '.join(header)}; name one so", 1)
    return columns


def _row(table: Path, number: int, columns: list[str], cells: list[str], corpus: str) -> dict[str, Any]:
    if len(cells) != len(columns):
        problem = f"got {len(cells)} cells, expected {len(columns)} ({', '.join(columns)}); quote cells with separators"
        raise ManifestError(table, problem, number)
    texts = dict(zip(columns, (" ".join(cell.split()) for cell in cells), strict=True))
    attached = _ATTACHED.fullmatch(texts["audio_uri"])
    audio = Path(attached.group(1) if attached else texts["audio_uri"])
    texts["audio_uri"] = str(audio) if (table.parent / audio).is_file() else audio.name
    return folder.table_row(table, number, texts, str(table.parent), corpus) | {"split": "test"}
