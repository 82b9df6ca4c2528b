"""Kaldi data directories -> UTTERANCES: wav.scp, and where they are there segments, text, utt2spk or spk2utt."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from ctxasr_ray import schema
from ctxasr_ray.audio import SHORTFALL_S
from ctxasr_ray.corpora.lines import (
    ManifestError,
    corpus_name,
    folder_of,
    read_lines,
    refuse_duplicates,
    resolve_near,
    split_of,
)

_Rows = dict[str, tuple[int, str]]
"""First word of a line -> line number and the rest."""
_CHANNELS: Final = {"A": 0, "B": 1, "1": 0, "2": 1}


def read(path: str | Path, corpus: str | None = None) -> pa.Table:
    """Reads a data directory, or refuses it before any work.

    Args:
        path: Folder with `wav.scp`; relative paths in it start there or in the working directory. `segments`, `text`,
            `utt2spk` (or `spk2utt`), `utt2lang`, `reco2dur`, `utt2dur` and `reco2file_and_channel` are read where
            they are there.
        corpus: Name of the corpus; by default the folder's.

    Returns:
        UTTERANCES in the order of `segments`, or of `wav.scp`. An utterance without `text` has no reference; the split
        is the one that the folder is named after.

    Raises:
        ManifestError: a pipe or an archive in `wav.scp`, a segment of an unknown recording or outside of it (where
            `reco2dur` says how long that is; else its row says so when it is read), an id twice, or a text or speaker
            of an utterance that is not there.
    """
    folder = Path(path)
    recordings = {name: _audio(folder / "wav.scp", *row) for name, row in _rows(folder, "wav.scp").items()}
    rows = _segments(folder, recordings) if (folder / "segments").exists() else _whole(folder, recordings)
    texts = _of_utterances(folder, "text", rows)
    languages = _of_utterances(folder, "utt2lang", rows)
    speakers = _speakers(folder, rows)
    channels = _channels(folder)
    name = corpus or corpus_name(folder.absolute() / "manifest")
    for utterance_id, row in rows.items():
        row |= {
            "utterance_id": utterance_id,
            "corpus": name,
            "split": split_of(folder.absolute().name),
            "audio_uri": recordings[row["recording_id"]],
            "channel": channels.get(row["recording_id"]),
            "reference": texts.get(utterance_id),
            "speaker_id": speakers.get(utterance_id),
            "language": languages.get(utterance_id),
        }
    return schema.conform(pa.Table.from_pylist(list(rows.values()), schema=schema.UTTERANCES), "utterances")


def _rows(folder: Path, name: str) -> _Rows:
    path = folder / name
    numbered = [(number, line.split(maxsplit=1)) for number, line in read_lines(path)]
    refuse_duplicates(path, ((number, cells[0]) for number, cells in numbered))
    return {cells[0]: (number, "".join(cells[1:]).strip()) for number, cells in numbered}


def _audio(path: Path, number: int, place: str) -> str:
    if not place:
        raise ManifestError(path, "names a recording and no file; expected: recording, path", number)
    if place.endswith("|") or place.startswith("|"):
        raise ManifestError(
            path,
            f"is a command ('{place[:60]}'), and commands of a manifest are not run. Name the file itself where the "
            "command only decodes it (WAV, FLAC, MP3, OGG and plain SPHERE are read), or write its output to files",
            number,
        )
    if re.search(r"\.ark:\d+$", place) or place == "-":
        raise ManifestError(path, f"'{place}' is no recording of its own; extract it with wav-copy", number)
    return resolve_near(folder_of(path), place)


def _whole(folder: Path, recordings: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {name: {"recording_id": name, "start_s": 0.0} for name in recordings}
    for name, seconds in _durations(folder, "utt2dur" if (folder / "utt2dur").exists() else "reco2dur").items():
        if name in rows:
            rows[name]["duration_s"] = seconds
    return rows


def _segments(folder: Path, recordings: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    path = folder / "segments"
    durations = _durations(folder, "reco2dur")
    rows: dict[str, dict[str, Any]] = {}
    for utterance_id, (number, rest) in _rows(folder, "segments").items():
        cells = rest.split()
        if len(cells) != 3:
            raise ManifestError(path, "expected: utterance, recording, start, end", number)
        recording = cells[0]
        if recording not in recordings:
            raise ManifestError(path, f"recording '{recording}' is not in wav.scp; add it there", number)
        start_s, end_s = (_seconds(path, number, cell) for cell in cells[1:])
        length_s = durations.get(recording, math.inf)
        if start_s < 0 or (end_s <= start_s and end_s != -1):
            raise ManifestError(path, f"{start_s} to {end_s} s is no window; an end of -1 means to the end", number)
        if start_s >= length_s or end_s > length_s + SHORTFALL_S:
            raise ManifestError(
                path, f"{start_s} to {end_s} s lies outside recording '{recording}' of {length_s} s (reco2dur)", number
            )
        rows[utterance_id] = {
            "recording_id": recording,
            "start_s": start_s,
            "duration_s": None if end_s == -1 else end_s - start_s,
        }
    return rows


def _seconds(path: Path, number: int, cell: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ManifestError(path, f"got '{cell}', expected seconds", number)
    return value


def _durations(folder: Path, name: str) -> dict[str, float]:
    if not (folder / name).exists():
        return {}
    return {key: _seconds(folder / name, number, cell) for key, (number, cell) in _rows(folder, name).items()}


def _of_utterances(folder: Path, name: str, known: Mapping[str, Any]) -> dict[str, str]:
    if not (folder / name).exists():
        return {}
    found = _rows(folder, name)
    for utterance_id, (number, _) in found.items():
        if utterance_id not in known:
            where = "segments" if (folder / "segments").exists() else "wav.scp"
            raise ManifestError(folder / name, f"'{utterance_id}' is not in {where}; run fix_data_dir.sh", number)
    return {utterance_id: text for utterance_id, (_, text) in found.items()}


def _speakers(folder: Path, known: Mapping[str, Any]) -> dict[str, str]:
    if (folder / "utt2spk").exists() or not (folder / "spk2utt").exists():
        return _of_utterances(folder, "utt2spk", known)
    speakers: dict[str, str] = {}
    for speaker, (number, rest) in _rows(folder, "spk2utt").items():
        for utterance_id in rest.split():
            if utterance_id not in known or speakers.setdefault(utterance_id, speaker) != speaker:
                raise ManifestError(
                    folder / "spk2utt", f"'{utterance_id}' is no utterance, or has two speakers; fix it", number
                )
    return speakers


def _channels(folder: Path) -> dict[str, int]:
    """Recording -> channel from 0, for telephone calls whose sides are recordings of their own."""
    path = folder / "reco2file_and_channel"
    if not path.exists():
        return {}
    channels = {}
    for recording, (number, rest) in _rows(folder, path.name).items():
        side = rest.split()[-1:]
        if not side or side[0] not in _CHANNELS:
            raise ManifestError(path, f"got '{rest}', expected: recording, file, channel A or B", number)
        channels[recording] = _CHANNELS[side[0]]
    return channels
