"""Adaptation of a speech-text LM to the sound of a domain: it goes on with speech units, and reads no transcript."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ctxasr_ray.models import checkpoint
from ctxasr_ray.models.speech_lm import QUANTISER
from ctxasr_ray.stage import runtime_field
from ctxasr_ray.training.sources import Recordings, SyntheticText, TextFile
from ctxasr_ray.training.speech_sequences import SequenceTraining, SpeechSequences, Tokens, nats

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, kw_only=True, slots=True)
class AdaptationTask:
    """Unit continuation on recordings of a domain, and text continuation against forgetting.

    Reference:
        Shivakumar et al., 2409.16654: speech continuation on target-domain audio before rescoring. The share of text
        is ours.
    """

    train: Recordings
    dev: Recordings
    initial: str
    """Hugging Face directory of the speech-text LM, its quantiser beside it."""
    encoder: str
    """Hugging Face directory of the encoder that the quantiser was fitted on; one that reads log-mel features."""
    text: SyntheticText | TextFile | None = None
    """Sentences of the old domain beside the recordings, against forgetting: an epoch goes through both once."""
    unit_weight: float = 0.1
    """Weight of a unit or mark in the loss, where a piece of text weighs 1: as in the training of the LM."""
    features_directory: str | None = runtime_field(None)
    """Where the log-mel features lie; None keeps them in the run's directory."""

    def build(self, directory: Path, num_processes: int) -> "Adaptation":
        """Makes the units of train and dev and loads the LM."""
        return Adaptation(self, directory, num_processes)


class Adaptation(SequenceTraining):
    """The built task."""

    left_out: Mapping[str, str]

    def __init__(self, config: AdaptationTask, directory: Path, num_processes: int) -> None:
        """Prepares units, sequences and model.

        Args:
            config: The task.
            directory: Of the run; keeps features and units for a repeated start.
            num_processes: For the features.

        Raises:
            ValueError: the LM knows no units, its quantiser is that of another encoder, or a split has no recordings.
        """
        import torch
        from transformers import AutoModelForCausalLM

        from ctxasr_ray.models.speech_units import SpeechEncoder, load_quantiser
        from ctxasr_ray.training import features
        from ctxasr_ray.training.heard import hear

        source = checkpoint.resolve(config.initial)
        self.model: Any = checkpoint.load_model(AutoModelForCausalLM, source, dtype=torch.float32)
        self._written = SpeechSequences(checkpoint.load_tokenizer(source), config.unit_weight)
        self.quantiser = load_quantiser(source.directory / QUANTISER)
        self.quantiser.check(checkpoint.fingerprint(config.encoder), config.encoder)
        encoder = SpeechEncoder(checkpoint.resolve(config.encoder), layer=self.quantiser.layer)
        parent = directory / "features" if config.features_directory is None else Path(config.features_directory)
        examples: dict[str, list[tuple[str, Tokens]]] = {}
        left_out: dict[str, str] = {}
        for part, recordings in (("train", config.train), ("dev", config.dev)):
            spoken = features.compute(recordings, encoder.extractor, parent / part, num_processes=num_processes)
            heard = hear(spoken, encoder, self.quantiser, None, directory / f"{part}_units.npz")
            examples[part] = list(zip(spoken.names, map(self._written.units, heard.units), strict=True))
            left_out |= spoken.left_out
        texts = [] if config.text is None else config.text.sentences()
        examples["train"] += [(f"sentence {number}", self._written.text(said)) for number, said in enumerate(texts)]
        limit = getattr(self.model.config, "max_position_embeddings", None) or math.inf
        for name, sequence in itertools.chain(*examples.values()):
            if len(sequence) > limit:
                left_out[name] = f"it has {len(sequence)} tokens, the model takes {limit}"
        self.left_out = left_out
        kept = [example for example in examples["train"] if example[0] not in left_out]
        self._names, self._sequences = [name for name, _ in kept], [sequence for _, sequence in kept]
        self._dev = [sequence for name, sequence in examples["dev"] if name not in left_out]
        self.lengths = np.asarray([len(s) for s in self._sequences], np.int64)

    def evaluate(self) -> dict[str, float]:
        """Measures the perplexity per token of dev's speech alone, marks included."""
        total, tokens = 0.0, 0
        for start in range(0, len(self._dev), 32):
            rows = self._dev[start : start + 32]
            nats_BN, weights_BN = nats(self.model, self._written.collate(rows))
            total += float(nats_BN[weights_BN > 0].sum())
            tokens += sum(len(row) - 1 for row in rows)
        return {"dev_unit_perplexity": math.exp(total / tokens)}
