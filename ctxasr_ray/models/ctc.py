"""Any model that `AutoModelForCTC` loads: waveforms -> log-probs per frame.

Letters: B utterances, S samples or feature frames, T output frames, V labels, blank included.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ctxasr_ray.models.checkpoint import Checkpoint, load_model, load_tokenizer
from ctxasr_ray.models.ctc_spelling import Spelling
from ctxasr_ray.models.ctc_vocabulary import Vocabulary, vocabulary
from ctxasr_ray.recordings import CUT_OR_RAISE, Limits

Waveform = npt.NDArray[np.float32]

PADDING_TOLERANCE: Final = {"float32": 1e-3, "bfloat16": 2e-2, "float16": 2e-2}
"""Largest change (root mean square, relative to the spread of the log-probs) that padding may make at load for
utterances of different lengths to share a batch. Measured on tiny models of 13 families: a right mask changes 1e-6 in
float32 and at most 0.005 in bfloat16, a model that ignores its mask somewhere changes 0.04 to 0.7."""
_PROBE_S: Final = (1.0, 3.0)


class CtcModel:
    """A CTC recogniser whose results do not depend on what else is in its batch.

    At load two noises are run apart and padded together. Where the results differ (group norm over time, convolutions
    that ignore the mask), or the family does not say how long its outputs are, only equal lengths share a batch.

    Attributes:
        vocabulary: Labels as text.
        spelling: Text as labels.
        sample_rate_hz: What `log_probs` expects.
        frame_duration_s: Seconds from one output frame to the next, derived at load.
        pads_safely: Whether utterances of different lengths share a batch.
    """

    def __init__(self, checkpoint: Checkpoint, *, dtype: str = "float32", device: str = "cpu") -> None:
        """Loads weights, feature extractor and tokenizer.

        Args:
            checkpoint: From `resolve`.
            dtype: float32, bfloat16 or float16; log-probs are float32 always.
            device: As torch writes it, for example "cuda:0".

        Raises:
            ValueError: no CTC model, an incomplete one, or a tokenizer or feature extractor that does not fit.
        """
        import torch
        from transformers import AutoFeatureExtractor, AutoModelForCTC

        self._name = checkpoint.name
        self._torch = torch
        self._model = load_model(AutoModelForCTC, checkpoint, dtype=getattr(torch, dtype)).to(device)
        self._tolerance = PADDING_TOLERANCE[dtype]
        self._device, self._dtype = torch.device(device), getattr(torch, dtype)
        try:
            self._extractor = AutoFeatureExtractor.from_pretrained(
                str(checkpoint.directory), trust_remote_code=False, local_files_only=True
            )
        except (OSError, ValueError, KeyError) as error:
            path = checkpoint.directory / "preprocessor_config.json"
            raise ValueError(
                f"model '{checkpoint.name}': no feature extractor can be read from {path}: {error}"
            ) from error
        config = self._model.config
        tokenizer = load_tokenizer(checkpoint)
        self.vocabulary: Vocabulary = vocabulary(checkpoint, tokenizer, int(config.vocab_size), config.pad_token_id)
        self.spelling = Spelling(tokenizer, self.vocabulary)
        self.sample_rate_hz = int(self._extractor.sampling_rate)
        self.pads_safely, self.frame_duration_s = self._probe()

    def log_probs(self, waveforms: Sequence[Waveform]) -> list[npt.NDArray[np.float32]]:
        """Log-softmax at temperature 1 of every utterance, in nats.

        Args:
            waveforms: Mono, float32, [-1, 1], at `sample_rate_hz`, each at least `min_samples` long.

        Returns:
            One (T, V) array per waveform, without frames of padding.
        """
        features = [self._features(waveform) for waveform in waveforms]
        results: list[npt.NDArray[np.float32]] = [np.empty((0, 0), dtype=np.float32)] * len(features)
        for places in self._groups([mask.shape[0] for _, mask in features]):
            for place, log_probs in zip(places, self._forward([features[p] for p in places]), strict=True):
                results[place] = log_probs
        return results

    @property
    def min_samples(self) -> int:
        """Shortest audio that the model can read: two output frames, and at least 50 ms."""
        return round(max(0.05, 2 * self.frame_duration_s) * self.sample_rate_hz)

    def limits(self, max_audio_s: float) -> Limits:
        """What the model can hear, where a config allows so many seconds."""
        return Limits(self.sample_rate_hz, self.min_samples, max_audio_s, CUT_OR_RAISE)

    def _groups(self, lengths: Sequence[int]) -> list[list[int]]:
        if self.pads_safely:
            return [list(range(len(lengths)))] if lengths else []
        places: dict[int, list[int]] = {}
        for place, length in enumerate(lengths):
            places.setdefault(length, []).append(place)
        return list(places.values())

    def _features(self, waveform: Waveform) -> tuple[Any, Any]:
        """((S,) samples or (S, F) features, (S,) bool mask) of one utterance alone, so that no neighbour touches it."""
        batch = self._extractor(
            [waveform], sampling_rate=self.sample_rate_hz, return_tensors="pt", return_attention_mask=True
        )
        values = batch[self._extractor.model_input_names[0]][0]
        mask = batch["attention_mask"][0].bool() if "attention_mask" in batch else None
        if mask is None:
            mask = self._torch.ones(values.shape[0], dtype=self._torch.bool)
        return values, mask

    def _forward(self, features: Sequence[tuple[Any, Any]]) -> list[npt.NDArray[np.float32]]:
        torch = self._torch
        longest = max(values.shape[0] for values, _ in features)
        shape = (len(features), longest, *features[0][0].shape[1:])
        values_BS = torch.full(shape, float(self._extractor.padding_value))
        mask_BS = torch.zeros(shape[:2], dtype=torch.long)
        for row, (values, mask) in enumerate(features):
            values_BS[row, : values.shape[0]] = values
            mask_BS[row, : mask.shape[0]] = mask
        with torch.inference_mode():
            logits_BTV = self._model(
                values_BS.to(self._device, self._dtype), attention_mask=mask_BS.to(self._device)
            ).logits
            log_probs_BTV = torch.log_softmax(logits_BTV.float(), dim=-1).cpu().numpy()
        num_frames = self._num_frames(mask_BS.sum(dim=1))
        if num_frames is None:
            return list(log_probs_BTV)
        return [log_probs_BTV[row, : max(0, n)] for row, n in enumerate(num_frames.tolist())]

    def _num_frames(self, num_inputs_B: Any) -> Any:
        """(B,) valid output frames, by the family's own arithmetic; None where the family offers none."""
        for name in ("_get_subsampling_output_length", "_get_feat_extract_output_lengths"):
            if hasattr(self._model, name):
                return getattr(self._model, name)(num_inputs_B).to("cpu", self._torch.long)
        return None

    def _probe(self) -> tuple[bool, float]:
        """(whether padding leaves results alone, seconds per output frame)."""
        rng = np.random.default_rng(0)
        noises = [(0.1 * rng.standard_normal(round(s * self.sample_rate_hz))).astype(np.float32) for s in _PROBE_S]
        features = [self._features(noise) for noise in noises]
        alone = [self._forward([feature])[0] for feature in features]
        if alone[0].shape[1] != len(self.vocabulary.pieces):
            raise ValueError(
                f"model '{self._name}': config.json says vocab_size {len(self.vocabulary.pieces)}, "
                f"the model has {alone[0].shape[1]} outputs; mend config.json."
            )
        seconds = _PROBE_S[1] - _PROBE_S[0]
        many = 1_024_000  # divisible by every stride in use (320, 640, 1280 samples, 2, 4, 8 features): no rounding
        lengths = self._num_frames(self._torch.tensor([many, 2 * many]))
        if lengths is None:
            return False, seconds / (alone[1].shape[0] - alone[0].shape[0])
        inputs_per_s = (int(features[1][1].sum()) - int(features[0][1].sum())) / seconds
        frame_duration_s = many / int(lengths[1] - lengths[0]) / inputs_per_s
        together = self._forward(features)
        if any(a.shape != b.shape for a, b in zip(alone, together, strict=True)):
            return False, frame_duration_s
        change = np.sqrt(np.mean((alone[0] - together[0]) ** 2)) / alone[0].std()
        return bool(change <= self._tolerance), frame_duration_s
