"""Noise of several colours at an exact signal-to-noise ratio."""

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.float32]

COLOURS: Final = ("white", "pink", "brown", "speech_shaped", "babble")


def coloured(colour: str, num_samples: int, rng: np.random.Generator, sample_rate_hz: int = 16000) -> Samples:
    """Draws stationary noise with a spectrum of a given colour, of unit power.

    Args:
        colour: white, pink (-3 dB per octave), brown (-6 dB per octave) or speech_shaped (flat to 500 Hz,
            then -9 dB per octave, close to the long-term spectrum of speech).
        num_samples: At least 1.
        rng: Where the noise comes from.
        sample_rate_hz: Of the noise.

    Returns:
        (num_samples,) float32.
    """
    length = 2 ** math.ceil(math.log2(num_samples))  # a transform of prime length takes five times as long
    spectrum = np.fft.rfft(rng.standard_normal(length))
    frequency_hz = np.maximum(np.fft.rfftfreq(length, 1 / sample_rate_hz), 30.0)
    gains = {
        "white": np.ones_like(frequency_hz),
        "pink": frequency_hz**-0.5,
        "brown": frequency_hz**-1.0,
        "speech_shaped": np.maximum(frequency_hz, 500.0) ** -1.5,
    }
    if colour not in gains:
        raise ValueError(f"noise colour '{colour}' is unknown; use one of {sorted(gains)}")
    return unit_power(np.fft.irfft(spectrum * gains[colour], length)[:num_samples].astype(np.float32))


def babble(voices: Sequence[Samples], num_samples: int) -> Samples:
    """Sums voices, each repeated or cut to the length and of equal power, to noise of unit power."""
    return unit_power(np.sum([unit_power(np.resize(voice, num_samples)) for voice in voices], axis=0, dtype=np.float32))


def add_noise(speech: Samples, noise: Samples, snr_db: float) -> Samples:
    """Adds noise so that speech power over noise power, both over the whole recording, is the ratio asked for."""
    scale = math.sqrt(float(np.mean(np.square(speech, dtype=np.float64))) / 10 ** (snr_db / 10))
    return np.asarray(speech + scale * unit_power(noise), np.float32)


def unit_power(samples: Samples) -> Samples:
    """Scales to a mean square of 1; silence stays silence."""
    power = float(np.mean(np.square(samples, dtype=np.float64)))
    return np.asarray(samples / math.sqrt(power), np.float32) if power > 0 else samples
