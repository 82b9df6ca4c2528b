"""Any corpus by its path -> UTTERANCES."""

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import pyarrow as pa
import pyarrow.compute as pc

from ctxasr_ray import audio, schema
from ctxasr_ray.archive import is_missing, is_url
from ctxasr_ray.corpora import (
    aishell,
    common_voice,
    folder,
    hf_dataset,
    kaldi,
    kincaid46,
    lhotse,
    libriheavy,
    librispeech,
    nemo,
    segmentation,
    stm,
    textgrid,
    webdataset,
)
from ctxasr_ray.corpora.lines import ManifestError, read_lines, refuse_corpus_name

MANIFEST: Final = "manifest.jsonl"
"""Name of the manifest in a folder that `prepare` made."""
_THREADS: Final = 8


def _read_nemo(path: str | Path, corpus: str | None) -> pa.Table:
    is_folder = not is_url(str(path)) and Path(path).is_dir()
    return nemo.read(Path(path) / MANIFEST if is_folder else path, corpus)


READERS: Final[Mapping[str, Callable[[str | Path, str | None], pa.Table]]] = {
    "nemo": _read_nemo,
    "folder": folder.read,
    "kaldi": kaldi.read,
    "librispeech": librispeech.read,
    "stm": stm.read,
    "common_voice": common_voice.read,
    "lhotse": lhotse.read,
    "webdataset": webdataset.read,
    "textgrid": textgrid.read,
    "libriheavy": libriheavy.read,
    "libriheavy_normalised": partial(libriheavy.read, is_normalised=True),
    "aishell": aishell.read,
    "kincaid46": kincaid46.read,
}
"""Kinds of corpora; each reader takes the path and the name of the corpus."""
KINDS: Final = (*READERS, "hf_dataset")
"""What `prepare` takes: all readers, and Parquet files, whose recordings must be extracted first."""


def read_corpus(path: str | Path, corpus: str | None = None, kind: str | None = None) -> pa.Table:
    """Reads a corpus of whatever kind the path shows, or of the kind that is named.

    Args:
        path: A NeMo manifest (.jsonl, .json, .ndjson; also a URL), a folder that holds `manifest.jsonl`, a Kaldi data
            directory, a LibriSpeech tree, stm or TextGrids with recordings, Common Voice, Lhotse cuts or Shar,
            LibriHeavy, AISHELL-1, WebDataset tars, a .tsv, or a folder of recordings with a TSV or one .txt each.
        corpus: Name of the corpus; by default what the manifest says, or the name of the file or folder.
        kind: A key of `READERS`; by default what the path holds.

    Returns:
        UTTERANCES; durations that the corpus does not state are read from the headers, and stay null where a
        recording cannot be read: its row is kept, and the first pass says why.

    Raises:
        ManifestError: missing, of no known kind, or broken, naming file, line, column and remedy.
        OSError: the disk or the network failed.
    """
    if corpus is not None:
        refuse_corpus_name(path, corpus)
    if kind is not None and kind not in READERS:
        raise ManifestError(path, f"kind '{kind}' is unknown; choose one of {', '.join(READERS)}")
    if not is_url(str(path)) and not Path(path).exists():
        raise ManifestError(path, "does not exist; name a manifest (.jsonl), a .tsv, or a folder of recordings")
    return _with_durations(READERS[kind or kind_of(path)](path, corpus))


def prepare(kind: str, source: str | Path, directory: str | Path, corpus: str | None = None) -> tuple[Path, str]:
    """Writes the manifest of a corpus of any kind, which `read_corpus` and every recipe read.

    Args:
        kind: One of `KINDS`.
        source: What the reader of that kind takes.
        directory: Made if missing; gets `manifest.jsonl`, and from Parquet the recordings. Others stay where they are.
        corpus: Name of the corpus.

    Returns:
        The manifest, whole or absent, and what it holds, for people: `summary`.

    Raises:
        ManifestError: as `read_corpus`.
    """
    if kind == "hf_dataset":
        path = hf_dataset.extract(source, directory, corpus)
        return path, summary(read_corpus(path, corpus, "nemo"))
    table = read_corpus(source, corpus, kind)
    return write_manifest(table, directory), summary(table)


def summary(table: pa.Table) -> str:
    """How many utterances, sessions and hours of UTTERANCES there are, and which local recordings are not there."""
    durations = table["duration_s"]
    found = f"{table.num_rows:,} utterances, {pc.count_distinct(table['session_id']).as_py():,} sessions, "
    found += f"{(pc.sum(durations).as_py() or 0.0) / 3600:.2f} h"
    if durations.null_count:
        found += f" and {durations.null_count:,} utterances of unknown length"
    recordings = table["audio_uri"].unique().to_pylist()
    missing = [uri for uri in recordings if is_missing(uri)]
    if missing:
        found += f"; {len(missing):,} of {len(recordings):,} recordings are missing, first {missing[0]}"
    return found


def prepare_windows(
    kind: str,
    source: str | Path,
    directory: str | Path,
    corpus: str | None = None,
    *,
    method: Literal["vad", "fixed"],
    windows: segmentation.WindowConfig,
) -> tuple[Path, segmentation.Segmented]:
    """As `prepare`, with long recordings in windows.

    Args:
        kind: One of `KINDS`.
        source: What the reader of that kind takes.
        directory: As for `prepare`.
        corpus: Name of the corpus.
        method: Of `segmentation.segment`.
        windows: Their lengths and thresholds.

    Returns:
        The manifest, and what became of the recordings.

    Raises:
        ManifestError: as `read_corpus`.
    """
    if kind == "hf_dataset":
        table = read_corpus(hf_dataset.extract(source, directory, corpus), corpus, "nemo")
    else:
        table = read_corpus(source, corpus, kind)
    cut = segmentation.segment(table, method, windows)
    return write_manifest(cut.utterances, directory), cut


def write_manifest(table: pa.Table, directory: str | Path) -> Path:
    """Writes `manifest.jsonl` of UTTERANCES, whole or not at all; the directory is made if missing."""
    target = Path(directory).absolute() / MANIFEST
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{MANIFEST}.{os.getpid()}")
    part.write_text("".join(f"{nemo.manifest_line(row)}\n" for row in table.to_pylist()), "utf-8", newline="\n")
    part.replace(target)
    return target


def kind_of(path: str | Path) -> str:
    """The kind of corpus that a path shows, a key of `READERS`.

    Raises:
        ManifestError: none.
    """
    text = str(path)
    suffix = text.lower().removesuffix(".gz").rpartition(".")[2]
    if not is_url(text) and Path(text).is_dir():
        return _kind_of_folder(Path(text))
    if suffix in ("jsonl", "json", "ndjson"):
        if Path(text).name.startswith(libriheavy.PREFIX):
            return "libriheavy"
        return "lhotse" if not is_url(text) and _holds_cuts(Path(text)) else "nemo"
    if suffix == "tsv" and not is_url(text):
        return "common_voice" if (Path(text).parent / "clips").is_dir() else "folder"
    if suffix in _BY_SUFFIX and not is_url(text):
        return _BY_SUFFIX[suffix]
    if suffix == "parquet":
        raise ManifestError(path, _PARQUET)
    raise ManifestError(
        path,
        f"'.{suffix}' is no kind of corpus that is read; name a NeMo manifest (.jsonl, .json), a .tsv with "
        "a column audio_filepath, or a folder of recordings",
    )


_BY_SUFFIX: Final = {"stm": "stm", "tar": "webdataset", "textgrid": "textgrid"}
_PARQUET: Final = "is Parquet, whose recordings cannot be read in place; extract it once: ctxasr prepare hf_dataset"


_BY_FILES: Final = (
    ("*.trans.txt", "librispeech"),
    ("*.stm", "stm"),
    ("*.TextGrid", "textgrid"),
    ("*.parquet", "hf_dataset"),
)
"""What a folder of many is told by, at any depth."""


def _kind_of_folder(place: Path) -> str:
    shown = (
        ("nemo", (place / MANIFEST).exists()),
        ("kaldi", (place / "wav.scp").exists()),
        ("lhotse", lhotse.is_shar(place)),
        ("aishell", (place / "wav").is_dir() and any((place / "transcript").glob("*.txt"))),
        ("common_voice", (place / "clips").is_dir() and any((place / f).exists() for f in common_voice.SPLIT_FILES)),
        ("webdataset", any(place.glob("*.tar"))),
    )
    found = next((kind for kind, is_shown in shown if is_shown), None)
    beside = next((p for p in sorted(place.glob("*.json*")) if found == "webdataset"), None)
    if beside is not None:
        raise ManifestError(
            place, f"holds tars and {beside.name}; name that file if it is their manifest, else one tar"
        )
    if found is not None:
        return found
    for pattern, kind in _BY_FILES:
        if any(place.rglob(pattern)):
            if kind == "hf_dataset":
                raise ManifestError(place, f"its *.parquet {_PARQUET}")
            return kind
    return "folder"


def _holds_cuts(path: Path) -> bool:
    """Whether the first line is a cut of Lhotse rather than a line of NeMo."""
    number, first = next(read_lines(path))
    fields = nemo.parse(path, number, first)
    return "audio_filepath" not in fields and "start" in fields and ("recording" in fields or "supervisions" in fields)


def _with_durations(table: pa.Table) -> pa.Table:
    rows = table.select(["audio_uri", "start_s", "duration_s"]).to_pylist()
    missing = [index for index, row in enumerate(rows) if row["duration_s"] is None]
    if not missing:
        return table
    with ThreadPoolExecutor(_THREADS) as pool:
        found = dict(zip(missing, pool.map(_duration_s, (rows[index] for index in missing)), strict=True))
    durations = [found.get(index, row["duration_s"]) for index, row in enumerate(rows)]
    place = table.schema.get_field_index("duration_s")
    return table.set_column(place, schema.UTTERANCES.field("duration_s"), pa.array(durations, pa.float64()))


def _duration_s(row: dict[str, Any]) -> float | None:
    try:
        left_s = audio.probe(row["audio_uri"]).duration_s - float(row["start_s"])
    except audio.AudioError:
        return None
    return left_s if left_s > 0 else None
