"""UTTERANCES with long recordings -> UTTERANCES with windows of them; audio is only addressed, never copied.

A row longer than `window_s` becomes windows of its own stretch of audio, numbered from 0 in the order of time. The
reference and the keywords of the row stand at window 0 and are null at the others: they belong to all of them together,
and `metrics/joined_windows.py` joins what the windows heard. A shorter row, and one that cannot be read, stays as is.
"""

import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ctxasr_ray import audio, schema
from ctxasr_ray.corpora.voice_activity import HOP_S, band_levels, speech_levels, speech_runs

PROBLEM: Final = "segmentation_error"
"""Attribute of a row that could not be cut: why."""
_QUIET_FRAMES: Final = 20
"""Frames (0.2 s) over which the quietest place of long speech is looked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowConfig:
    """Where long recordings are cut."""

    window_s: float = 30.0
    """Longest window in seconds; shorter recordings are not cut. 30 is all that Whisper hears at once."""
    overlap_s: float = 2.0
    """Seconds that two windows share where a cut may fall into speech: every fixed cut, and vad's cuts in speech that
    is longer than a window. Longer than the longest word, at most half a window; 0 shares nothing."""
    padding_s: float = 0.25
    """vad: seconds kept before and after speech."""
    min_silence_s: float = 0.5
    """vad: shorter gaps belong to the speech around them."""
    max_pause_s: float = 2.0
    """vad: stretches of speech that are at most this far apart share a window while they fit."""
    min_speech_s: float = 0.1
    """vad: shorter stretches are clicks."""
    speech_db: float = 8.0
    """vad: dB above the noise floor at which speech starts; half as many keep it going. At 8, 15 minutes of
    steady noise start it at most once, and speech at 0 dB SNR is found whole (espeak voices, four colours of noise)."""

    def __post_init__(self) -> None:
        """Refuses windows that cannot be cut."""
        if not self.window_s >= 1:
            raise ValueError(f"window_s is {self.window_s}; expected at least 1 second, for example 30.")
        if not 0 <= self.overlap_s <= self.window_s / 2:
            raise ValueError(
                f"overlap_s is {self.overlap_s} and window_s {self.window_s}; expected an overlap from 0 to half a "
                f"window ({self.window_s / 2:g} s). Shorten the overlap or lengthen the window."
            )
        for name in ("padding_s", "min_silence_s", "max_pause_s", "min_speech_s"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; expected seconds of at least 0.")
        if not self.speech_db > 0:
            raise ValueError(f"speech_db is {self.speech_db}; expected decibels above 0, for example 8.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Segmented:
    """A corpus in windows, and what became of its recordings."""

    utterances: pa.Table
    num_rows: int
    """Rows of the corpus as it was."""
    num_cut: int
    """Streams (a recording, or one channel of it) that became windows."""
    num_windows: int
    cut_s: float
    """Seconds of audio of the streams that were cut."""
    heard_s: float
    """Seconds of audio in their windows, overlaps counted once for each window."""
    problems: Mapping[str, str]
    """utterance_id -> why it could not be cut; its row stands as it was."""

    def __str__(self) -> str:
        """What a person wants to know, in a few lines."""
        kept = self.utterances.num_rows - self.num_windows
        lines = [
            f"{self.num_cut} long recordings or channels ({self.cut_s / 3600:.2f} h) became {self.num_windows} windows "
            f"({self.heard_s / 3600:.2f} h); {kept} rows stayed as they were"
        ]
        lines += [f"not cut: {name}: {problem}" for name, problem in list(self.problems.items())[:5]]
        if len(self.problems) > 5:
            lines.append(f"not cut: {len(self.problems) - 5} more, see the attribute {PROBLEM} of their rows")
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class _Stream:
    """A row of the corpus, or one channel of it, and where its windows are."""

    row: dict[str, Any]
    windows: Sequence[tuple[float, float]] = ()
    duration_s: float = 0.0
    problem: str | None = None


def segment(utterances: pa.Table, method: Literal["vad", "fixed"], config: WindowConfig) -> Segmented:
    """Cuts every row that is longer than a window.

    A row without a channel of a recording with several becomes one stream per channel, unless it has a reference:
    that would have to be one per channel, so such a row is not cut and says so. Rows that share a recording and a
    channel (segments with times) are cut inside their own borders, each with its own reference; their windows get a
    `recording_id` of their own, and the recording becomes their session where they have none.

    Args:
        utterances: UTTERANCES of a corpus, as its reader gives them.
        method: `vad`: windows around speech; speech longer than a window is cut at its quietest places. A recording
            without speech has one window, where it is loudest. `fixed`: one window after another, each sharing
            `overlap_s` with the next.
        config: Lengths and thresholds.

    Raises:
        ValueError: an unknown method.
        OSError: the disk or the network failed.
    """
    if method not in ("vad", "fixed"):
        raise ValueError(f"segment is '{method}'; choose vad (windows around speech) or fixed.")
    rows = utterances.to_pylist()
    shared = Counter((row["corpus"], row["recording_id"], row["channel"]) for row in rows)
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1), thread_name_prefix="segment") as pool:
        streams = [s for found in pool.map(lambda row: _streams(row, method, config), rows) for s in found]
    made: list[dict[str, Any]] = []
    for stream in streams:
        alone = shared[stream.row["corpus"], stream.row["recording_id"], stream.row["channel"]] <= 1
        made += _window_rows(stream, alone)
    cut = [stream for stream in streams if stream.windows]
    return Segmented(
        utterances=schema.conform(pa.Table.from_pylist(made, schema=schema.UTTERANCES), "utterances"),
        num_rows=len(rows),
        num_cut=len(cut),
        num_windows=sum(len(stream.windows) for stream in cut),
        cut_s=sum(stream.duration_s for stream in cut),
        heard_s=sum(end - start for stream in cut for start, end in stream.windows),
        problems={stream.row["utterance_id"]: stream.problem for stream in streams if stream.problem},
    )


def fixed_windows(duration_s: float, config: WindowConfig) -> list[tuple[float, float]]:
    """(start, end) of windows of `window_s`, each sharing `overlap_s` with the next; the last one ends with the audio.

    Args:
        duration_s: Seconds of audio, above 0.
        config: Only `window_s` and `overlap_s` are read.
    """
    hop = config.window_s - config.overlap_s
    count = max(1, int(np.ceil(round((duration_s - config.overlap_s) / hop, 9))))
    return [(i * hop, min(duration_s, i * hop + config.window_s)) for i in range(count)]


def speech_windows(
    speech: Sequence[tuple[float, float]], above_F: npt.NDArray[np.float32], duration_s: float, config: WindowConfig
) -> list[tuple[float, float]]:
    """(start, end) of windows that hold all speech, none longer than `window_s`.

    Args:
        speech: Stretches of speech in order, of `speech_runs`.
        above_F: Of `speech_levels`; long speech is cut where it is lowest.
        duration_s: Of the audio.
        config: Lengths.
    """
    if not speech:
        return [_loudest(above_F, duration_s, config.window_s)]
    windows: list[tuple[float, float]] = []
    for start, end in (piece for run in _padded(speech, duration_s, config) for piece in _cut(*run, above_F, config)):
        last = windows[-1] if windows else None
        if last and end - last[0] <= config.window_s and start - last[1] <= config.max_pause_s:
            windows[-1] = (last[0], end)
        else:
            windows.append((start, end))
    return windows


def _padded(
    speech: Sequence[tuple[float, float]], duration_s: float, config: WindowConfig
) -> Iterator[tuple[float, float]]:
    """Speech with `padding_s` around it, at most half of the gap to its neighbour."""
    for i, (start, end) in enumerate(speech):
        before = start if i == 0 else (start - speech[i - 1][1]) / 2
        after = duration_s - end if i == len(speech) - 1 else (speech[i + 1][0] - end) / 2
        yield start - min(config.padding_s, before), min(duration_s, end + min(config.padding_s, max(0.0, after)))


def _cut(
    start: float, end: float, above_F: npt.NDArray[np.float32], config: WindowConfig
) -> Iterator[tuple[float, float]]:
    """One stretch of speech in pieces that fit; two pieces share `overlap_s` around the quietest place between them."""
    half, core = config.overlap_s / 2, config.window_s - config.overlap_s
    begin = start
    while end - begin > config.window_s:
        # begin is half an overlap before the last cut, so that every piece is at most a window long
        low, high = begin + half + core / 2, begin + half + core
        quiet = _quietest(above_F, low, high)
        yield begin, quiet + half
        begin = quiet - half
    yield begin, end


def _quietest(above_F: npt.NDArray[np.float32], low: float, high: float) -> float:
    """Middle of the quietest 0.2 s between two times."""
    first, last = round(low / HOP_S), round(high / HOP_S)
    levels = above_F[first:last].astype(np.float64)
    if len(levels) <= _QUIET_FRAMES:
        return (low + high) / 2
    sums = np.cumsum(np.insert(levels, 0, 0.0))
    at = int(np.argmin(sums[_QUIET_FRAMES:] - sums[:-_QUIET_FRAMES]))
    return (first + at + _QUIET_FRAMES / 2) * HOP_S


def _loudest(above_F: npt.NDArray[np.float32], duration_s: float, window_s: float) -> tuple[float, float]:
    """The window with the highest level, for a recording in which no speech was found: it might have been missed."""
    if duration_s <= window_s or not len(above_F):
        return 0.0, min(duration_s, window_s)
    middle = int(np.argmax(above_F)) * HOP_S
    start = min(max(0.0, middle - window_s / 2), duration_s - window_s)
    return start, start + window_s


def _streams(row: dict[str, Any], method: str, config: WindowConfig) -> list[_Stream]:
    """The row as one stream, or as one per channel, with its windows where it is longer than one."""
    try:
        info = audio.probe(row["audio_uri"])
    except audio.AudioError as error:
        return [_Stream(row, problem=str(error))]
    left_s = info.duration_s - row["start_s"]
    duration_s = left_s if row["duration_s"] is None else row["duration_s"]
    if duration_s <= config.window_s or row["window_index"] is not None:
        return [_Stream(row)]
    problem = None
    if duration_s > left_s + audio.SHORTFALL_S:
        problem = f"{row['audio_uri']}: ends {duration_s - left_s:.2f} s before the row does ({info.duration_s:.2f} s)"
    elif row["channel"] is None and info.num_channels > 1:
        if row["reference"] is None:
            streams = [_channel_of(row, channel) for channel in range(info.num_channels)]
            return [found for stream in streams for found in _streams(stream, method, config)]
        problem = (
            f"{row['audio_uri']}: has {info.num_channels} channels and one reference; write one line per channel "
            f"(channel 0 to {info.num_channels - 1}), or channel {audio.MIX_DOWN} to mix them down"
        )
    elif row["channel"] is not None and not audio.MIX_DOWN <= row["channel"] < info.num_channels:
        problem = f"{row['audio_uri']}: has {info.num_channels} channel(s), numbered from 0; got {row['channel']}"
    if problem:
        return [_Stream(row, problem=problem)]
    duration_s = min(duration_s, left_s)
    if method == "fixed":
        return [_Stream(row, fixed_windows(duration_s, config), duration_s)]
    try:
        levels = band_levels(row["audio_uri"], start_s=row["start_s"], duration_s=duration_s, channel=row["channel"])
    except audio.AudioError as error:
        return [_Stream(row, problem=str(error))]
    above = speech_levels(levels)
    speech = speech_runs(
        above,
        speech_db=config.speech_db,
        min_speech_s=config.min_speech_s,
        min_silence_s=config.min_silence_s,
    )
    return [_Stream(row, speech_windows(speech, above, duration_s, config), duration_s)]


def _channel_of(row: Mapping[str, Any], channel: int) -> dict[str, Any]:
    return {**row, "utterance_id": f"{row['utterance_id']}#{channel}", "channel": channel}


def _window_rows(stream: _Stream, alone: bool) -> Iterator[dict[str, Any]]:
    """UTTERANCES rows of a stream; `alone` in its recording and channel, or one of several segments of it."""
    row = dict(stream.row)
    if stream.problem:
        row["attributes"] = [*(row["attributes"] or []), (PROBLEM, stream.problem)]
    if not stream.windows:
        yield row
        return
    if row["recording_id"] is None:
        row["recording_id"] = row["utterance_id"]
    elif not alone:
        row["session_id"] = row["session_id"] or row["recording_id"]
        row["recording_id"] = f"{row['recording_id']}@{row['start_s']:.3f}"
    for index, (start, end) in enumerate(stream.windows):
        # rounded to the millisecond, inwards at the end: a window never reaches past the audio
        begin = round(start, 3)
        yield {
            **row,
            "utterance_id": f"{row['utterance_id']}-w{index:05d}",
            "window_index": index,
            "start_s": row["start_s"] + begin,
            "duration_s": int((end - begin) * 1000 + 1e-6) / 1000,
            "reference": row["reference"] if index == 0 else None,
            "keywords": row["keywords"] if index == 0 else None,
        }
