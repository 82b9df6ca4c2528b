"""Any encoder that `AutoModel` loads: texts -> unit vectors, by the mean of their last states.

Letters: N texts, L tokens, D dimensions.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ctxasr_ray.models.checkpoint import Checkpoint, load_model, load_tokenizer

_TEXTS_PER_FORWARD = 64


class TextEncoder:
    """Embeds texts; equal texts have equal vectors up to rounding, whatever is beside them."""

    def __init__(self, checkpoint: Checkpoint, *, device: str = "cpu") -> None:
        """Loads the model.

        Args:
            checkpoint: With a tokenizer.
            device: As torch writes it; "auto" is CUDA where the actor has a GPU, else the CPU.
        """
        import torch
        from transformers import AutoModel

        self._device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        self._tokenizer = load_tokenizer(checkpoint)
        self._model = load_model(AutoModel, checkpoint, dtype="float32").to(self._device).eval()
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """(N, D) unit vectors; long texts are cut at the model's limit."""
        import torch

        vectors: list[npt.NDArray[np.float32]] = []
        with torch.inference_mode():
            for start in range(0, len(texts), _TEXTS_PER_FORWARD):
                batch = [one or " " for one in texts[start : start + _TEXTS_PER_FORWARD]]
                inputs = self._tokenizer(batch, return_tensors="pt", padding=True, truncation=True, max_length=128)
                inputs = {key: value.to(self._device) for key, value in inputs.items() if key != "token_type_ids"}
                states_NLD = self._model(**inputs).last_hidden_state
                mask_NL1 = inputs["attention_mask"].unsqueeze(-1).to(states_NLD.dtype)
                mean_ND = (states_NLD * mask_NL1).sum(dim=1) / mask_NL1.sum(dim=1).clamp(min=1)
                vectors.append(torch.nn.functional.normalize(mean_ND, dim=-1).cpu().numpy())
        return np.asarray(np.concatenate(vectors), dtype=np.float32)
