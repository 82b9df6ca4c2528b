"""stm segments with their recordings, as in TED-LIUM -> UTTERANCES."""

from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from ctxasr_ray import schema
from ctxasr_ray.corpora.folder import EXTENSIONS
from ctxasr_ray.corpora.lines import ManifestError, corpus_name, split_of
from ctxasr_ray.metrics.timed_files import read_stm

_CHANNELS: Final = {"1": 0, "A": 0, "2": 1, "B": 1}
_FOLDERS: Final = (".", "../sph", "../wav", "../audio", "sph", "wav", "audio")
"""Where, from an stm file, its recordings may lie."""


def read(path: str | Path, corpus: str | None = None) -> pa.Table:
    """Reads one stm file, or all below a folder.

    Args:
        path: An stm file, or a folder such as TED-LIUM's `test` with `stm/*.stm` and `sph/*.sph`.
        corpus: Name of the corpus; by default the folder's.

    Returns:
        UTTERANCES in the order of files and lines. A segment that scoring ignores has no reference. The split is
        the one that the file, or the folder around `stm/`, is named after. A recording that is not there is named
        where it was expected, and its rows fail when it is read.

    Raises:
        ManifestError: no stm file, a line that is no segment, or one segment twice.
    """
    top = Path(path).absolute()
    files = sorted(top.rglob("*.stm")) if top.is_dir() else [top]
    if not files:
        raise ManifestError(path, "holds no .stm file")
    name = corpus or corpus_name(top / "manifest" if top.is_dir() else top)
    rows: list[dict[str, Any]] = []
    owner: dict[str, str] = {}
    for file in files:
        for number, spoken in read_stm(file, is_reference=True):
            assert spoken.segment is not None, "read_stm gives segments"
            label, start_s, end_s = spoken.segment
            if end_s <= start_s:
                raise ManifestError(file, f"segment ends at {end_s} s, before or where it starts ({start_s} s)", number)
            first = owner.setdefault(spoken.utterance_id, f"{file}, line {number}")
            if first != f"{file}, line {number}":
                raise ManifestError(file, f"the same segment stands in {first} already; keep one", number)
            recording = str(spoken.session_id)
            rows.append(
                {
                    "utterance_id": spoken.utterance_id,
                    "corpus": name,
                    "split": _split(file),
                    "speaker_id": spoken.speaker_id,
                    "recording_id": recording,
                    "channel": _channel(file, number, label.removeprefix(f"{recording}-")),
                    "audio_uri": str(_recording(file, recording)),
                    "start_s": start_s,
                    "duration_s": end_s - start_s,
                    "reference": spoken.text,
                }
            )
    return schema.conform(pa.Table.from_pylist(rows, schema=schema.UTTERANCES), "utterances")


def _split(file: Path) -> str:
    folder = file.parent.parent if file.parent.name == "stm" else file.parent
    by_file = split_of(file.stem)
    return by_file if by_file != "test" else split_of(folder.name)


def _channel(file: Path, number: int, cell: str) -> int:
    if cell not in _CHANNELS:
        raise ManifestError(file, f"channel '{cell}' is unknown; expected one of {', '.join(_CHANNELS)}", number)
    return _CHANNELS[cell]


def _recording(file: Path, name: str) -> Path:
    places = [(file.parent / folder).resolve() / name for folder in _FOLDERS]
    found = [place.with_name(name + suffix) for place in places for suffix in ("", *sorted(EXTENSIONS))]
    return next((place for place in found if place.is_file()), places[1].with_name(f"{name}.sph"))
