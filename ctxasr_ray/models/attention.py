"""A Whisper-architecture recogniser: log-probs of tokens by its decoder, and of frames where it has a CTC head.

The CTC head is one linear layer over the encoder's states, in `ctc_head.safetensors` beside the model; its outputs
are the tokenizer's own vocabulary, <pad> being the blank. Letters of shapes: B utterances, M mel bins, F feature
frames of the window, T encoder positions, D width, N tokens, V vocabulary.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ctxasr_ray.models.checkpoint import CTC_HEAD as CTC_HEAD
from ctxasr_ray.models.checkpoint import Checkpoint, load_model, load_tokenizer

if TYPE_CHECKING:
    import torch


def ctc_frames(num_features: int) -> int:
    """Gives the encoder positions that hear speech, of an utterance with so many feature frames (10 ms each).

    The encoder has no mask: positions after these see padding, the CTC head never learns them and no one reads them.
    """
    return (num_features + 1) // 2


@dataclass(frozen=True, slots=True)
class AttentionModel:
    """The model, its head and how it hears and writes."""

    model: Any
    """`WhisperForConditionalGeneration`."""
    ctc_head: "torch.nn.Linear | None"
    """(D to V); None for a checkpoint without `ctc_head.safetensors`."""
    tokenizer: Any
    extractor: Any

    @property
    def start_id(self) -> int:
        """The token that the decoder starts from."""
        return int(self.model.config.decoder_start_token_id)

    @property
    def eos_id(self) -> int:
        """The token that ends a text."""
        return int(self.model.config.eos_token_id)

    @property
    def blank_id(self) -> int:
        """The CTC head's blank."""
        return int(self.model.config.pad_token_id)

    def features(self, samples: npt.NDArray[np.float32]) -> "tuple[torch.Tensor, int]":
        """Computes the log-mel window of one utterance.

        Args:
            samples: (num_samples,) mono, [-1, 1], at the extractor's rate.

        Returns:
            (1, M, F) float32, padded to the window, and the feature frames that hold speech.

        Raises:
            ValueError: the utterance is longer than the window; the extractor would cut it without a word.
        """
        window = int(self.extractor.n_samples)
        rate = int(self.extractor.sampling_rate)
        if len(samples) > window:
            raise ValueError(
                f"the utterance lasts {len(samples) / rate:.2f} s, the model's window is {window / rate:g} s; cut it."
            )
        features = self.extractor(samples, sampling_rate=rate, return_tensors="pt")["input_features"]
        return features, len(samples) // int(self.extractor.hop_length)

    def encode(self, features_BMF: "torch.Tensor") -> "torch.Tensor":
        """Gives the encoder's states (B, T, D); padding is part of what it hears, so pad by the window alone."""
        states: torch.Tensor = self.model.model.encoder(features_BMF.to(self.model.dtype)).last_hidden_state
        return states

    def ctc_log_probs(self, states_BTD: "torch.Tensor") -> "torch.Tensor":
        """Gives (B, T, V) float32 log-softmax in nats, blank at `blank_id`; read `ctc_frames` of them.

        Raises:
            ValueError: the checkpoint has no CTC head.
        """
        if self.ctc_head is None:
            raise ValueError(f"this attention model has no CTC head; a joint training writes one, {CTC_HEAD}.")
        return self.ctc_head(states_BTD).float().log_softmax(-1)  # type: ignore[no-any-return]  # Module calls are Any

    def decoder_logits(self, states_BTD: "torch.Tensor", tokens_BN: "torch.Tensor", **options: Any) -> Any:
        """Gives the decoder's outputs (`logits` (B, N, V), `past_key_values`) for forced tokens.

        Args:
            states_BTD: From `encode`; to be passed on every step, cached or not.
            tokens_BN: int64, beginning with `start_id` unless a cache holds what was before.
            options: Passed on: past_key_values, use_cache.
        """
        return self.model(encoder_outputs=(states_BTD,), decoder_input_ids=tokens_BN, **options)


def load(checkpoint: Checkpoint, *, dtype: str = "float32", device: str = "cpu") -> AttentionModel:
    """Loads a Whisper-architecture checkpoint with everything beside it.

    Args:
        checkpoint: From `models.checkpoint.resolve`.
        dtype: float32, bfloat16 or float16.
        device: As torch writes it.

    Raises:
        ValueError: not a Whisper architecture, incomplete, or a CTC head of another size; names the file.
    """
    import torch
    from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

    model = load_model(WhisperForConditionalGeneration, checkpoint, dtype=getattr(torch, dtype)).to(device)
    try:
        extractor = WhisperFeatureExtractor.from_pretrained(str(checkpoint.directory), local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"model '{checkpoint.name}': no Whisper feature extractor can be read: {error}") from error
    head = load_head(checkpoint.directory / CTC_HEAD, model)
    return AttentionModel(model, head, load_tokenizer(checkpoint), extractor)


def make_head(model: Any) -> "torch.nn.Linear":
    """Makes a CTC head for a model, with random weights."""
    import torch

    return torch.nn.Linear(model.config.hidden_size, model.config.vocab_size)


def save_head(head: "torch.nn.Linear", path: Path) -> None:
    """Writes a CTC head as float16 safetensors with the names weight and bias."""
    from safetensors.torch import save_file

    save_file({name: tensor.detach().half().contiguous() for name, tensor in head.state_dict().items()}, path)
    path.chmod(0o644)  # safetensors writes for the owner alone


def load_head(path: Path, model: Any) -> "torch.nn.Linear | None":
    """Reads the CTC head of a model; None where there is no such file.

    Raises:
        ValueError: a head of another size; names the file.
    """
    from safetensors.torch import load_file

    if not path.is_file():
        return None
    head = make_head(model).to(model.device, model.dtype)
    weights = {name: tensor.to(model.dtype) for name, tensor in load_file(path).items()}
    try:
        head.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{path} is not a CTC head of this model: {error}") from error
    return head.eval()
