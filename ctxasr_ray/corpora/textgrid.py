"""TextGrids with their recordings, as in PriMock57: one per speaker, or one tier per speaker -> UTTERANCES."""

import itertools
import re
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from ctxasr_ray import schema
from ctxasr_ray.corpora.folder import EXTENSIONS
from ctxasr_ray.corpora.lines import ManifestError, corpus_name, split_of
from ctxasr_ray.corpora.praat import Interval, Tier, read_tiers

_TAG: Final = re.compile(r"<[^<>]*>|[<>]")
_UNSURE: Final = ("<UNSURE>", "</UNSURE>")
"""Around words that the transcriber was not sure of; they stay."""
_UNHEARD: Final = ("<UNIN/>", "<INAUDIBLE_SPEECH/>")
"""Where the transcriber could not make out what was said."""
_FOLDERS: Final = (".", "../audio", "audio", "../wav", "wav")
"""Where, from a TextGrid, its recording may lie."""


def read(path: str | Path, corpus: str | None = None) -> pa.Table:
    """Reads one TextGrid, or all below a folder.

    Args:
        path: A TextGrid, or a folder such as PriMock57 with `transcripts/*.TextGrid` and `audio/*.wav`. A recording
            has its TextGrid's name.
        corpus: Name of the corpus; by default the folder's.

    Returns:
        UTTERANCES, one per interval with a label. `NAME_doctor` and `NAME_patient`, two channels of one consultation,
        are speakers of the session `NAME`. Tags are taken out of the reference: `unsure` and `unintelligible` among
        the attributes count them; where nothing is intelligible the reference is unknown. A recording that is not
        there is named where it was expected, and its rows fail when it is read.

    Raises:
        ManifestError: no TextGrid, none with a label, a tag that is not known or not closed, tiers of one recording
            that overlap, or a file refused by `praat.read_tiers`.
    """
    top = Path(path).absolute()
    files = sorted(top.rglob("*.TextGrid")) if top.is_dir() else [top]
    if not files:
        raise ManifestError(path, "holds no .TextGrid file")
    name = corpus or corpus_name(top / "manifest" if top.is_dir() else top)
    rows: list[dict[str, Any]] = []
    owner: dict[str, Path] = {}
    for file in files:
        first = owner.setdefault(file.stem, file)
        if first != file:
            raise ManifestError(file, f"has the name of {first}; rename one of them and its recording")
        rows += [{**row, "corpus": name} for row in _recording(file)]
    if not rows:
        raise ManifestError(path, f"no interval of its {len(files)} TextGrid(s) has a label; transcribe one")
    return schema.conform(pa.Table.from_pylist(rows, schema=schema.UTTERANCES), "utterances")


def _recording(file: Path) -> list[dict[str, Any]]:
    tiers = read_tiers(file)
    spoken = sorted(
        ((interval, tier) for tier in tiers for interval in tier.intervals if interval.text),
        key=lambda pair: pair[0].start_s,
    )
    _refuse_overlap(file, spoken)
    session, _, role = file.stem.rpartition("_")
    common = {
        "split": split_of(file.parent.name),
        "session_id": session or file.stem,
        "recording_id": file.stem,
        "audio_uri": str(_audio(file)),
    }
    rows = []
    for interval, tier in spoken:
        speaker = file.stem if len(tiers) == 1 else f"{file.stem}-{tier.name}"
        reference, marks = _said(file, interval)
        rows.append(
            {
                **common,
                "utterance_id": f"{speaker}-{interval.start_s:.3f}-{interval.end_s:.3f}",
                "speaker_id": speaker,
                "start_s": interval.start_s,
                "duration_s": interval.end_s - interval.start_s,
                "reference": reference,
                "attributes": [("role", role if len(tiers) == 1 else tier.name), *marks],
            }
        )
    return rows


def _refuse_overlap(file: Path, spoken: list[tuple[Interval, Tier]]) -> None:
    for (before, tier), (after, other) in itertools.pairwise(spoken):
        if tier is not other and after.start_s < before.end_s:
            raise ManifestError(
                file,
                f"'{other.name}' speaks from {after.start_s} s on, while '{tier.name}' speaks until {before.end_s} s "
                f"(line {before.line}): what both say is in one recording; give each speaker a recording and a "
                f"TextGrid of their own ({file.stem}_{other.name}.TextGrid), or merge the two intervals",
                after.line,
            )


def _said(file: Path, interval: Interval) -> tuple[str | None, list[tuple[str, str]]]:
    """The words without tags, null where none is intelligible, and how often tags of each kind stand there."""
    tags = _TAG.findall(interval.text)
    unknown = next((tag for tag in tags if tag not in (*_UNSURE, *_UNHEARD)), None)
    if unknown is not None:
        known = f"{_UNSURE[0]}...{_UNSURE[1]}, {', '.join(_UNHEARD)}"
        problem = f"tag '{unknown}' is unknown, expected {known}; mend the transcript or take the tag out"
        raise ManifestError(file, problem, interval.line)
    unsure = [tag for tag in tags if tag in _UNSURE]
    if unsure != [*_UNSURE] * (len(unsure) // 2):
        raise ManifestError(file, f"{_UNSURE[0]} and {_UNSURE[1]} do not alternate; mend the transcript", interval.line)
    counts = (("unsure", len(unsure) // 2), ("unintelligible", len(tags) - len(unsure)))
    words = " ".join(_TAG.sub(" ", interval.text).split())
    return words or None, [(name, str(count)) for name, count in counts if count]


def _audio(file: Path) -> Path:
    places = [
        (file.parent / folder).resolve() / f"{file.stem}{end}" for folder in _FOLDERS for end in sorted(EXTENSIONS)
    ]
    return next(
        (place for place in places if place.is_file()), (file.parent / "../audio").resolve() / f"{file.stem}.wav"
    )
