"""A speech-text language model: a causal LM of text, its vocabulary extended by speech units, on a mix of both."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ctxasr_ray.models import checkpoint
from ctxasr_ray.stage import runtime_field
from ctxasr_ray.training.sources import SyntheticSpeech, SyntheticText, TableSpeech, TextFile
from ctxasr_ray.training.speech_sequences import SequenceTraining, SpeechSequences, Tokens, word_perplexity

if TYPE_CHECKING:
    from ctxasr_ray.models.speech_units import Quantiser, SpeechEncoder
    from ctxasr_ray.training.features import Features
    from ctxasr_ray.training.heard import Heard


@dataclass(frozen=True, kw_only=True, slots=True)
class Mix:
    """Shares of the examples; they add up to 1.

    Reference:
        Shivakumar et al., 2409.16654: continuation of either, and sequences that alternate; shares are ours.
    """

    text: float = 0.25
    """Text alone."""
    speech: float = 0.0
    """Units alone."""
    speech_then_text: float = 0.4
    text_then_speech: float = 0.1
    alternating: float = 0.25
    """Spans of 1 to `speech_sequences.SPAN_WORDS` words, each spoken and then written; asks for an encoder that spells
    by CTC."""

    def __post_init__(self) -> None:
        shares = [getattr(self, f.name) for f in fields(self)]
        if min(shares) < 0 or not math.isclose(sum(shares), 1, abs_tol=1e-6):
            raise ValueError(f"the shares of the mix are {shares}; expected none below 0, and 1 in all.")


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeechTextTask:
    """Next-token prediction over text pieces, units and marks, in the layouts of `models.speech_lm`.

    The quantiser is fitted on the training speech; it lies beside the model that is written.
    """

    train: SyntheticSpeech | TableSpeech
    dev: SyntheticSpeech | TableSpeech
    text: SyntheticText | TextFile
    initial: str
    """Hugging Face directory of the causal LM that is extended, with its tokenizer."""
    encoder: str
    """Hugging Face directory of the speech encoder; one that reads log-mel features without a window of its own."""
    layer: int = 3
    num_units: int = 150
    num_quantiser_utterances: int = 600
    """Utterances, evenly spaced in the training speech, whose frames the units are learnt from."""
    mix: Mix = field(default_factory=Mix)
    num_examples: int = 40_000
    """Of one epoch; each kind takes its share, from the first utterance or sentence on and over again."""
    unit_weight: float = 0.1
    """Weight of a unit or mark in the loss; a piece of text weighs 1. Units are many and mostly noise."""
    warp: float = 0.15
    """Largest stretch of the mel axis of the training speech before it is encoded; see `heard.warp_mel`."""
    speech: bool = True
    """False trains the control: the same examples in the same batches, everything spoken taken out of them."""
    features_directory: str | None = runtime_field(None)
    """Where the log-mel features lie; None keeps them in the run's directory."""

    def __post_init__(self) -> None:
        if not self.speech and self.mix.speech:
            raise ValueError(
                f"the mix has a share of {self.mix.speech} of speech alone, of which nothing is left without speech; "
                "set mix.speech to 0."
            )

    def build(self, directory: Path, num_processes: int) -> "SpeechText":
        """Fits the quantiser, makes the units of train and dev and extends the LM."""
        return SpeechText(self, directory, num_processes)


class SpeechText(SequenceTraining):
    """The built task."""

    left_out: Mapping[str, str]

    def __init__(self, config: SpeechTextTask, directory: Path, num_processes: int) -> None:
        """Prepares units, sequences and model.

        Args:
            config: The task.
            directory: Of the run; keeps features, quantiser and units for a repeated start.
            num_processes: For the features.

        Raises:
            ValueError: alternating spans are asked of an encoder that does not spell, or the encoder has a window.
        """
        import torch
        from transformers import AutoModelForCausalLM

        from ctxasr_ray.models import speech_lm
        from ctxasr_ray.training.heard import hear

        source = checkpoint.resolve(config.initial)
        self.tokenizer = checkpoint.load_tokenizer(source)
        self.model: Any = checkpoint.load_model(AutoModelForCausalLM, source, dtype=torch.float32)
        speech_lm.extend_vocabulary(self.model, self.tokenizer, config.num_units, seed=0)
        self._written = SpeechSequences(self.tokenizer, config.unit_weight)
        encoder, characters = _encoder(config)
        train, dev = _features(config, encoder, directory, num_processes)
        self.quantiser = _quantiser(config, encoder, train, directory / speech_lm.QUANTISER)
        heard = hear(train, encoder, self.quantiser, characters, directory / "train_units.npz", warp=config.warp)
        self._dev = hear(dev, encoder, self.quantiser, None, directory / "dev_units.npz")
        self._dev_texts = dev.texts
        left_out = dict(train.left_out)
        limit = getattr(self.model.config, "max_position_embeddings", None) or math.inf
        self._names: list[str] = []
        self._sequences: list[Tokens] = []
        for kind, name, sequence in self._examples(config, train, heard):
            if sequence is None:
                left_out[f"{name}, {kind}"] = "its text cannot be aligned with its audio"
            elif len(sequence) > limit:
                left_out[f"{name}, {kind}"] = f"it has {len(sequence)} tokens, the model takes {limit}"
            else:
                self._names.append(name)
                self._sequences.append(sequence)
        self.left_out = left_out
        self.lengths = np.asarray([len(s) for s in self._sequences], np.int64)
        self._hears = config.speech
        if not config.speech:  # marks and units stand behind all other tokens of the vocabulary
            self._sequences = [s[s < self._written.speech.speech] for s in self._sequences]

    def _examples(
        self, config: SpeechTextTask, train: "Features", heard: "Heard"
    ) -> Iterator[tuple[str, str, Tokens | None]]:
        """Kind, name and tokens; None where a text has no alignment."""
        sentences = list(config.text.sentences())
        rng = np.random.default_rng(0)
        for f in fields(config.mix):
            for number in range(round(getattr(config.mix, f.name) * config.num_examples)):
                if f.name == "text":
                    place = number % len(sentences)
                    yield f.name, f"sentence {place}", self._written.text(sentences[place])
                    continue
                place = number % len(train)
                units, text, sequence = heard.units[place], train.texts[place], None
                if f.name == "speech":
                    sequence = self._written.units(units)
                elif f.name == "speech_then_text":
                    sequence = self._written.heard_text(units, text)
                elif f.name == "text_then_speech":
                    sequence = self._written.spoken_text(text, units)
                elif len(heard.word_ends[place]):
                    sequence = self._written.alternating(units, text, heard.word_ends[place], rng)
                yield f.name, train.names[place], sequence

    def evaluate(self) -> dict[str, float]:
        """Measures the perplexity per word of dev texts alone and, but for the control, behind own and other speech."""
        units, texts = self._dev.units, self._dev_texts
        others = [*units[1:], *units[:1]]
        rows = {"alone": [self._written.text(text) for text in texts]}
        if self._hears:
            rows["heard"] = [self._written.heard_text(u, text) for u, text in zip(units, texts, strict=True)]
            rows["misheard"] = [self._written.heard_text(u, text) for u, text in zip(others, texts, strict=True)]
        return {
            f"dev_word_perplexity_{k}": word_perplexity(self.model, self._written, own, texts)
            for k, own in rows.items()
        }


def _encoder(config: SpeechTextTask) -> tuple["SpeechEncoder", Any]:
    """The encoder and, where alternating spans are asked for, the tokenizer of its CTC head."""
    from ctxasr_ray.models.speech_units import SpeechEncoder

    source = checkpoint.resolve(config.encoder)
    encoder = SpeechEncoder(source, layer=config.layer)
    if encoder.extractor.model_input_names[0] != "input_features" or hasattr(encoder.extractor, "n_samples"):
        raise ValueError(
            f"encoder '{config.encoder}': its training features would not be plain log-mel frames; use an encoder of "
            "the Parakeet kind, such as the shipped ctc."
        )
    if not config.mix.alternating:
        return encoder, None
    characters = checkpoint.load_tokenizer(source) if source.tokenizer_files else None
    spelled = set() if characters is None else set(characters.get_vocab()) - set(characters.all_special_tokens)
    if not spelled or max(map(len, spelled)) > 1:
        raise ValueError(
            f"encoder '{config.encoder}' does not spell single characters by CTC, so it cannot say where words end; "
            "set mix.alternating to 0."
        )
    return encoder, characters


def _features(
    config: SpeechTextTask, encoder: "SpeechEncoder", directory: Path, num_processes: int
) -> "tuple[Features, Features]":
    from ctxasr_ray.training import features

    parent = directory / "features" if config.features_directory is None else Path(config.features_directory)
    train, dev = (
        features.compute(source, encoder.extractor, parent / name, num_processes=num_processes)
        for name, source in (("train", config.train), ("dev", config.dev))
    )
    return train, dev


def _quantiser(config: SpeechTextTask, encoder: "SpeechEncoder", train: "Features", path: Path) -> "Quantiser":
    from ctxasr_ray.models.speech_units import Quantiser, fit_centroids, load_quantiser
    from ctxasr_ray.training import cache

    made_of = {"features": train.digest, "encoder": checkpoint.fingerprint(config.encoder)["model"]}
    wanted = {"layer": config.layer, "units": config.num_units, "utterances": config.num_quantiser_utterances}
    path = cache.keyed(path, {**made_of, **wanted})
    if not path.exists():
        chosen = range(0, len(train), max(1, len(train) // config.num_quantiser_utterances))
        hidden_ND = np.concatenate([encoder.of_features(train[index])[0] for index in chosen])
        Quantiser(
            centroids=fit_centroids(hidden_ND, config.num_units, seed=0),
            encoder=checkpoint.fingerprint(config.encoder)["model"],
            layer=config.layer,
            seed=0,
            num_frames=len(hidden_ND),
        ).save(path)
    return load_quantiser(path)
