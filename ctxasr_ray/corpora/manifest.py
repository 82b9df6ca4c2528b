"""Any corpus by its path -> UTTERANCES."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from ctxasr_ray import audio, schema
from ctxasr_ray.archive import is_url
from ctxasr_ray.corpora import folder, nemo
from ctxasr_ray.corpora.lines import ManifestError, refuse_corpus_name

MANIFEST: Final = "manifest.jsonl"
"""Name of the manifest in a folder that `prepare` made."""
_THREADS: Final = 8


def read_corpus(path: str | Path, corpus: str | None = None) -> pa.Table:
    """Reads a corpus of whatever kind the path shows.

    Args:
        path: A NeMo manifest (.jsonl, .json, .ndjson; also a URL), a folder that holds `manifest.jsonl`, a folder of
            recordings with a TSV or one .txt each, or a .tsv file.
        corpus: Name of the corpus; by default what the manifest says, or the name of the file or folder.

    Returns:
        UTTERANCES; durations that the corpus does not state are read from the headers, and stay null where a
        recording cannot be read: its row is kept, and the first pass says why.

    Raises:
        ManifestError: missing, of no known kind, or broken, naming file, line, column and remedy.
        OSError: the disk or the network failed.
    """
    if corpus is not None:
        refuse_corpus_name(path, corpus)
    text = str(path)
    local = Path(text)
    suffix = text.rpartition(".")[2].lower()
    if not is_url(text) and not local.exists():
        raise ManifestError(path, "does not exist; name a manifest (.jsonl), a .tsv, or a folder of recordings")
    if not is_url(text) and local.is_dir():
        made = local / MANIFEST
        table = nemo.read(made, corpus) if made.exists() else folder.read(local, corpus)
    elif suffix in ("jsonl", "json", "ndjson"):
        table = nemo.read(path, corpus)
    elif suffix == "tsv" and not is_url(text):
        table = folder.read(local, corpus)
    else:
        raise ManifestError(
            path,
            f"'.{suffix}' is no kind of corpus that is read; name a NeMo manifest (.jsonl, .json), a .tsv with "
            "a column audio_filepath, or a folder of recordings",
        )
    return _with_durations(table)


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
