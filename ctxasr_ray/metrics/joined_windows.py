"""UTTERANCES, TRANSCRIPTS -> TRANSCRIPTS in which a recording's windows are one text, at window 0.

A recording in windows (`corpora/segmentation.py`) has its reference at window 0 and null at the others; each channel is
a recording of its own. Before errors are counted, what its windows heard is joined, each word once:

- Words with times: in the overlap of two windows a word belongs to the window in whose half its middle lies. A word
  that both windows heard (equal but for case and punctuation, middles at most 0.25 s apart) has the mean of its two
  middles, so that it neither vanishes nor comes twice where the two disagree about its time; such words keep the order
  in which they were heard.
- Words without times: the longest run of words that ends the first window and begins the second one is kept once. It
  must be longer than what lies between it and the two ends; without such a run nothing is dropped.
- A window that failed heard nothing, and its neighbours keep all that they heard.

The overlap must be longer than the longest word, or a word may be whole in neither window. Text without spaces
(Chinese, Japanese) is one word per window to this rule: cut it where there is silence, without overlap.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ctxasr_ray import text
from ctxasr_ray.schema import TRANSCRIPTS, ContractError

WINDOW_COLUMNS: Final = ("reference", "recording_id", "window_index", "channel", "start_s", "duration_s")
"""Columns of UTTERANCES that `join_windows` reads."""
WORD_COLUMNS: Final = ("text", "words", "error_type")
"""Columns of TRANSCRIPTS that `join_windows` reads."""
SAME_WORD_S: Final = 0.25
"""Two windows that heard one word place its middle at most this far apart; a short word lasts as long."""
MAX_WORDS_PER_S: Final = 6.0
"""Nobody speaks faster for long: how many words at most can lie in an overlap whose words have no times."""


@dataclass(frozen=True, slots=True)
class Word:
    """A word as a window heard it; seconds of the recording, None where unknown."""

    word: str
    start_s: float | None = None
    end_s: float | None = None
    confidence: float | None = None
    origin: str = "search"

    @property
    def middle_s(self) -> float | None:
        """Half way from start to end."""
        return None if self.start_s is None or self.end_s is None else (self.start_s + self.end_s) / 2


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of a recording, in its seconds, and the words that were heard in it, in order."""

    start_s: float
    end_s: float
    words: Sequence[Word]


def recordings(utterances: pa.Table) -> list[list[int]]:
    """Rows of each recording in windows, window 0 first; several windows with one reference, or with none.

    Windows that have references of their own are utterances of their own and not given here.

    Args:
        utterances: With `reference`, `recording_id`, `window_index` and `channel`; recordings are told apart by
            `corpus` too where that column is there.

    Raises:
        ContractError: a recording with a reference lacks a window, or has one twice.
    """
    if utterances.column("window_index").null_count == utterances.num_rows:
        return []
    names = [name for name in ("corpus", "recording_id", "channel") if name in utterances.column_names]
    keys = list(zip(*(utterances.column(name).to_pylist() for name in names), strict=True))
    index = utterances.column("window_index").to_pylist()
    has_reference = utterances.column("reference").is_valid().to_pylist()
    recording_ids = utterances.column("recording_id").to_pylist()
    members: dict[tuple[Any, ...], list[int]] = {}
    for row, key in enumerate(keys):
        if index[row] is not None and recording_ids[row] is not None:
            members.setdefault(key, []).append(row)
    found = []
    for key, rows in members.items():
        rows.sort(key=lambda row: index[row])
        if len(rows) == 1 or index[rows[0]] != 0 or any(has_reference[row] for row in rows if index[row] != 0):
            continue
        numbers = [index[row] for row in rows]
        if any(has_reference[row] for row in rows) and numbers != list(range(len(rows))):
            first = next(i for i, number in enumerate(numbers) if i != number)
            raise ContractError(
                f"utterances, recording {key}: got window_index {numbers[first]} where {first} was expected, among "
                f"{len(rows)} windows with one reference. All windows of a recording stand in one shard, each once; "
                "write the manifest again with `ctxasr prepare --segment`."
            )
        found.append(rows)
    return found


def later_windows(utterances: pa.Table) -> npt.NDArray[np.bool_]:
    """(U,) True for windows whose recording has its reference, known or not, at window 0."""
    mask = np.zeros(utterances.num_rows, bool)
    for rows in recordings(utterances):
        mask[rows[1:]] = True
    return mask


def references_of_whole_rows(utterances: pa.Table) -> list[str | None]:
    """(U,) references, null where the row is one of several windows: no single list can be held to it."""
    references: list[str | None] = utterances.column("reference").to_pylist()
    for rows in recordings(utterances):
        for row in rows:
            references[row] = None
    return references


def join_windows(utterances: pa.Table, transcripts: pa.Table) -> pa.Table:
    """TRANSCRIPTS with the joined text and words of each recording at window 0 and nothing at its other windows.

    Args:
        utterances: Row for row those of the transcripts, with `WINDOW_COLUMNS`.
        transcripts: With `WORD_COLUMNS`; word times count from the start of each window.

    Returns:
        The same table where no recording is in windows. Else word times at window 0 count from its start, and its
        row is failed if all windows failed.

    Raises:
        ContractError: as `recordings`.
    """
    groups = recordings(utterances)
    if not groups:
        return transcripts
    texts, words, errors = (transcripts.column(name).to_pylist() for name in WORD_COLUMNS)
    starts, durations = (utterances.column(name).to_pylist() for name in ("start_s", "duration_s"))
    for rows in groups:
        ends = [math.inf if durations[row] is None else starts[row] + durations[row] for row in rows]
        windows = [
            Window(starts[row], end, _words(texts[row], words[row], starts[row]))
            for row, end in zip(rows, ends, strict=True)
            if errors[row] is None
        ]
        joined = join_words(windows)
        first = rows[0]
        for row in rows[1:]:
            texts[row], words[row], errors[row] = "", [], None
        texts[first] = " ".join(word.word for word in joined)
        words[first] = [_plain(word, starts[first]) for word in joined]
        errors[first] = None if windows else errors[first]
    for name, column in zip(WORD_COLUMNS, (texts, words, errors), strict=True):
        field = TRANSCRIPTS.field(name)
        at = transcripts.schema.get_field_index(name)
        transcripts = transcripts.set_column(at, field, pa.array(column, field.type))
    return transcripts


def join_words(windows: Sequence[Window]) -> list[Word]:
    """Words of a recording, each once, by the rule at the top of this file.

    Args:
        windows: In the order of time; words in the order in which they were heard.
    """
    kept = [[True] * len(window.words) for window in windows]
    for k, (left, right) in enumerate(pairwise(windows)):
        if left.end_s <= right.start_s:
            continue
        middles = [[word.middle_s for word in window.words] for window in (left, right)]
        dropped = (
            _apart_by_text(left, right)
            if None in middles[0] or None in middles[1]
            else _apart_by_time(left, right, *([m for m in side if m is not None] for side in middles))
        )
        for side, rows in zip((k, k + 1), dropped, strict=True):
            for row in rows:
                kept[side][row] = False
    return [
        word
        for window, mask in zip(windows, kept, strict=True)
        for word, keep in zip(window.words, mask, strict=True)
        if keep
    ]


def _apart_by_time(
    left: Window, right: Window, left_middles: list[float], right_middles: list[float]
) -> tuple[list[int], list[int]]:
    """Words that belong to the other window: those of the left one past the middle of the overlap, and vice versa."""
    half = (right.start_s + min(left.end_s, right.end_s)) / 2
    near_left = [i for i, m in enumerate(left_middles) if m >= right.start_s - SAME_WORD_S]
    near_right = [j for j, m in enumerate(right_middles) if m <= left.end_s + SAME_WORD_S]
    left_middles, right_middles = list(left_middles), list(right_middles)
    left_words, right_words = (_comparable(window.words, at) for window, at in ((left, near_left), (right, near_right)))
    apart = sorted(
        (abs(right_middles[j] - left_middles[i]), i, j)
        for i, word in zip(near_left, left_words, strict=True)
        for j, other in zip(near_right, right_words, strict=True)
        if word == other and abs(right_middles[j] - left_middles[i]) <= SAME_WORD_S
    )
    pairs: list[tuple[int, int]] = []
    for _, i, j in apart:  # the nearest first: of two equal words in a row each finds its own copy
        if all((i - a) * (j - b) > 0 for a, b in pairs):
            pairs.append((i, j))
    latest = -math.inf
    for i, j in sorted(pairs):  # as they were heard, even where the means of two neighbours stand the other way round
        latest = max(latest, (left_middles[i] + right_middles[j]) / 2)
        left_middles[i] = right_middles[j] = latest
    return [i for i, m in enumerate(left_middles) if m >= half], [j for j, m in enumerate(right_middles) if m < half]


def _apart_by_text(left: Window, right: Window) -> tuple[list[int], list[int]]:
    """The second copy of the run that both windows have, and what the left window heard behind it."""
    most = math.ceil((min(left.end_s, right.end_s) - right.start_s) * MAX_WORDS_PER_S)
    first = max(0, len(left.words) - most)
    ending = _comparable(left.words, range(first, len(left.words)))
    beginning = _comparable(right.words, range(min(most, len(right.words))))
    best, ends = (0, 0), (len(ending), 0)
    lengths = [0] * (len(beginning) + 1)
    for i, word in enumerate(ending, start=1):
        row = [0] * (len(beginning) + 1)
        for j, other in enumerate(beginning, start=1):
            if word == other:
                length = row[j] = lengths[j - 1] + 1
                between = (len(ending) - i) + (j - length)
                if length > between and (length - between, length) > best:
                    best, ends = (length - between, length), (i, j)
        lengths = row
    return list(range(first + ends[0], len(left.words))), list(range(ends[1]))


def _comparable(words: Sequence[Word], at: Sequence[int]) -> list[str]:
    return text.units([words[i].word for i in at], "basic", "word")


def _words(said: str, words: Sequence[Mapping[str, Any]], offset_s: float) -> list[Word]:
    """A window's words in seconds of the recording; those of the text, without times, where none are stored."""
    if len(words) != len(said.split()):
        return [Word(word) for word in said.split()]

    def placed(time_s: float | None) -> float | None:
        return None if time_s is None else offset_s + time_s

    return [Word(w["word"], placed(w["start_s"]), placed(w["end_s"]), w["confidence"], w["origin"]) for w in words]


def _plain(word: Word, offset_s: float) -> dict[str, Any]:
    return {
        "word": word.word,
        "start_s": None if word.start_s is None else word.start_s - offset_s,
        "end_s": None if word.end_s is None else word.end_s - offset_s,
        "confidence": word.confidence,
        "origin": word.origin,
    }
