"""Reads a window of any recording as 16 kHz mono: WAV, FLAC, MP3, OGG; a path, a URL or a member of a tar archive.

A fault of the data is an `AudioError` with the path and the reason; a fault of the world (network, disk) stays an
OSError, also where libsndfile would have swallowed it. Nothing is ever written, members are read in place.
"""

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any, Final

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from ctxasr_ray.archive import AudioError, open_binary

__all__ = ["MIX_DOWN", "SAMPLE_RATE_HZ", "SHORTFALL_S", "AudioError", "AudioInfo", "blocks", "load", "probe"]

SAMPLE_RATE_HZ: Final = 16000
MIX_DOWN: Final = -1
"""As `channel`: the mean of all channels."""
MAX_WINDOW_S: Final = 4 * 3600.0
"""Longest window that is decoded at once: 0.9 GB of samples."""
SHORTFALL_S: Final = 0.25
"""How much earlier than asked a recording may end: manifests round their durations."""

SAMPLE_RATES_HZ: Final = (1000, 768_000)
"""Lowest and highest rate that a header may claim; others are broken headers."""

_BLOCK_SAMPLES: Final = 2**20
"""Samples of all channels that are decoded at once: 4 MB, whatever a header claims."""
_PROMISED: Final = re.compile(r"^\s*(?:data|SSND)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)
"""What libsndfile notes of a WAV or AIFF file that is shorter than its header says."""


@dataclass(frozen=True, slots=True)
class AudioInfo:
    """What the header of a recording says."""

    duration_s: float
    sample_rate_hz: int
    num_channels: int


def load(
    uri: str,
    *,
    start_s: float = 0.0,
    duration_s: float | None = None,
    channel: int | None = None,
    sample_rate_hz: int = SAMPLE_RATE_HZ,
) -> npt.NDArray[np.float32]:
    """Reads a window of a recording, one channel of it, at the rate asked for.

    Args:
        uri: Path, URL that fsspec opens (s3, https, ...), or `archive.tar#member` of either.
        start_s: Where the window starts, >= 0.
        duration_s: How long it is, > 0; None: to the end. At most `MAX_WINDOW_S`.
        channel: Which channel, from 0; None: the only one; -1: the mean of all.
        sample_rate_hz: Of the result; resampled with soxr (high quality) where the recording has another.

    Returns:
        (num_samples,) float32 in [-1, 1].

    Raises:
        AudioError: missing, empty, truncated, not audio, shorter than asked, several channels and none chosen,
            samples that are no numbers, or an archive that is not safe to read.
        OSError: the disk or the network failed; worth another try.
    """
    if start_s < 0 or (duration_s is not None and duration_s <= 0):
        raise AudioError(uri, f"window starts at {start_s} s and lasts {duration_s} s; needs start >= 0, duration > 0")
    with _decoder(uri) as sound:
        pick = _channel(uri, sound.channels, channel)
        first = round(start_s * sound.samplerate)
        end = sound.frames if duration_s is None else first + max(1, round(duration_s * sound.samplerate))
        if end - min(sound.frames, end) > SHORTFALL_S * sound.samplerate or first >= sound.frames:
            has_s = sound.frames / sound.samplerate
            raise AudioError(
                uri,
                f"ends at {has_s:.3f} s, but {start_s:.3f} to {end / sound.samplerate:.3f} s were asked for; "
                "the file is truncated or the manifest's offset and duration are wrong",
            )
        end = min(end, sound.frames)
        if (end - first) / sound.samplerate > MAX_WINDOW_S:
            raise AudioError(
                uri,
                f"{(end - first) / sound.samplerate / 3600:.1f} hours at once; at most {MAX_WINDOW_S / 3600:.0f}: "
                "cut it into windows (`ctxasr prepare --segment`)",
            )
        samples = _resampled(uri, sound, first, end, pick, sample_rate_hz)
    if not np.isfinite(samples).all():
        raise AudioError(uri, "holds samples that are not finite numbers; write it again from its source")
    return np.clip(samples, -1.0, 1.0, out=samples)


def blocks(
    uri: str, *, start_s: float = 0.0, duration_s: float | None = None, channel: int | None = None
) -> Iterator[npt.NDArray[np.float32]]:
    """Reads a stretch of a recording of any length once, in order, at its own rate, in bounded memory.

    Args:
        uri: As for `load`.
        start_s: Where the stretch starts, >= 0.
        duration_s: How long it is; None, or further than the end: to the end.
        channel: As for `load`.

    Yields:
        (num_samples,) float32, at most 4 MB of all channels each; one after the other they are the stretch.

    Raises:
        AudioError, OSError: as for `load`.
    """
    with _decoder(uri) as sound:
        pick = _channel(uri, sound.channels, channel)
        first = round(start_s * sound.samplerate)
        if not 0 <= first < sound.frames:
            raise AudioError(uri, f"ends at {sound.frames / sound.samplerate:.3f} s, before {start_s:.3f} s")
        end = sound.frames if duration_s is None else min(sound.frames, first + round(duration_s * sound.samplerate))
        yield from _read(uri, sound, first, end, pick)


def probe(uri: str) -> AudioInfo:
    """Reads the header alone.

    Raises:
        AudioError, OSError: as for `load`.
    """
    with _decoder(uri) as sound:
        return AudioInfo(sound.frames / sound.samplerate, sound.samplerate, sound.channels)


def _channel(uri: str, num_channels: int, channel: int | None) -> int | None:
    """Gives the channel to keep, or None for the mean of all."""
    if channel is None and num_channels > 1:
        raise AudioError(
            uri,
            f"has {num_channels} channels and none was chosen; set `channel` to 0..{num_channels - 1}, "
            f"or to {MIX_DOWN} to mix them down",
        )
    if channel is not None and not MIX_DOWN <= channel < num_channels:
        raise AudioError(uri, f"has {num_channels} channel(s), numbered from 0; channel {channel} was asked for")
    return None if channel == MIX_DOWN else channel or 0


def _resampled(
    uri: str, sound: soundfile.SoundFile, first: int, end: int, channel: int | None, rate: int
) -> npt.NDArray[np.float32]:
    """Decodes frames [first, end) in blocks, so that a long window never stands in memory at its own rate."""
    stream = None if rate == sound.samplerate else soxr.ResampleStream(sound.samplerate, rate, 1, dtype="float32")
    parts, left = [], end - first
    for mono in _read(uri, sound, first, end, channel):
        left -= len(mono)
        parts.append(mono if stream is None else stream.resample_chunk(mono, last=left == 0))
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _read(
    uri: str, sound: soundfile.SoundFile, first: int, end: int, channel: int | None
) -> Iterator[npt.NDArray[np.float32]]:
    """Decodes frames [first, end) of one channel, block by block."""
    sound.seek(first)
    block = max(1, _BLOCK_SAMPLES // sound.channels)
    left = end - first
    while left > 0:
        frames = sound.read(min(left, block), dtype="float32", always_2d=True)
        if not len(frames):
            raise AudioError(
                uri, f"is truncated: its header promises {left / sound.samplerate:.3f} s more than there are"
            )
        left -= len(frames)
        yield frames.mean(axis=1) if channel is None else np.ascontiguousarray(frames[:, channel])


@contextlib.contextmanager
def _decoder(uri: str) -> Iterator[soundfile.SoundFile]:
    """Opens a recording; every fault of the data inside the block becomes an AudioError."""
    with open_binary(uri) as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(0)
        if size == 0:
            raise AudioError(uri, "is empty (0 bytes)")
        watched = _Watched(uri, stream)
        try:
            with soundfile.SoundFile(watched) as sound:
                watched.reraise()
                if sound.format == "OGG" and _page_is_cut(stream, size):
                    raise AudioError(uri, "is truncated: its last OGG page is not complete")
                promised = _PROMISED.search(sound.extra_info)
                if promised and int(promised[2]) < int(promised[1]) < _UNKNOWN_LENGTH:
                    raise AudioError(
                        uri,
                        f"is truncated: its header promises {promised[1]} bytes of samples, {promised[2]} are there",
                    )
                if sound.frames <= 0:
                    raise AudioError(uri, "holds no samples")
                if not SAMPLE_RATES_HZ[0] <= sound.samplerate <= SAMPLE_RATES_HZ[1]:
                    raise AudioError(uri, f"its header claims {sound.samplerate} samples per second; it is broken")
                yield sound
                watched.reraise()
        except AudioError:
            watched.reraise()
            raise
        except soundfile.LibsndfileError as error:
            watched.reraise()
            reason = str(error.error_string).strip().rstrip(".")
            raise AudioError(uri, f"cannot be decoded: {reason} (WAV, FLAC, MP3 and OGG are read)") from error


_UNKNOWN_LENGTH: Final = 0x7FFFF000
"""Programs that write to a pipe put about this or more where the length belongs."""


def _page_is_cut(stream: IO[bytes], size: int) -> bool:
    """Says whether the last page of an OGG file ends before its own table of lengths says so (RFC 3533)."""
    position = stream.tell()
    stream.seek(max(0, size - 65536))
    tail = stream.read()
    stream.seek(position)
    start = tail.rfind(b"OggS")
    if start < 0 or len(tail) < start + 27 or len(tail) < start + 27 + tail[start + 26]:
        return True
    lengths = tail[start + 27 : start + 27 + tail[start + 26]]
    return len(tail) < start + 27 + len(lengths) + sum(lengths)


class _Watched:
    """Hands bytes to libsndfile and keeps the first fault of the world, which its callbacks cannot raise."""

    def __init__(self, uri: str, stream: IO[bytes]) -> None:
        self._uri = uri
        self._stream = stream
        self._fault: OSError | None = None

    def reraise(self) -> None:
        if self._fault is not None:
            raise self._fault

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._stream.read(len(buffer))
        except Exception as error:  # aiohttp and botocore have error families of their own
            fault = error if isinstance(error, OSError) else OSError(f"{self._uri}: {type(error).__name__}: {error}")
            self._fault = self._fault or fault
            return 0
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        try:
            return self._stream.seek(offset, whence)
        except (OSError, ValueError) as error:
            # a broken header may ask for a place before the start, which is no fault of the disk
            if isinstance(error, OSError) and error.errno != errno.EINVAL:
                self._fault = self._fault or error
            return self._stream.tell()

    def tell(self) -> int:
        return self._stream.tell()
