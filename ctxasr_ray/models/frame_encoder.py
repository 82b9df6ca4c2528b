"""The last states of a speech encoder of transformers, without the frames that hear only padding.

Letters of shapes: B utterances, T encoder frames, D width.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ctxasr_ray.models.checkpoint import Checkpoint, load_model
from ctxasr_ray.recordings import CUT_OR_RAISE, Limits

if TYPE_CHECKING:
    import torch


class FrameEncoder:
    """Whisper's encoder, or any other that `AutoModel` loads, with its own feature extractor.

    Attributes:
        name: Of its checkpoint.
        module: The encoder, in evaluation mode.
        extractor: Its feature extractor.
        sample_rate_hz: What it is given.
        width: D.
    """

    def __init__(self, checkpoint: Checkpoint, *, dtype: str = "float32", device: str = "cpu") -> None:
        """Loads the encoder; of an encoder-decoder model the rest is dropped.

        Args:
            checkpoint: From `checkpoint.resolve`.
            dtype: float32, bfloat16 or float16.
            device: As torch writes it.

        Raises:
            ValueError: no speech encoder, or no feature extractor beside it.
        """
        import torch
        from transformers import AutoFeatureExtractor, AutoModel

        self.name = checkpoint.name
        model = load_model(AutoModel, checkpoint, dtype=getattr(torch, dtype)).to(device)
        # Parakeet is loaded with its CTC head, around an encoder that has a config of its own.
        whole = not model.config.is_encoder_decoder and not hasattr(model.config, "encoder_config")
        self.module: Any = model if whole else model.get_encoder()
        try:
            self.extractor: Any = AutoFeatureExtractor.from_pretrained(
                str(checkpoint.directory), trust_remote_code=False, local_files_only=True
            )
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"encoder '{checkpoint.name}': no feature extractor can be read: {error}") from error
        self.sample_rate_hz = int(self.extractor.sampling_rate)
        self.width = int(self.module.config.hidden_size)
        self._window: int | None = getattr(self.extractor, "n_samples", None)

    def limits(self, max_audio_s: float, stack: int) -> Limits:
        """What can be heard where a config allows so many seconds: at least one stacked frame of 20 ms each."""
        window_s = max_audio_s if self._window is None else self._window / self.sample_rate_hz
        shortest = round(max(0.025, 0.02 * stack) * self.sample_rate_hz)
        return Limits(self.sample_rate_hz, shortest, min(max_audio_s, window_s), CUT_OR_RAISE)

    def num_frames(self, num_samples: int, num_states: int) -> int:
        """Encoder frames that hear an utterance, of those that its padded window has."""
        if self._window is None:
            return num_states
        return min(num_states, -(-num_states * num_samples // self._window))

    def states(self, samples: npt.NDArray[np.float32]) -> "torch.Tensor":
        """(1, T, D) of one utterance, as long as it is heard.

        Args:
            samples: (num_samples,) mono, [-1, 1], at `sample_rate_hz`.
        """
        import torch

        batch = self.extractor(
            [samples], sampling_rate=self.sample_rate_hz, return_tensors="pt", return_attention_mask=True
        )
        values = batch[self.extractor.model_input_names[0]]
        options: dict[str, torch.Tensor] = {}
        if self._window is None:  # one utterance alone has no padding but what the extractor itself may add
            if "attention_mask" in batch:
                values = values[:, : int(batch["attention_mask"].sum())]
            options["attention_mask"] = torch.ones(values.shape[:2], dtype=torch.bool, device=self.module.device)
        states_1TD = self(values, **options)
        return states_1TD[:, : self.num_frames(len(samples), states_1TD.shape[1])]

    def __call__(self, values: "torch.Tensor", **options: Any) -> "torch.Tensor":
        """(B, T, D) states of features of equal length, differentiable."""
        found: torch.Tensor = self.module(values.to(self.module.device, self.module.dtype), **options).last_hidden_state
        return found
