"""stm segments and ctm words -> utterances: each word joins the segment that holds its middle."""

import math
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from ctxasr_ray.corpora.lines import ManifestError, read_lines
from ctxasr_ray.metrics.spoken import Spoken, plain_words

_IGNORED: Final = {"ignore_time_segment_in_scoring", "inter_segment_gap"}


def read_stm(path: str | Path, is_reference: bool) -> Iterator[tuple[int, Spoken]]:
    """Segments of an stm file with their line numbers; ignored ones have no text.

    Raises:
        ManifestError: a line that is no segment, naming it.
    """
    assert is_reference, "hypotheses of stm references are ctm"
    for number, line in read_lines(path):
        if line.startswith(";;"):
            continue
        cells = line.split(maxsplit=5)
        if len(cells) < 5:
            raise ManifestError(path, "expected: file channel speaker start end [<labels>] words", number)
        start, end = (_seconds(path, number, cell) for cell in cells[3:5])
        text = re.sub(r"^<[^>]*>\s*", "", cells[5] if len(cells) > 5 else "")
        ignored = text.strip().lower() in _IGNORED
        yield (
            number,
            Spoken(
                utterance_id=f"{cells[0]}-{cells[1]}-{start:.3f}-{end:.3f}",
                text=None if ignored else plain_words(path, number, text),
                speaker_id=cells[2],
                session_id=cells[0],
                segment=(f"{cells[0]}-{cells[1]}", start, end),
            ),
        )


def _seconds(path: str | Path, number: int, cell: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0:
        raise ManifestError(path, f"got '{cell}', expected seconds of at least 0", number)
    return value


def read_ctm(path: str | Path, references: Sequence[Spoken]) -> dict[str, str]:
    """Utterance id -> words in the order of their times.

    A word outside every segment joins the nearest one of its file and channel: nobody said it, so it counts there.

    Args:
        path: Local path or URL.
        references: Of `read_stm`.

    Raises:
        ManifestError: a line that is no timed word, naming it.
    """
    segments: dict[str, list[tuple[float, float, str]]] = {}
    for spoken in references:
        if spoken.segment is not None:
            segments.setdefault(spoken.segment[0], []).append((*spoken.segment[1:], spoken.utterance_id))
    for own in segments.values():
        own.sort()
    words: dict[str, list[tuple[float, str]]] = {spoken.utterance_id: [] for spoken in references}
    for number, line in read_lines(path):
        if line.startswith(";;"):
            continue
        cells = line.split()
        if len(cells) not in (5, 6) or cells[4].startswith("<ALT"):
            raise ManifestError(path, "expected: file channel start duration word [confidence]", number)
        start, duration = (_seconds(path, number, cell) for cell in cells[2:4])
        if len(cells) == 6 and cells[5] not in ("-", "NA"):
            _seconds(path, number, cells[5])
        line_id = f"{cells[0]}-{cells[1]}"
        owner = _owner(segments[line_id], start + duration / 2) if line_id in segments else line_id
        words.setdefault(owner, []).append((start, cells[4]))
    return {owner: " ".join(word for _, word in sorted(said, key=lambda w: w[0])) for owner, said in words.items()}


def _owner(segments: Sequence[tuple[float, float, str]], middle: float) -> str:
    """The segment that holds a time, else the one whose edge is nearest."""
    after = bisect_right(segments, middle, key=lambda segment: segment[0])
    near = segments[max(0, after - 2) : after + 1]
    return min(near, key=lambda segment: max(segment[0] - middle, middle - segment[1], 0.0))[2]
