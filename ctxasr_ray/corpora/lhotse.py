"""Lhotse cut manifests and Shar folders -> UTTERANCES; read as JSON lines, so that Lhotse need not be installed.

A Shar folder holds `cuts.000000.jsonl.gz` with `recording.000000.tar` beside it, whose members hold exactly the
audio of each cut; they are read in place.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from ctxasr_ray import schema
from ctxasr_ray.archive import AudioError, list_members
from ctxasr_ray.audio import SHORTFALL_S
from ctxasr_ray.corpora import nemo
from ctxasr_ray.corpora.lines import (
    ManifestError,
    corpus_name,
    folder_of,
    read_lines,
    refuse_duplicates,
    resolve_near,
    split_of,
)

_HARMLESS: Final = {"Resample"}
"""Transforms that are left out because every recording is resampled anyway."""


def is_shar(folder: Path) -> bool:
    """Says whether a folder holds Shar shards."""
    return any(folder.glob("cuts.*.jsonl*")) and any(folder.glob("recording.*.tar"))


Retold = Callable[[dict[str, Any], int], Mapping[str, Any]]
"""What makes of a cut and the number of its line a cut with the text to be read, for corpora that keep it elsewhere."""


def read(path: str | Path, corpus: str | None = None, retold: Retold = lambda cut, _: cut) -> pa.Table:
    """Reads a cut manifest or a Shar folder, or refuses it before any work.

    Args:
        path: `cuts.jsonl`, `cuts.jsonl.gz`, or a Shar folder. Relative recordings start at the manifest's folder, or
            in the working directory, as Lhotse has it.
        corpus: Name of the corpus; by default that of the file or folder.
        retold: Applied to each cut before it is read.

    Returns:
        UTTERANCES in the order of the cuts. The texts of a cut's supervisions are joined in the order of their
        starts; speaker and language stand where they all agree. Of `custom`, plain values become attributes.

    Raises:
        ManifestError: broken JSON, an id twice, a mixed or transformed cut, a recording that is a command, a cut
            outside its recording, or a Shar shard without its archive.
    """
    place = Path(path)
    if not place.is_dir():
        rows = list(_cuts(place, corpus or corpus_name(str(place).removesuffix(".gz")), None, retold))
    else:
        name = corpus or corpus_name(place.absolute() / "manifest")
        shards = sorted(place.glob("cuts.*.jsonl*"))
        rows = [row for shard in shards for row in _cuts(shard, name, _archive(shard), retold)]
    if not rows:
        raise ManifestError(path, "holds no cuts")
    refuse_duplicates(path, ((index, row["utterance_id"]) for index, row in enumerate(rows, start=1)))
    return schema.conform(pa.Table.from_pylist(rows, schema=schema.UTTERANCES), "utterances")


def _archive(shard: Path) -> Path:
    number = shard.name.split(".")[1]
    archive = shard.parent / f"recording.{number}.tar"
    if not archive.exists():
        raise ManifestError(shard, f"has no {archive.name} beside it; copy the whole Shar folder")
    return archive


def _cuts(path: Path, corpus: str, archive: Path | None, retold: Retold) -> Iterator[dict[str, Any]]:
    packed = _packed(archive) if archive else {}
    for number, line in read_lines(path):
        cut = nemo.parse(path, number, line)
        utterance_id = cut.get("id")
        if not isinstance(utterance_id, str) or not utterance_id:
            raise ManifestError(path, "is no cut: it has no id", number, "id")
        kind = cut.get("type", "MonoCut")
        if kind not in ("MonoCut", "MultiCut"):
            raise ManifestError(
                path, f"'{utterance_id}' is a {kind}, which no file holds; save its audio first (save_audios)", number
            )
        try:
            place = _in_archive(cut, archive, packed) if archive else _in_recording(path, number, cut)
            yield {
                **_said(retold(cut, number)),
                **place,
                "utterance_id": utterance_id,
                "corpus": corpus,
                "split": _split(path),
            }
        except (KeyError, TypeError, AttributeError) as error:
            raise ManifestError(path, f"'{utterance_id}' is no cut of a recording: {error!r}", number) from error


def _split(path: Path) -> str:
    """After a word of the file's name (cuts_dev.jsonl.gz, librispeech_cuts_train-clean-5.jsonl.gz) or its folder."""
    words = path.name.split(".")[0].split("_")
    return next((s for word in (*words, path.absolute().parent.name) if (s := split_of(word)) != "test"), "test")


def _packed(archive: Path) -> dict[str, str]:
    """Cut id -> member with its audio; each has a .json beside it."""
    try:
        members = list_members(str(archive))
    except AudioError as error:
        raise ManifestError(archive, error.reason) from error
    return {name.rpartition(".")[0]: name for name in members if not name.endswith((".json", ".nodata", ".nometa"))}


def _in_archive(cut: Mapping[str, Any], archive: Path, packed: Mapping[str, str]) -> dict[str, Any]:
    member = packed.get(cut["id"], f"{cut['id']}.flac")
    return {
        "recording_id": cut["recording"]["id"] if cut.get("recording") else cut["id"],
        "audio_uri": f"{archive.absolute()}#{member}",
        "channel": None,
        "start_s": 0.0,
        "duration_s": float(cut["duration"]),
    }


def _in_recording(path: Path, number: int, cut: Mapping[str, Any]) -> dict[str, Any]:
    recording = cut.get("recording")
    if not isinstance(recording, dict):
        raise ManifestError(path, f"'{cut['id']}' names no recording; cuts of features alone cannot be heard", number)
    for transform in recording.get("transforms") or ():
        name = transform.get("name") if isinstance(transform, dict) else str(transform)
        if name not in _HARMLESS:
            raise ManifestError(path, f"'{cut['id']}' is changed by {name}; save its audio first (save_audios)", number)
    channels = cut.get("channel", 0)
    wanted = channels if isinstance(channels, list) else [channels]
    source = next((s for s in recording["sources"] if wanted[0] in s["channels"]), None)
    if source is None or source["type"] not in ("file", "url"):
        got = "no source with that channel" if source is None else f"source of type '{source['type']}'"
        raise ManifestError(path, f"'{cut['id']}': {got}; expected a file or a URL (commands are not run)", number)
    if not set(wanted) <= set(source["channels"]):
        raise ManifestError(
            path, f"'{cut['id']}' has channels {wanted} in several files; write one cut per channel", number
        )
    start_s, duration_s = float(cut["start"]), float(cut["duration"])
    if start_s < 0 or duration_s <= 0 or start_s + duration_s > float(recording["duration"]) + SHORTFALL_S:
        raise ManifestError(
            path,
            f"'{cut['id']}': {start_s} to {start_s + duration_s} s lies outside its recording of "
            f"{recording['duration']} s; trim the cut",
            number,
        )
    several = len(source["channels"]) > 1
    return {
        "recording_id": recording["id"],
        "audio_uri": resolve_near(folder_of(path), source["source"]),
        "channel": source["channels"].index(wanted[0]) if several and len(wanted) == 1 else None,
        "start_s": start_s,
        "duration_s": duration_s,
    }


def _said(cut: Mapping[str, Any]) -> dict[str, Any]:
    supervisions = sorted(cut.get("supervisions") or [], key=lambda s: float(s["start"]))
    texts = [s["text"] for s in supervisions if s.get("text") is not None]
    custom = {**(cut.get("custom") or {})}
    for supervision in supervisions:
        custom |= supervision.get("custom") or {}
    plain = [(k, str(v)) for k, v in custom.items() if isinstance(v, str | int | float) and not isinstance(v, bool)]
    return {
        "reference": " ".join(texts) if texts else None,
        "speaker_id": _agreed(supervisions, "speaker"),
        "language": _agreed(supervisions, "language"),
        "attributes": plain or None,
    }


def _agreed(supervisions: list[dict[str, Any]], key: str) -> str | None:
    found = {supervision.get(key) for supervision in supervisions}
    return found.pop() if len(found) == 1 else None
