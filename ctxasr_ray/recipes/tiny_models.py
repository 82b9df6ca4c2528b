"""The tiny models behind the quickstart: each made by one seeded recipe, within 45 minutes on two CPU cores."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from ctxasr_ray.corpora.synthetic import SyntheticConfig
from ctxasr_ray.models.speech_adapter import AdapterConfig
from ctxasr_ray.recipes.languages import train_ctc_mandarin, train_ctc_spanish, train_lm_spanish
from ctxasr_ray.recipes.own_speech import train_ctc_own, train_speech_lm_adapted
from ctxasr_ray.training.augment import LIGHT_MASKS
from ctxasr_ray.training.committed_lists import CommittedLists
from ctxasr_ray.training.config import Optimiser, TrainingConfig
from ctxasr_ray.training.copy import CopyTask
from ctxasr_ray.training.ctc import CtcTask
from ctxasr_ray.training.joint import JointTask
from ctxasr_ray.training.language import LanguageModelTask
from ctxasr_ray.training.mwer import MwerTask
from ctxasr_ray.training.sources import SyntheticSpeech, SyntheticText
from ctxasr_ray.training.speech_llm import SpeechLlmTask
from ctxasr_ray.training.speech_text import Mix, SpeechTextTask
from ctxasr_ray.training.trainable import Lora
from ctxasr_ray.training.vocabulary import CHARACTERS

LM: Final = str(Path(__file__).parents[1] / "assets" / "lm")
"""The shipped language model, whose tokenizer the attention model writes with."""
CTC: Final = str(Path(__file__).parents[1] / "assets" / "ctc")
"""The shipped CTC recogniser, whose encoder hears for the speech-text LM."""
ATTENTION: Final = str(Path(__file__).parents[1] / "assets" / "attention")
"""The shipped attention recogniser, which hears for the LLM recogniser and beside which the copy head learns."""
SPEECH_LM: Final = str(Path(__file__).parents[1] / "assets" / "speech_lm")
"""The shipped speech-text LM; MWER updates it, and the LLM recogniser writes with it."""
LM_SMALL: Final = "runs/train/lm_small/model"
"""What `ctxasr train lm_small` writes."""
SPEECH_LM_SMALL: Final = "runs/train/speech_lm_small/model"
"""What `ctxasr train speech_lm_small` writes."""
CTC_START: Final = "runs/train/ctc_start/model"
"""What `ctxasr train ctc_start` writes; the other two recognisers begin with it."""


def train_lm() -> TrainingConfig:
    """Trains the causal language model and its byte-pair tokenizer, on text alone."""
    return TrainingConfig(
        name="lm",
        seed=11,
        task=LanguageModelTask(
            train=SyntheticText(num_sentences=240_000, num_seeds=40), dev=SyntheticText(num_sentences=1000, split="dev")
        ),
        num_steps=1600,
        batch_size=4096,
        optimiser=Optimiser(learning_rate=3e-3, warm_up_steps=100, weight_decay=0.05),
        precision="bfloat16",
    )


def train_lm_small() -> TrainingConfig:
    """Trains a language model of a fifth of `train_lm`'s size on the same text: what size is worth."""
    large = train_lm()
    assert isinstance(large.task, LanguageModelTask)
    task = replace(large.task, hidden_size=96, num_layers=2, num_heads=2, intermediate_size=256)
    return replace(large, name="lm_small", task=task)


def train_lm_characters() -> TrainingConfig:
    """Trains a small language model of the shipped CTC recogniser's own characters, on text alone."""
    return TrainingConfig(
        name="lm_characters",
        seed=19,
        task=LanguageModelTask(
            train=SyntheticText(num_sentences=120_000, num_seeds=40),
            dev=SyntheticText(num_sentences=300, split="dev"),
            characters=CHARACTERS,
            hidden_size=128,
            num_layers=2,
            intermediate_size=320,
        ),
        num_steps=1500,
        batch_size=4096,
        optimiser=Optimiser(learning_rate=4e-3, warm_up_steps=100, weight_decay=0.02),
        precision="bfloat16",
    )


def train_ctc_start() -> TrainingConfig:
    """Trains the character CTC recogniser from random weights, on 25 hours of speech in 248 voices and many noises."""
    return TrainingConfig(
        name="ctc_start",
        seed=12,
        task=CtcTask(
            train=SyntheticSpeech(num_utterances=20_000), dev=SyntheticSpeech(num_utterances=150, split="dev")
        ),
        num_steps=4500,
        batch_size=10_000,
        optimiser=Optimiser(learning_rate=2e-3, warm_up_steps=300, weight_decay=0.01),
        precision="bfloat16",
    )


def train_ctc() -> TrainingConfig:
    """Trains the CTC recogniser of `train_ctc_start` on, on 15 hours of other speech and in smaller batches."""
    return TrainingConfig(
        name="ctc",
        seed=14,
        task=CtcTask(
            train=SyntheticSpeech(num_utterances=12_000, first=20_000),
            dev=SyntheticSpeech(num_utterances=150, split="dev"),
            dropout=0.0,
            augment=LIGHT_MASKS,
            initial=CTC_START,
        ),
        num_steps=4500,
        batch_size=6000,
        optimiser=Optimiser(learning_rate=1e-3, warm_up_steps=100, weight_decay=0.01),
        precision="bfloat16",
    )


def train_attention_start() -> TrainingConfig:
    """Trains the attention recogniser from random weights; its head learns where tokens are from the CTC recogniser."""
    return TrainingConfig(
        name="attention_start",
        seed=13,
        task=JointTask(
            train=SyntheticSpeech(num_utterances=12_000),
            dev=SyntheticSpeech(num_utterances=150, split="dev"),
            tokenizer=LM,
            teacher=CTC_START,
            ctc_weight=0.5,
            augment=None,
        ),
        num_steps=3000,
        batch_size=12 * 800,
        optimiser=Optimiser(learning_rate=1e-3, warm_up_steps=100, weight_decay=0.01),
        precision="bfloat16",
    )


def train_attention() -> TrainingConfig:
    """Trains the attention recogniser of `train_attention_start` on, jointly by attention (0.7) and CTC (0.3)."""
    start = train_attention_start()
    assert isinstance(start.task, JointTask)
    task = replace(
        start.task, teacher=None, initial="runs/train/attention_start/model", ctc_weight=0.3, augment=LIGHT_MASKS
    )
    return replace(start, name="attention", seed=15, task=task, num_steps=5000)


def train_speech_lm() -> TrainingConfig:
    """Trains the shipped LM on with speech units of the shipped CTC encoder, on 30 hours of speech and more text."""
    return TrainingConfig(
        name="speech_lm",
        seed=16,
        task=SpeechTextTask(
            train=SyntheticSpeech(num_utterances=24_000),
            dev=SyntheticSpeech(num_utterances=150, split="dev"),
            text=SyntheticText(num_sentences=24_000, num_seeds=40),
            initial=LM,
            encoder=CTC,
            layer=4,
            num_units=200,
            num_quantiser_utterances=300,
            num_examples=80_000,
            mix=Mix(text=0.15, speech_then_text=0.45, text_then_speech=0.05, alternating=0.35),
        ),
        num_steps=9000,
        batch_size=2048,
        optimiser=Optimiser(learning_rate=2e-3, warm_up_steps=100, weight_decay=0.02),
        precision="bfloat16",
        evaluate_every=300,
    )


def train_speech_lm_control() -> TrainingConfig:
    """Trains the control of `train_speech_lm`: the same LM, texts and steps, with nothing spoken."""
    heard = train_speech_lm()
    assert isinstance(heard.task, SpeechTextTask)
    return replace(heard, name="speech_lm_control", task=replace(heard.task, speech=False))


def train_speech_lm_small() -> TrainingConfig:
    """Trains `train_lm_small` on as `train_speech_lm` trains the shipped LM."""
    large = train_speech_lm()
    assert isinstance(large.task, SpeechTextTask)
    return replace(large, name="speech_lm_small", task=replace(large.task, initial=LM_SMALL))


def train_speech_lm_mwer() -> TrainingConfig:
    """Trains low-rank updates of `train_speech_lm` for fewest word errors, on the lists of `training_lists`."""
    lists = CommittedLists(root="runs/train/lists", hypotheses="attention-")
    return TrainingConfig(
        name="speech_lm_mwer",
        seed=19,
        task=MwerTask(
            train=lists,
            dev=replace(lists, split="dev"),
            initial=SPEECH_LM,
            lm_weight=2.0,  # fitted on dev for log P(text | units) on the showcase's attention lists
            length_bonus=3.8,
            lora=Lora(rank=8, alpha=16.0),
        ),
        num_steps=500,
        batch_size=4096,
        optimiser=Optimiser(learning_rate=3e-4, warm_up_steps=25, weight_decay=0.0),
        precision="bfloat16",
        evaluate_every=100,
    )


def train_speech_llm_adapter() -> TrainingConfig:
    """Trains the adapter of the tiny LLM recogniser, in front of the speech-text LM as it is."""
    return TrainingConfig(
        name="speech_llm_adapter",
        seed=17,
        task=SpeechLlmTask(
            train=SyntheticSpeech(num_utterances=6000),
            dev=SyntheticSpeech(num_utterances=150, split="dev"),
            encoder=CTC,
            llm=SPEECH_LM,
            adapter=AdapterConfig(stack=2, width=512),
            prompt="<speech>{speech}</speech><text>",
            warp=0.15,
            features_directory="runs/train/speech_llm_states",
        ),
        num_steps=800,
        batch_size=2048,
        optimiser=Optimiser(learning_rate=2e-3, warm_up_steps=50, weight_decay=0.01),
        precision="bfloat16",
        evaluate_every=200,
    )


def train_speech_llm() -> TrainingConfig:
    """Trains the adapter of `train_speech_llm_adapter` on, together with a LoRA of the speech-text LM."""
    start = train_speech_llm_adapter()
    assert isinstance(start.task, SpeechLlmTask)
    task = replace(
        start.task,
        initial="runs/train/speech_llm_adapter/model",
        lora=Lora(rank=16, alpha=32.0),
        trained=("adapter", "llm"),
    )
    optimiser = replace(start.optimiser, learning_rate=1e-3)
    return replace(start, name="speech_llm", seed=18, task=task, num_steps=1200, optimiser=optimiser)


def train_copy_head() -> TrainingConfig:
    """Trains the copy head beside the shipped attention recogniser and LM, on names that neither has seen."""
    speech = SyntheticSpeech(num_utterances=9000, corpus=SyntheticConfig(seed=100), num_seeds=18)
    return TrainingConfig(
        name="copy_head",
        seed=17,
        task=CopyTask(train=speech, dev=SyntheticSpeech(num_utterances=150, split="dev"), recogniser=ATTENTION, lm=LM),
        num_steps=4000,
        batch_size=16 * 280,
        optimiser=Optimiser(learning_rate=2e-3, warm_up_steps=100, weight_decay=0.01),
        num_threads=1,
    )


TRAININGS: Final[Mapping[str, Callable[[], TrainingConfig]]] = {
    "ctc_start": train_ctc_start,
    "ctc": train_ctc,
    "ctc_mandarin": train_ctc_mandarin,
    "ctc_spanish": train_ctc_spanish,
    "ctc_own": train_ctc_own,
    "lm": train_lm,
    "lm_small": train_lm_small,
    "lm_characters": train_lm_characters,
    "lm_spanish": train_lm_spanish,
    "attention_start": train_attention_start,
    "attention": train_attention,
    "speech_lm": train_speech_lm,
    "speech_lm_control": train_speech_lm_control,
    "speech_lm_small": train_speech_lm_small,
    "speech_lm_mwer": train_speech_lm_mwer,
    "speech_lm_adapted": train_speech_lm_adapted,
    "speech_llm_adapter": train_speech_llm_adapter,
    "speech_llm": train_speech_llm,
    "copy_head": train_copy_head,
}
"""Names that `ctxasr train` knows."""
