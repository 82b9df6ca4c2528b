"""NeMo JSON-lines manifests, also tarred -> UTTERANCES.

One JSON object per line: `audio_filepath`, relative to the manifest, then `text`, `offset`, `duration`, `lang`.
Keys named like columns of UTTERANCES are taken as they are; every other key becomes an attribute.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NoReturn

import pyarrow as pa

from ctxasr_ray import schema
from ctxasr_ray.archive import AudioError, check_archive, is_url
from ctxasr_ray.corpora.lines import (
    ManifestError,
    corpus_name,
    folder_of,
    read_lines,
    refuse_corpus_name,
    refuse_duplicates,
    resolve,
)

_NAMES: Final[Mapping[str, str]] = {
    "audio_filepath": "audio_uri",
    "text": "reference",
    "offset": "start_s",
    "duration": "duration_s",
    "lang": "language",
    "speaker": "speaker_id",
}
"""NeMo's key -> column."""
_TYPES: Final[Mapping[str, str]] = {
    **dict.fromkeys(
        (
            "utterance_id",
            "corpus",
            "split",
            "speaker_id",
            "session_id",
            "recording_id",
            "audio_uri",
            "reference",
            "language",
        ),
        "a string",
    ),
    **dict.fromkeys(("window_index", "channel"), "a whole number"),
    **dict.fromkeys(("start_s", "duration_s"), "a number of seconds, 0 or more"),
    "keywords": "a list of strings",
    "attributes": "an object",
}


def read(path: str | Path, corpus: str | None = None) -> pa.Table:
    """Reads a manifest, or refuses it before any work.

    Args:
        path: Local path or URL of the manifest. A line with `shard_id` lies in `audio_<shard_id>.tar`, in the
            manifest's folder or the one above it, as NeMo's own script packs it.
        corpus: Name of the corpus; by default the line's `corpus`, then the name of the file or folder.

    Returns:
        UTTERANCES in the order of the lines. No `split` means test; no `text` means that the reference is unknown.

    Raises:
        ManifestError: missing, empty, not UTF-8, broken JSON, a value of a wrong type, or one id twice,
            naming file, line, column and remedy; or an archive that is not safe to read.
    """
    folder = folder_of(path)
    default = corpus or corpus_name(path)
    rows, lines = [], []
    for number, line in read_lines(path):
        fields = parse(path, number, line)
        rows.append(utterance(path, number, fields, folder, default))
        lines.append(number)
    refuse_duplicates(path, zip(lines, (row["utterance_id"] for row in rows), strict=True))
    _refuse_unsafe_archives(path, {str(row["audio_uri"]) for row in rows})
    return schema.conform(pa.Table.from_pylist(rows, schema=schema.UTTERANCES), "utterances")


def manifest_line(utterance: Mapping[str, Any], extra: Mapping[str, Any] | None = None) -> str:
    """One line of a manifest, from which `read` makes the same utterance again.

    Args:
        utterance: A row of UTTERANCES.
        extra: Further keys, for example `pred_text`; `read` makes attributes of them.

    Returns:
        A JSON object without line end; what is null is left out.
    """
    keys = {column: key for key, column in _NAMES.items() if key != "speaker"}
    row = {keys.get(column, column): value for column, value in utterance.items() if value is not None}
    if "attributes" in row:
        row["attributes"] = dict(row["attributes"])
    return json.dumps({**row, **(extra or {})}, ensure_ascii=False)


def parse(path: str | Path, number: int, line: str) -> dict[str, Any]:
    """One JSON object, without nan, infinity and half characters.

    Raises:
        ManifestError: broken, naming file, line and column.
    """

    def refuse_constant(constant: str) -> NoReturn:
        raise ManifestError(path, f"{constant} is no JSON; leave the key out where the value is unknown", number)

    try:
        fields = json.loads(line, parse_constant=refuse_constant)
    except json.JSONDecodeError as error:
        problem = f"broken JSON: {error.msg}; write one object per line, for example {_EXAMPLE}"
        raise ManifestError(path, problem, number, error.colno) from error
    except ManifestError:
        raise
    except (RecursionError, ValueError) as error:
        raise ManifestError(path, f"broken JSON: {error}; write one flat object per line", number) from error
    if "\\ud" in line.lower():
        _refuse_half_characters(path, number, fields)
    if not isinstance(fields, dict):
        raise ManifestError(path, f"got a {type(fields).__name__}, expected one object per line: {_EXAMPLE}", number, 1)
    return fields


def _refuse_half_characters(path: str | Path, number: int, fields: object) -> None:
    try:
        json.dumps(fields, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        problem = "holds half of a surrogate pair, which is no text; write the character itself, as UTF-8"
        raise ManifestError(path, problem, number) from error


_EXAMPLE: Final = '{"audio_filepath": "a.wav", "text": "hello"}'


def utterance(
    path: str | Path, number: int | None, fields: Mapping[str, Any], folder: str, corpus: str
) -> dict[str, Any]:
    """A row of UTTERANCES from the keys of one line, with their types checked.

    Args:
        path: Of the manifest, for messages.
        number: Of the line, for messages.
        fields: NeMo's keys, names of columns, and others, which become attributes.
        folder: Where relative audio paths start.
        corpus: Name of the corpus where the line has none.

    Raises:
        ManifestError: no recording, a key that stands under two names, or a value of a wrong type.
    """
    row: dict[str, Any] = {}
    extra: dict[str, str] = {}
    for key, value in fields.items():
        column = _NAMES.get(key, key)
        if column not in _TYPES:
            extra[key] = value if isinstance(value, str) else json.dumps(value)
            continue
        if value is None:
            continue
        if column in row:
            raise ManifestError(path, f"stands twice, also under another name; keep '{column}'", number, key)
        if not _fits(column, value):
            got = json.dumps(value)[:60]
            raise ManifestError(path, f"got {got}, expected {_TYPES[column]}", number, key)
        row[column] = value
    if not row.get("audio_uri"):
        raise ManifestError(path, f"is missing; every line names its recording: {_EXAMPLE}", number, "audio_filepath")
    if row.setdefault("split", "test") not in schema.SPLITS:
        raise ManifestError(path, f"got '{row['split']}', expected one of {', '.join(schema.SPLITS)}", number, "split")
    if "corpus" in row:
        refuse_corpus_name(path, row["corpus"], number)
    audio = row["audio_uri"]
    row.setdefault("utterance_id", _default_id(audio, row.get("start_s"), row.get("channel")))
    row.setdefault("recording_id", audio)
    row.setdefault("start_s", 0.0)
    row.setdefault("corpus", corpus)
    if not row["utterance_id"]:
        raise ManifestError(path, "is empty; leave it out to name lines after their recordings", number, "utterance_id")
    row["audio_uri"] = _packed(folder, audio, extra["shard_id"]) if "shard_id" in extra else resolve(folder, audio)
    given = {
        key: value if isinstance(value, str) else json.dumps(value) for key, value in row.get("attributes", {}).items()
    }
    row["attributes"] = list({**extra, **given}.items()) or None
    return row


def _fits(column: str, value: Any) -> bool:
    match _TYPES[column]:
        case "a string":
            return isinstance(value, str)
        case "a whole number":
            return isinstance(value, int) and not isinstance(value, bool) and -(2**31) <= value < 2**31
        case "a list of strings":
            return isinstance(value, list) and all(isinstance(item, str) for item in value)
        case "an object":
            return isinstance(value, dict)
        case _:
            return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 2**31


def _default_id(audio: str, start_s: float | None, channel: int | None) -> str:
    """Names a line after its recording, and after its window and channel where it has them."""
    stem, dot, extension = audio.rpartition(".")
    name = stem if dot and "/" not in extension else audio
    return name + (f"@{start_s:.3f}" if start_s else "") + ("" if channel is None else f"#{channel}")


def _packed(folder: str, audio: str, shard_id: str) -> str:
    """Finds a member of a tarred manifest; further windows of `x.wav` are named `x-sub1.wav` and not packed again."""
    archive = f"audio_{shard_id}.tar"
    above = f"{folder.rpartition('/')[0]}/{archive}"
    place = (
        above
        if not is_url(folder) and not Path(folder, archive).exists() and Path(above).exists()
        else f"{folder}/{archive}"
    )
    return f"{place}#{re.sub(r'-sub[0-9]+(?=[.][^.]+$)', '', audio)}"


def _refuse_unsafe_archives(path: str | Path, uris: set[str]) -> None:
    for archive in sorted({uri.partition(".tar#")[0] + ".tar" for uri in uris if ".tar#" in uri}):
        if not is_url(archive) and Path(archive).exists():
            try:
                check_archive(archive)
            except AudioError as error:
                raise ManifestError(path, str(error)) from error
