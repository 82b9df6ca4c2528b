"""Spoken commands of a domain that no shipped model has heard: whispers, croaks and robots in loud noise.

Sentences, names and files are those of `synthetic`, of a seed of its own. All splits share the timbres, which stand
for the domain; a speaker (its accent, pitch and rate) belongs to one split still.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

from ctxasr_ray.corpora.names import listed
from ctxasr_ray.corpora.synthetic import SyntheticConfig

_TIMBRES: Final = listed(
    "whisper UniRobot croak AnxiousAndy robosoft anikaRobot robosoft2 whisperf klatt5 robosoft3 kaukovalta robosoft5 "
    "Demonic robosoft7 fast robosoft4 robosoft6 robosoft8"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class UnheardConfig(SyntheticConfig):
    """Which utterances of the unheard voices there are; equal configs give equal samples in every process."""

    CORPUS: ClassVar[str] = "synthetic_unheard"
    TIMBRES: ClassVar[Mapping[str, tuple[str, ...]]] = dict.fromkeys(("train", "dev", "test"), _TIMBRES)

    seed: int = 61
    """Of names, sentences, voices and noise; no shipped model has learnt from it."""
    snrs_db: tuple[float | None, ...] = (10.0, 5.0, 0.0)
    """Noise levels, taken in turn: the three lowest of those that the shipped models learnt from."""
