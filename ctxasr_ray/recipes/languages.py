"""Tiny models of further languages: the shipped recogniser trained on, and an LM of their own; Mandarin ships."""

from ctxasr_ray.corpora import mandarin, spanish
from ctxasr_ray.corpora.mandarin import MandarinConfig
from ctxasr_ray.corpora.spanish import SpanishConfig
from ctxasr_ray.experiment import asset
from ctxasr_ray.training.augment import LIGHT_MASKS
from ctxasr_ray.training.config import Optimiser, TrainingConfig
from ctxasr_ray.training.ctc import CtcTask
from ctxasr_ray.training.language import LanguageModelTask
from ctxasr_ray.training.sources import SyntheticSpeech, SyntheticText


def train_ctc_mandarin() -> TrainingConfig:
    """Trains the shipped CTC recogniser on to write Mandarin characters, on 9 hours of speech."""
    corpus = MandarinConfig()
    return TrainingConfig(
        name="ctc_mandarin",
        seed=17,
        task=CtcTask(
            train=SyntheticSpeech(num_utterances=9000, corpus=corpus),
            dev=SyntheticSpeech(num_utterances=100, split="dev", corpus=corpus),
            characters=mandarin.characters(),
            dropout=0.0,
            augment=LIGHT_MASKS,
            initial=asset("ctc"),
        ),
        num_steps=5000,
        batch_size=4800,
        optimiser=Optimiser(learning_rate=1.5e-3, warm_up_steps=200, weight_decay=0.01),
        precision="bfloat16",
    )


def train_ctc_spanish() -> TrainingConfig:
    """Trains the shipped CTC recogniser on to write Spanish, on 4 hours of speech."""
    corpus = SpanishConfig()
    return TrainingConfig(
        name="ctc_spanish",
        seed=20,
        task=CtcTask(
            train=SyntheticSpeech(num_utterances=3000, corpus=corpus),
            dev=SyntheticSpeech(num_utterances=100, split="dev", corpus=corpus),
            characters=spanish.CHARACTERS,
            dropout=0.0,
            augment=LIGHT_MASKS,
            initial=asset("ctc"),
        ),
        num_steps=1000,
        batch_size=6000,
        optimiser=Optimiser(learning_rate=1.5e-3, warm_up_steps=50, weight_decay=0.01),
        precision="bfloat16",
    )


def train_lm_spanish() -> TrainingConfig:
    """Trains a language model of the Spanish commands with byte-pair pieces of its own, on text alone."""
    corpus = SpanishConfig()
    return TrainingConfig(
        name="lm_spanish",
        seed=21,
        task=LanguageModelTask(
            train=SyntheticText(num_sentences=80_000, num_seeds=20, corpus=corpus),
            dev=SyntheticText(num_sentences=500, split="dev", corpus=corpus),
            vocabulary_size=400,
            hidden_size=128,
            num_layers=3,
            intermediate_size=352,
        ),
        num_steps=1000,
        batch_size=4096,
        optimiser=Optimiser(learning_rate=4e-3, warm_up_steps=100, weight_decay=0.05),
        precision="bfloat16",
    )
