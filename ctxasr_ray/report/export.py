"""TRANSCRIPTS, HYPOTHESES, UTTERANCES -> files of other tools: trn, ctm, stm, Kaldi text, NeMo JSON lines, N-best.

Ids and words are written as they are; what a format cannot hold is refused and named. White space inside a text becomes
single spaces where a format separates words by it. An utterance whose decoding failed is written as an empty
transcript, so that every scorer counts it as deletions.
"""

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from ctxasr_ray.corpora import nemo
from ctxasr_ray.metrics.spoken import plain_words

_IGNORED: Final = "ignore_time_segment_in_scoring"


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """What was written, and what was not."""

    path: Path
    num_written: int
    """Utterances in the file; in a ctm, words."""
    left_out: tuple[str, ...]
    """Utterances without a reference, where references were asked for and the format has no word for unknown."""
    failed: tuple[str, ...] = ()
    """Utterances whose decoding failed, written as empty transcripts."""


@dataclass(frozen=True, slots=True)
class _Row:
    """An utterance and what is said of it."""

    utterance: Mapping[str, Any]
    text: str | None
    words: Sequence[Mapping[str, Any]]

    @property
    def name(self) -> str:
        return str(self.utterance["utterance_id"])

    @property
    def place(self) -> tuple[str, str, float]:
        """File, channel as sclite counts them (from 1), and start in seconds."""
        recording = self.utterance["recording_id"] or self.name
        channel = self.utterance["channel"]
        return str(recording), "1" if channel is None or channel < 0 else str(channel + 1), self.utterance["start_s"]


def export(
    form: str,
    path: str | Path,
    *,
    utterances: pa.Table,
    transcripts: pa.Table | None = None,
    hypotheses: pa.Table | None = None,
) -> Exported:
    """Writes one file, whole or not at all; an earlier one is replaced.

    Args:
        form: One of `FORMATS`. trn, stm, kaldi: the transcripts, or without them the references. nemo: the manifest
            with the references as `text` and the transcripts as `pred_text`. ctm: the words of the transcripts with
            times. nbest: the hypotheses with all that is known of them, one JSON object per line.
        path: Of the file; its folder is made if missing.
        utterances: UTTERANCES, any splits.
        transcripts: TRANSCRIPTS of exactly these utterances, in any order.
        hypotheses: HYPOTHESES, for nbest.

    Returns:
        What was written and what was left out.

    Raises:
        ValueError: an unknown format, the table that it needs is not given or is of other utterances, or an id,
            a text or a time that the format cannot hold, naming the utterance.
    """
    if form not in FORMATS:
        raise ValueError(f"export: format '{form}' is unknown; choose one of {', '.join(FORMATS)}.")
    if form == "nbest":
        if hypotheses is None:
            raise ValueError("export: nbest needs HYPOTHESES, for example of the step first_pass; got none.")
        lines = list(_nbest(hypotheses))
        return Exported(path=_write(path, lines), num_written=len(lines), left_out=())
    if form == "ctm" and transcripts is None:
        raise ValueError("export: ctm needs TRANSCRIPTS, whose words have times; references have none.")
    rows = _rows(utterances, transcripts)
    if form == "nemo" and transcripts is None:
        rows = [replace(row, text=None) for row in rows]  # `text` of a manifest is the reference anyway
    unknown = [row.name for row in rows if row.text is None] if form in ("trn", "kaldi") else []
    lines = list(_WRITERS[form]([row for row in rows if row.text is not None] if unknown else rows))
    failed = () if transcripts is None else _failed(transcripts)
    return Exported(path=_write(path, lines), num_written=len(lines), left_out=tuple(unknown), failed=failed)


def _failed(transcripts: pa.Table) -> tuple[str, ...]:
    return tuple(transcripts.filter(pc.is_valid(transcripts["error_type"]))["utterance_id"].to_pylist())


def _rows(utterances: pa.Table, transcripts: pa.Table | None) -> list[_Row]:
    rows = utterances.to_pylist()
    if transcripts is None:
        return [_Row(row, row["reference"], ()) for row in rows]
    said = {row["utterance_id"]: row for row in transcripts.select(["utterance_id", "text", "words"]).to_pylist()}
    ids = [row["utterance_id"] for row in rows]
    odd = sorted(set(ids) ^ set(said))
    if odd:
        side = "transcripts" if odd[0] in said else "utterances"
        raise ValueError(
            f"export: '{odd[0]}' stands in {side} only ({len(odd)} such); give both tables of one run and corpus."
        )
    return [_Row(row, said[id_]["text"], said[id_]["words"]) for row, id_ in zip(rows, ids, strict=True)]


def _name(value: str, row: _Row, forbidden: str = r"\s") -> str:
    if re.search(forbidden, value) or not value:
        raise ValueError(
            f"export: utterance '{row.name}': the name '{value}' holds white space or brackets, which this format "
            "cannot hold. Rename it in the manifest, or export nemo or nbest."
        )
    return value


def _sclite_text(row: _Row, number: int) -> str:
    return plain_words(f"export of utterance '{row.name}'", number, " ".join((row.text or "").split()))


def _trn(rows: Sequence[_Row]) -> Iterator[str]:
    for number, row in enumerate(rows, start=1):
        utterance_id = _name(row.name, row, r"[\s()]")
        yield f"{_sclite_text(row, number)} ({utterance_id})"


def _kaldi(rows: Sequence[_Row]) -> Iterator[str]:
    """Sorted as `LC_ALL=C sort` does, which Kaldi's tools ask for."""
    for row in sorted(rows, key=lambda row: row.name.encode()):
        yield f"{_name(row.name, row)} {' '.join((row.text or '').split())}".rstrip()


def _stm(rows: Sequence[_Row]) -> Iterator[str]:
    for number, row in enumerate(sorted(rows, key=lambda row: row.place), start=1):
        file, channel, start_s = row.place
        if row.utterance["duration_s"] is None:
            raise ValueError(f"export: utterance '{row.name}' has no duration_s, and stm needs its end; export trn.")
        speaker = _name(row.utterance["speaker_id"] or "unknown", row)
        text = _IGNORED if row.text is None else _sclite_text(row, number)
        if text.startswith("<"):
            text = f"<o> {text}"  # or the first word would be taken for a label
        end_s = start_s + row.utterance["duration_s"]
        yield f"{_name(file, row)} {channel} {speaker} {start_s:.3f} {end_s:.3f} {text}".rstrip()


def _ctm(rows: Sequence[_Row]) -> Iterator[str]:
    timed = []
    for row in rows:
        file, channel, start_s = row.place
        for word in row.words:
            if word["start_s"] is None or word["end_s"] is None:
                raise ValueError(
                    f"export: utterance '{row.name}', word '{word['word']}' has no time, and ctm is made of times "
                    "(recognisers with one token per character have them). Export trn or stm."
                )
            begin_s = start_s + word["start_s"]
            confidence = "" if word["confidence"] is None else f" {word['confidence']:.4f}"
            length_s = max(0.0, word["end_s"] - word["start_s"])
            line = f"{_name(file, row)} {channel} {begin_s:.3f} {length_s:.3f} {word['word']}{confidence}"
            timed.append(((file, channel, begin_s), line))
    yield from (line for _, line in sorted(timed, key=lambda pair: pair[0]))


def _nemo(rows: Sequence[_Row]) -> Iterator[str]:
    for row in rows:
        predicted = {} if row.text is None else {"pred_text": row.text}
        yield nemo.manifest_line(row.utterance, predicted)


def _nbest(hypotheses: pa.Table) -> Iterator[str]:
    for row in hypotheses.to_pylist():
        found = [{name: value for name, value in entry.items() if value is not None} for entry in row["hypotheses"]]
        known = {**row, "hypotheses": found}
        yield json.dumps({name: value for name, value in known.items() if value is not None}, ensure_ascii=False)


_WRITERS: Final[Mapping[str, Callable[[Sequence[_Row]], Iterator[str]]]] = {
    "trn": _trn,
    "ctm": _ctm,
    "stm": _stm,
    "kaldi": _kaldi,
    "nemo": _nemo,
}
FORMATS: Final = (*_WRITERS, "nbest")


def _write(path: str | Path, lines: Sequence[str]) -> Path:
    place = Path(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    part = place.with_name(f".{place.name}.{os.getpid()}")
    part.write_text("".join(f"{line}\n" for line in lines), "utf-8", newline="\n")
    part.replace(place)
    return place
