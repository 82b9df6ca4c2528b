"""Recordings of any length -> where speech is: band levels over a moving noise floor, in numpy, the same every time.

A frame's level is measured in five bands between 150 Hz and 4 kHz. The noise floor of a band is the 10th percentile of
its levels in the 30 s around; speech is where some band stands clearly above its floor, so that hum below or hiss above
speech hides nothing. Music and slamming doors count as speech: a recogniser that hears them writes little, one that
never hears a word cannot write it. The recording is read once, in blocks; levels are all that is kept (7 MB per hour).

Shape letters: F frames of 25 ms every 10 ms, B bands.
"""

from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from ctxasr_ray import audio

HOP_S: Final = 0.010
"""Seconds from one frame to the next."""
FRAME_S: Final = 0.025
BANDS_HZ: Final = (150.0, 400.0, 800.0, 1500.0, 2500.0, 4000.0)
"""Edges of the bands; those above half the sample rate are left out."""
FLOOR_DB: Final = -75.0
"""Levels below this, in dB of a full-scale sine, are digital silence: dither is no speech."""
NOISE_PERCENTILE: Final = 10.0
NOISE_WINDOW_S: Final = 30.0
"""Stretch that the noise floor is taken from; anybody pauses for a tenth of it, if only between words."""
SMOOTHING_FRAMES: Final = 5
"""Frames that a level is averaged over, so that one frame of noise is no speech."""

_FRAMES_PER_STEP: Final = 2000


def band_levels(
    uri: str, *, start_s: float = 0.0, duration_s: float | None = None, channel: int | None = None
) -> npt.NDArray[np.float32]:
    """(F, B) levels in dB of a full-scale sine; frame f starts `f * HOP_S` after `start_s`.

    Args:
        uri: As for `audio.load`.
        start_s: Where the stretch starts.
        duration_s: How long it is; None: to the end.
        channel: As for `audio.load`.

    Raises:
        AudioError, OSError: as for `audio.load`.
    """
    rate = audio.probe(uri).sample_rate_hz
    length = round(FRAME_S * rate)
    window = np.hanning(length).astype(np.float32)
    frequencies = np.fft.rfftfreq(length, 1 / rate)
    edges = [edge for edge in BANDS_HZ if edge <= rate / 2] or [0.0]
    members = np.stack([(frequencies >= low) & (frequencies < high) for low, high in _bands(edges, rate)], axis=1)
    scale = (np.sum(window) / 2) ** 2  # the power at the peak of a full-scale sine
    parts = [np.zeros((0, members.shape[1]), np.float32)]
    for frames in _frames(audio.blocks(uri, start_s=start_s, duration_s=duration_s, channel=channel), rate, length):
        power = np.abs(np.fft.rfft(frames * window)) ** 2
        levels = 10 * np.log10(power @ members.astype(np.float32) / scale + 1e-12)
        parts.append(np.maximum(levels, FLOOR_DB).astype(np.float32))
    return np.concatenate(parts)


def speech_levels(levels_FB: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """(F,) dB by which the clearest band of each frame stands above its noise floor, smoothed over 50 ms."""
    num_frames = len(levels_FB)
    if num_frames == 0:
        return np.zeros(0, np.float32)
    step = round(1 / HOP_S)
    half = round(NOISE_WINDOW_S / HOP_S / 2)
    centres = np.arange(0, num_frames, step) + step // 2
    floors = np.stack(
        [
            np.percentile(levels_FB[max(0, centre - half) : centre + half], NOISE_PERCENTILE, axis=0)
            for centre in centres
        ]
    )
    floor_FB = np.repeat(floors, step, axis=0)[:num_frames]
    kernel = np.ones(SMOOTHING_FRAMES) / SMOOTHING_FRAMES
    above = np.full(num_frames, -np.inf)
    for band in range(levels_FB.shape[1]):
        excess = np.convolve(levels_FB[:, band] - floor_FB[:, band], kernel)[SMOOTHING_FRAMES // 2 :][:num_frames]
        np.maximum(above, excess, out=above)
    return above.astype(np.float32)


def speech_runs(
    above_F: npt.NDArray[np.float32], *, speech_db: float, min_speech_s: float, min_silence_s: float
) -> list[tuple[float, float]]:
    """(start, end) in seconds of each stretch of speech, in order, apart from each other.

    Args:
        above_F: Of `speech_levels`.
        speech_db: dB above the floor that start speech; half as many keep it going.
        min_speech_s: Shorter stretches are clicks.
        min_silence_s: Shorter gaps belong to the speech around them.
    """
    starts, ends = _runs(above_F >= speech_db / 2)
    loudest = np.maximum.reduceat(above_F, starts) if len(starts) else np.zeros(0)
    is_speech = loudest >= speech_db  # the quiet frame after each run is in no run, but is below both thresholds
    starts, ends = starts[is_speech], ends[is_speech]
    long_enough = (ends - starts) * HOP_S >= min_speech_s
    starts, ends = starts[long_enough], ends[long_enough]
    if not len(starts):
        return []
    apart = np.flatnonzero((starts[1:] - ends[:-1]) * HOP_S >= min_silence_s)
    firsts, lasts = starts[np.append(0, apart + 1)], ends[np.append(apart, len(ends) - 1)]
    return [(float(a * HOP_S), float(b * HOP_S)) for a, b in zip(firsts, lasts, strict=True)]


def _runs(mask_F: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """First frames of the runs of True, and the frames after their last ones."""
    steps = np.diff(np.concatenate([[0], mask_F.astype(np.int8), [0]]))
    return np.flatnonzero(steps == 1), np.flatnonzero(steps == -1)


def _bands(edges: list[float], rate: int) -> list[tuple[float, float]]:
    ends = [*edges[1:], rate / 2] if edges[-1] < BANDS_HZ[-1] else edges[1:]
    return list(zip(edges, ends, strict=False))


def _frames(blocks: Iterator[npt.NDArray[np.float32]], rate: int, length: int) -> Iterator[npt.NDArray[np.float32]]:
    """(frames, length) samples, the same however the blocks are cut; the last frame is filled with zeros."""
    kept, first, frame = np.zeros(0, np.float32), 0, 0  # `kept` starts at sample `first`
    samples = np.arange(length)

    def starts(count: int) -> npt.NDArray[np.int64]:
        at: npt.NDArray[np.float64] = np.rint((frame + np.arange(count)) * HOP_S * rate)
        return at.astype(np.int64)

    for block in blocks:
        kept = np.concatenate([kept, block])
        while True:
            begins = starts(_FRAMES_PER_STEP)
            begins = begins[begins + length <= first + len(kept)]
            if not len(begins):
                break
            yield kept[(begins - first)[:, None] + samples]
            frame += len(begins)
            kept, first = kept[int(starts(1)[0]) - first :], int(starts(1)[0])
    if len(kept):
        yield np.pad(kept, (0, length - len(kept)))[None, :]
