"""A character CTC recogniser from recordings: Parakeet architecture (Fast Conformer), every alignment summed.

Letters of shapes: B utterances, F feature frames, M mel bins, N characters.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ctxasr_ray.models import checkpoint
from ctxasr_ray.stage import runtime_field
from ctxasr_ray.training.augment import SpecAugment
from ctxasr_ray.training.dev_errors import error_rates
from ctxasr_ray.training.examples import pad_features, pad_targets, usable
from ctxasr_ray.training.sources import SyntheticSpeech, TableSpeech
from ctxasr_ray.training.vocabulary import CHARACTERS, character_tokenizer

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True, slots=True)
class CtcTask:
    """Characters from log-mel features by CTC; the blank is the tokenizer's <pad>, its last token."""

    train: SyntheticSpeech | TableSpeech
    dev: SyntheticSpeech | TableSpeech
    hidden_size: int = 128
    num_layers: int = 4
    num_heads: int = 4
    intermediate_size: int = 512
    convolution_kernel: int = 9
    subsampling_factor: int = 4
    """Feature frames (10 ms) per output frame."""
    subsampling_channels: int = 32
    num_mel_bins: int = 80
    characters: str = CHARACTERS
    """What it writes, besides the space."""
    dropout: float = 0.1
    augment: SpecAugment | None = field(default_factory=SpecAugment)
    initial: str | None = None
    """Hugging Face directory of an earlier training whose weights this one starts from, the head apart where that one
    writes other labels; None starts at random."""
    features_directory: str | None = runtime_field(None)
    """Where the features lie; None keeps them in the run's directory. They take 16 kB per second of speech."""

    def build(self, directory: Path, num_processes: int) -> "CtcTraining":
        """Computes the features of train and dev and makes a model with random weights."""
        return CtcTraining(self, directory, num_processes)


class CtcTraining:
    """The built task."""

    left_out: Mapping[str, str]

    def __init__(self, config: CtcTask, directory: Path, num_processes: int) -> None:
        """Prepares the features, the targets and the model.

        Args:
            config: The task.
            directory: Of the run.
            num_processes: For the features.
        """
        from transformers import ParakeetFeatureExtractor

        from ctxasr_ray.training import features

        self._augment, self._characters = config.augment, {*config.characters, " "}
        self.tokenizer = character_tokenizer(config.characters)
        self.extractor = ParakeetFeatureExtractor(feature_size=config.num_mel_bins)
        self.model: Any = _parakeet(config, self.tokenizer)
        parent = directory / "features" if config.features_directory is None else Path(config.features_directory)
        self._train = features.compute(config.train, self.extractor, parent / "train", num_processes=num_processes)
        self._dev = features.compute(config.dev, self.extractor, parent / "dev", num_processes=num_processes)
        self._examples, self.left_out = usable(self._train, self._encode, self._num_outputs)
        self.lengths = self._train.lengths[[e.index for e in self._examples]]

    def _encode(self, text: str) -> list[int]:
        lacking = sorted(set(text) - self._characters)
        if lacking:  # the tokenizer would leave them out without a word
            raise ValueError(f"its text {text!r} has {lacking}, which the vocabulary lacks")
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _num_outputs(self, frames: int) -> int:
        import torch

        return int(self.model._get_subsampling_output_length(torch.tensor(frames)))

    def names(self, indices: npt.NDArray[np.int64]) -> list[str]:
        """Gives utterance ids."""
        return [self._train.names[self._examples[i].index] for i in indices]

    def batch(self, indices: npt.NDArray[np.int64], rng: np.random.Generator) -> "dict[str, torch.Tensor]":
        """Pads utterances to the longest; hides blocks of their features."""
        examples = [self._examples[i] for i in indices]
        rows = [self._train[e.index] for e in examples]
        for row in rows:
            if self._augment is not None:
                self._augment(row, rng)
        return {**pad_features(rows), "targets": pad_targets([e.target for e in examples])}

    def counts(self, batch: "Mapping[str, torch.Tensor]") -> dict[str, float]:
        """Gives the characters."""
        from ctxasr_ray.training.objectives import num_targets

        return {"tokens": num_targets(batch["targets"])}

    def loss(self, batch: "Mapping[str, torch.Tensor]", counts: Mapping[str, float]) -> "torch.Tensor":
        """Gives nats per character."""
        import torch

        from ctxasr_ray.training import objectives

        mask_BF = batch["attention_mask"]
        logits_BTV = self.model(input_features=batch["input_features"], attention_mask=mask_BF).logits
        lengths_B = self.model._get_subsampling_output_length(mask_BF.sum(-1)).to(torch.int64)
        blank = self.model.config.pad_token_id
        return objectives.ctc(logits_BTV, lengths_B, batch["targets"], blank=blank, count=counts["tokens"])

    def evaluate(self) -> dict[str, float]:
        """Measures greedy word and character error rates on dev, one utterance after the other."""
        hypotheses = [self._greedy(self._dev[i]) for i in range(len(self._dev))]
        wer, cer = error_rates(self._dev.texts, hypotheses)
        return {"dev_wer": wer, "dev_cer": cer}

    def _greedy(self, features_FM: npt.NDArray[np.float32]) -> str:
        import torch

        features_BFM = torch.from_numpy(features_FM)[None].to(self.model.device)
        mask_BF = torch.ones(features_BFM.shape[:2], dtype=torch.bool, device=self.model.device)
        logits_BTV = self.model(input_features=features_BFM, attention_mask=mask_BF).logits
        return str(self.tokenizer.decode(logits_BTV[0].argmax(-1).tolist()))

    def publish(self, directory: Path) -> None:
        """Writes the Hugging Face directory."""
        from ctxasr_ray.training.publish import publish

        publish(self.model, directory, tokenizer=self.tokenizer, extractor=self.extractor)


def _parakeet(config: CtcTask, tokenizer: Any) -> Any:
    """The model, with random weights or those of `config.initial`."""
    from transformers import ParakeetCTCConfig, ParakeetEncoderConfig, ParakeetForCTC

    encoder = ParakeetEncoderConfig(
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        intermediate_size=config.intermediate_size,
        conv_kernel_size=config.convolution_kernel,
        subsampling_factor=config.subsampling_factor,
        subsampling_conv_channels=config.subsampling_channels,
        num_mel_bins=config.num_mel_bins,
        dropout=config.dropout,
        # Dropout is drawn per weight of every attention matrix: on a CPU that costs more than the products.
        attention_dropout=0.0,
        activation_dropout=0.0,
        layerdrop=0.0,
    )
    settings = ParakeetCTCConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, encoder_config=encoder)
    model = ParakeetForCTC(settings)
    if config.initial is not None:
        earlier = checkpoint.load_model(ParakeetForCTC, checkpoint.resolve(config.initial), dtype="float32")
        weights, own = earlier.state_dict(), model.state_dict()
        if earlier.config.vocab_size != settings.vocab_size:
            weights |= {name: values for name, values in own.items() if name.startswith("ctc_head.")}
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            raise ValueError(f"'{config.initial}' is not a model of this architecture: {error}") from error
    return model
