"""Parquet files of a Hugging Face dataset with audio inside -> audio files and a manifest.

Recordings inside Parquet cannot be read in place, so `extract` writes each as the file that it is, once.
"""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from ctxasr_ray.corpora import nemo
from ctxasr_ray.corpora.lines import ManifestError, corpus_name, split_of

MANIFEST: Final = "manifest.jsonl"
_TEXTS: Final = ("text", "sentence", "normalized_text", "transcript", "transcription")
"""Columns that may hold the reference, the first one that is there, in the order of the Open ASR Leaderboard."""
_IDS: Final = ("utterance_id", "id", "key")
_MAGIC: Final[Mapping[bytes, str]] = {
    b"RIFF": ".wav",
    b"fLaC": ".flac",
    b"OggS": ".ogg",
    b"ID3": ".mp3",
    b"\xff": ".mp3",
}
_BATCH_ROWS: Final = 64


def extract(source: str | Path, directory: str | Path, corpus: str | None = None) -> Path:
    """Writes the recordings and the manifest of a dataset that lies on disk as Parquet.

    Args:
        source: A .parquet file, or a folder of them at any depth; the split is the one that a file is named after
            (`test-00000-of-00001.parquet`), else the folder's.
        directory: Made if missing; `audio/<file>/<row>.<ext>` and, last, `manifest.jsonl` go into it.
        corpus: Name of the corpus; by default the source's.

    Returns:
        The manifest, with the plain columns as attributes. A row whose audio is null keeps its line, which fails when
        it is read.

    Raises:
        ManifestError: no Parquet, no column `audio` with bytes or paths, or one id twice.
    """
    top = Path(source).absolute()
    files = sorted(top.rglob("*.parquet")) if top.is_dir() else [top]
    if not files:
        raise ManifestError(source, "holds no .parquet file")
    name = corpus or corpus_name(top / "manifest" if top.is_dir() else top)
    target = Path(directory).absolute()
    lines: list[str] = []
    owner: dict[str, Path] = {}
    for file in files:
        for fields in _rows(file, top if top.is_dir() else top.parent, target):
            first = owner.setdefault(fields["utterance_id"], file)
            if first != file:
                raise ManifestError(file, f"'{fields['utterance_id']}' stands in {first} already; extract them apart")
            row = nemo.utterance(file, None, fields, str(target), name)
            lines.append(nemo.manifest_line(row))
    if len(owner) != len(lines):
        raise ManifestError(source, f"has {len(lines)} rows and {len(owner)} ids; ids must be unique")
    target.mkdir(parents=True, exist_ok=True)
    _publish(target / MANIFEST, "".join(f"{line}\n" for line in lines).encode())
    return target / MANIFEST


def _rows(file: Path, top: Path, target: Path) -> Iterator[dict[str, Any]]:
    try:
        parquet = pq.ParquetFile(file)
    except pa.ArrowInvalid as error:
        raise ManifestError(file, f"is no Parquet file: {error}") from error
    columns = parquet.schema_arrow
    audio = columns.field("audio").type if "audio" in columns.names else None
    if audio is None or not pa.types.is_struct(audio) or not {"bytes", "path"} & {field.name for field in audio}:
        raise ManifestError(file, f"has columns {columns.names}; expected audio, a struct of bytes and path")
    relative = file.relative_to(top).with_suffix("").as_posix()
    by_name, text = split_of(file.stem), next((c for c in _TEXTS if c in columns.names), None)
    split = by_name if by_name != "test" else split_of(file.parent.name)
    own_id = next((c for c in _IDS if c in columns.names), None)
    row = 0
    for batch in parquet.iter_batches(_BATCH_ROWS):
        for cells in batch.to_pylist():
            sound = cells.pop("audio") or {}
            fields = {key: _plain(key, value) for key, value in cells.items() if _is_plain(key, value)}
            reference = fields.pop(text, None) if text else None
            name = str(fields.pop(own_id)) if own_id and own_id in fields else f"{relative}-{row:06d}"
            yield {
                **{key: value for key, value in fields.items() if key not in ("duration", "reference", "audio_uri")},
                **({} if reference is None else {"text": str(reference)}),
                "utterance_id": name,
                "split": split,
                "audio_filepath": _audio(sound, file, target / "audio" / relative / f"{row:06d}"),
            }
            row += 1


def _is_plain(key: str, value: Any) -> bool:
    return isinstance(value, str | int | float) or (key == "keywords" and isinstance(value, list))


def _plain(key: str, value: Any) -> Any:
    """Ids and labels are often numbers in Parquet, and strings everywhere else."""
    return value if key in ("channel", "window_index", "start_s", "keywords") else str(value)


def _audio(sound: Mapping[str, Any], file: Path, place: Path) -> str:
    """Writes the bytes of a recording and returns where; a recording that is only named stays where it lies."""
    data, named = sound.get("bytes"), str(sound.get("path") or "")
    if data is None:
        return str(file.parent / named) if named else str(place)
    suffix = Path(named).suffix or next((s for start, s in _MAGIC.items() if data.startswith(start)), ".wav")
    path = place.with_name(place.name + re.sub(r"[^.A-Za-z0-9]", "", suffix))
    path.parent.mkdir(parents=True, exist_ok=True)
    _publish(path, data)
    return str(path)


def _publish(path: Path, content: bytes) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_bytes(content)
    part.replace(path)
