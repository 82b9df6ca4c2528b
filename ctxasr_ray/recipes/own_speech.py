"""Trainings on recordings of your own, such as those that `ctxasr pseudo-label` has labelled."""

from typing import Final

from ctxasr_ray.experiment import asset
from ctxasr_ray.training.adaptation import AdaptationTask
from ctxasr_ray.training.augment import LIGHT_MASKS
from ctxasr_ray.training.config import Optimiser, TrainingConfig
from ctxasr_ray.training.ctc import CtcTask
from ctxasr_ray.training.sources import Recordings, TableSpeech

LABELS: Final = "corpora/pseudo_labels"
"""Where `ctxasr pseudo-label` writes."""
RECORDINGS: Final = "corpora/recordings"
"""A corpus of recordings, their transcripts unknown or unread."""


def train_ctc_own() -> TrainingConfig:
    """Trains the shipped CTC recogniser on with your own manifests: --task.train.path, --task.dev.path."""
    return TrainingConfig(
        name="ctc_own",
        seed=23,
        task=CtcTask(
            train=TableSpeech(path=LABELS),
            dev=TableSpeech(path="corpora/dev", split="dev"),
            dropout=0.0,
            augment=LIGHT_MASKS,
            initial=asset("ctc"),
        ),
        num_steps=1000,
        batch_size=6000,
        optimiser=Optimiser(learning_rate=3e-4, warm_up_steps=50, weight_decay=0.01),
        precision="bfloat16",
    )


def train_speech_lm_adapted() -> TrainingConfig:
    """Trains the shipped speech-text LM on with your own recordings, no transcripts: --task.train.path."""
    return TrainingConfig(
        name="speech_lm_adapted",
        seed=29,
        task=AdaptationTask(
            train=Recordings(path=RECORDINGS),
            dev=Recordings(path=RECORDINGS, split="dev"),
            initial=asset("speech_lm"),
            encoder=asset("ctc"),
        ),
        num_steps=80,
        batch_size=2048,
        optimiser=Optimiser(learning_rate=1e-4, warm_up_steps=10, weight_decay=0.01),
        precision="bfloat16",
    )
