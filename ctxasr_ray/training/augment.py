"""SpecAugment: blocks of time and of frequency are hidden, so that no model leans on one of them."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, kw_only=True, slots=True)
class SpecAugment:
    """Masks of a log-mel spectrogram.

    Reference:
        Park et al. 2019, SpecAugment, section 2 (without time warping); sizes are ours.
    """

    num_time_masks: int = 2
    max_time_frames: int = 30
    """Longest time mask, in frames of 10 ms."""
    num_frequency_masks: int = 2
    max_frequency_bins: int = 14

    def __call__(self, features_FM: npt.NDArray[np.float32], rng: np.random.Generator) -> None:
        """Overwrites the masked blocks by the mean of the features, in place.

        Args:
            features_FM: (F frames, M mel bins) float32.
            rng: Source of the draws; a generator seeded by the step makes them repeatable.
        """
        frames, bins = features_FM.shape
        mean = features_FM.mean()
        for _ in range(self.num_time_masks):
            width = int(rng.integers(0, min(self.max_time_frames, frames // 5) + 1))
            start = int(rng.integers(0, frames - width + 1))
            features_FM[start : start + width] = mean
        for _ in range(self.num_frequency_masks):
            width = int(rng.integers(0, min(self.max_frequency_bins, bins) + 1))
            start = int(rng.integers(0, bins - width + 1))
            features_FM[:, start : start + width] = mean


LIGHT_MASKS: Final = SpecAugment(num_time_masks=1, max_time_frames=20, num_frequency_masks=1, max_frequency_bins=10)
"""For models that see so little speech that they cannot learn it by heart."""
