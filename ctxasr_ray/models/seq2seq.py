"""Any model that `AutoModelForSpeechSeq2Seq` loads: waveforms -> encoder states -> log-probs of texts.

Every utterance goes through its own feature extractor alone: Whisper pads it to its fixed window, others do not pad.
Only features of equal length share an encoder pass, so no utterance hears another one or its padding.
Letters: U utterances, T encoder positions, D width, L tokens of a text, P prompt, V vocabulary, H heads.
"""

import inspect
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoFeatureExtractor, AutoModelForSpeechSeq2Seq
from transformers.modeling_outputs import BaseModelOutput

from ctxasr_ray.models.attention import ctc_frames, load_head
from ctxasr_ray.models.checkpoint import CTC_HEAD, Checkpoint, check_vocabulary, load_model, load_tokenizer
from ctxasr_ray.models.seq2seq_decoding import LooksAhead, RowDecoding, TreeDecoding
from ctxasr_ray.models.seq2seq_forced import ForcedScores, TeacherForcing
from ctxasr_ray.models.seq2seq_tokens import Seq2SeqTokens
from ctxasr_ray.models.whisper_decoding import WhisperWeights, is_plain_whisper
from ctxasr_ray.recordings import CUT_OR_RAISE, Limits
from ctxasr_ray.token_tree import Int32

Waveform = npt.NDArray[np.float32]

PROBE_TOLERANCE: Final = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.02}
"""Largest difference between our steps and the whole model, relative to the spread of its logits; a wrong position or
mask differs by more than the spread itself."""
_MIN_S: Final = 0.1
_DURATION_PROBE_S: Final = (1, 3)
_log = logging.getLogger(__name__)


@dataclass
class _States(BaseModelOutput):  # type: ignore[misc]  # transformers is untyped here
    """Encoder output with the field that some models ask for."""

    attention_mask: torch.Tensor | None = None


class Seq2SeqModel:
    """An attention recogniser whose results do not depend on what else is in its batch.

    Args:
        checkpoint: From `checkpoint.resolve`.
        dtype: float32, bfloat16 or float16; log-probs are float32 always.
        device: As torch writes it, for example "cuda:0".
        options: Of `Seq2SeqTokens`: task, before, prompt_tokens.

    Raises:
        ValueError: no such model, an incomplete one, a tokenizer or feature extractor that does not fit, or a
            decoder that neither tree nor rows step through exactly.
    """

    tokens: Seq2SeqTokens
    sample_rate_hz: int
    window_s: float | None
    """Longest audio that the feature extractor takes; None where it sets no limit."""
    max_positions: int
    """Longest prompt and text together."""
    frame_duration_s: float
    """Seconds from one encoder position to the next."""
    ctc_blank_id: int
    """Of the CTC head, where there is one."""
    refusal: str | None
    """Why beams are rows of a batch instead of a tree; None where the tree is used."""

    def __init__(self, checkpoint: Checkpoint, *, dtype: str = "float32", device: str = "cpu", **options: Any) -> None:
        self.name, self._dtype_name = checkpoint.name, dtype
        self._model = load_model(AutoModelForSpeechSeq2Seq, checkpoint, dtype=getattr(torch, dtype)).to(device)
        self._encoder, self._decoder = self._model.get_encoder(), self._model.get_decoder()
        self._head = self._model.get_output_embeddings()
        self.device, self.dtype = torch.device(device), getattr(torch, dtype)
        config = self._model.config
        tokenizer = load_tokenizer(checkpoint)
        self.num_outputs = int(self._head.weight.shape[0])
        check_vocabulary(checkpoint, tokenizer, self.num_outputs, special_may_exceed=True)
        try:
            self.tokens = Seq2SeqTokens(tokenizer, self._model.generation_config, config, self.num_outputs, **options)
            self._extractor = AutoFeatureExtractor.from_pretrained(
                str(checkpoint.directory), trust_remote_code=False, local_files_only=True
            )
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"model '{checkpoint.name}': {error}") from error
        self.sample_rate_hz = int(self._extractor.sampling_rate)
        samples = getattr(self._extractor, "n_samples", None)
        self.window_s = None if samples is None else samples / self.sample_rate_hz
        self._check_window(config)
        decoder_config = config.get_text_config(decoder=True)
        self.max_positions = int(
            getattr(config, "max_target_positions", None) or decoder_config.max_position_embeddings
        )
        self._decoding, self.refusal = self._probe()
        self._forcing = TeacherForcing(
            self._decoder,
            self._head,
            in_tree=self.refusal is None,
            eos_id=self.tokens.eos_id,
            max_positions=self.max_positions,
        )
        num_layers, num_heads = len(self._decoder.layers), int(decoder_config.num_attention_heads)
        self._alignment_heads = getattr(self._model.generation_config, "alignment_heads", None) or [
            (layer, head) for layer in range(num_layers // 2, num_layers) for head in range(num_heads)
        ]
        self._ctc_head = load_head(checkpoint.directory / CTC_HEAD, self._model)
        self.ctc_blank_id = int(config.pad_token_id)
        self.frame_duration_s = self._frame_duration(config)
        if self.refusal:
            _log.warning("%s: beams are rows of a batch, not a tree: %s", checkpoint.name, self.refusal)

    @property
    def min_samples(self) -> int:
        """Shortest audio that is worth hearing: 100 ms, more than the receptive field of any front end in use."""
        return round(_MIN_S * self.sample_rate_hz)

    def limits(self, max_audio_s: float) -> Limits:
        """What the model can hear, where a config allows so many seconds, and what to do about longer audio."""
        if self.window_s is None or max_audio_s < self.window_s:
            return Limits(self.sample_rate_hz, self.min_samples, max_audio_s, CUT_OR_RAISE)
        remedy = "the model hears no more at once: cut it into windows (`ctxasr prepare --segment`)."
        return Limits(self.sample_rate_hz, self.min_samples, self.window_s, remedy)

    @torch.inference_mode()
    def encode(self, waveforms: Sequence[Waveform]) -> list[torch.Tensor]:
        """Encoder states (1, T, D) of every utterance.

        Args:
            waveforms: Mono, float32, [-1, 1], at `sample_rate_hz`, each at least `min_samples` long and not longer
                than `window_s`.
        """
        features = [self._features(waveform) for waveform in waveforms]
        states: list[torch.Tensor | None] = [None] * len(features)
        groups: dict[tuple[int, ...], list[int]] = {}
        for place, feature in enumerate(features):
            groups.setdefault(tuple(feature.shape), []).append(place)
        for places in groups.values():
            batch = torch.cat([features[place] for place in places]).to(self.device, self.dtype)
            states_UTD = self._encoder(batch).last_hidden_state
            for row, place in enumerate(places):
                states[place] = states_UTD[row : row + 1]
        return [one for one in states if one is not None]

    def check_prompt(self, language: str | None) -> None:
        """Refuses a language that the model lacks and a prompt that leaves no room for a text.

        Args:
            language: As for `Seq2SeqTokens.prompt`; None where each utterance brings its own.

        Raises:
            ValueError: names the language or the length.
        """
        if language is None and self.tokens.is_multilingual:
            language = self.tokens.languages[0]
        num_tokens = len(self.tokens.prompt(language))
        if num_tokens >= self.max_positions:
            raise ValueError(
                f"model '{self.name}': the prompt has {num_tokens} tokens, prompt and text together may have "
                f"{self.max_positions}; shorten the prompt."
            )

    @property
    def many_utterances(self) -> bool:
        """Whether one decoding holds several utterances."""
        return self.refusal is None

    def decode(self, states_UTD: torch.Tensor) -> LooksAhead:
        """Opens a decoding; rows of a batch (`refusal`) hold one utterance only."""
        decoding: LooksAhead = self._decoding(self._decoder, self._head, states_UTD)
        return decoding

    def forced_scores(self, states_1TD: torch.Tensor, prompt: Int32, texts: Sequence[Int32]) -> ForcedScores:
        """Exact scores of given texts, as `TeacherForcing.scores`."""
        return self._forcing.scores(states_1TD, prompt, texts)

    def attention(
        self, states_1TD: torch.Tensor, prompt: Int32, texts: Sequence[Int32]
    ) -> list[npt.NDArray[np.float32]] | None:
        """Per text (H, L + 1, T) weights of the heads that follow the audio, as `TeacherForcing.attention`.

        These are the `alignment_heads` of the generation config; without them all heads of the upper half of the
        decoder's layers, as Whisper has it. None if the decoder hands out no weights.
        """
        heads = [(int(layer), int(head)) for layer, head in self._alignment_heads]
        return self._forcing.attention(states_1TD, prompt, texts, heads)

    @property
    def has_ctc_head(self) -> bool:
        """Whether `ctc_log_probs` can be asked."""
        return self._ctc_head is not None

    @torch.inference_mode()
    def ctc_log_probs(self, states_1TD: torch.Tensor, num_frames: int) -> npt.NDArray[np.float32]:
        """(T, V) log-softmax of the CTC head over the tokens of the decoder, in nats, blank at `ctc_blank_id`.

        Args:
            states_1TD: Of one utterance, from `encode`.
            num_frames: From `num_frames`; what is behind is padding that the head never learned.
        """
        assert self._ctc_head is not None, "asked of a model without CTC head"
        log_probs_TV: npt.NDArray[np.float32] = (
            self._ctc_head(states_1TD[0, :num_frames]).float().log_softmax(-1).cpu().numpy()
        )
        return log_probs_TV

    def num_frames(self, states_1TD: torch.Tensor, num_samples: int) -> int:
        """Encoder positions that hear the utterance and not the padding behind it."""
        num_positions = int(states_1TD.shape[1])
        if self.window_s is None:
            return num_positions
        return min(num_positions, max(1, ctc_frames(num_samples // int(self._extractor.hop_length))))

    def _ids(self, ids: npt.NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(np.asarray(ids, np.int64)).to(self.device)

    def _features(self, waveform: Waveform) -> torch.Tensor:
        batch = self._extractor(waveform, sampling_rate=self.sample_rate_hz, return_tensors="pt")
        values: torch.Tensor = batch[self._extractor.model_input_names[0]]
        return values

    def _frame_duration(self, config: Any) -> float:
        if self.window_s is not None:
            return float(self.window_s / config.max_source_positions)
        short, long = self.encode([_noise(seconds * self.sample_rate_hz) for seconds in _DURATION_PROBE_S])
        return (_DURATION_PROBE_S[1] - _DURATION_PROBE_S[0]) / (long.shape[1] - short.shape[1])

    def _check_window(self, config: Any) -> None:
        frames, positions = getattr(self._extractor, "nb_max_frames", None), getattr(config, "max_source_positions", 0)
        if frames is not None and frames != 2 * positions:
            raise ValueError(
                f"model '{self.name}': preprocessor_config.json pads to {frames} frames, the encoder of config.json "
                f"takes {2 * positions} (max_source_positions {positions}); mend chunk_length."
            )

    @torch.inference_mode()
    def _probe(self) -> tuple[Any, str | None]:
        """The first way of stepping that agrees with the whole model, and why it is not the tree."""
        states_1TD = torch.randn(
            (1, 16, self._model.config.hidden_size), generator=torch.Generator().manual_seed(0)
        ).to(self.device, self.dtype)
        usable = np.flatnonzero(~self.tokens.suppressed)
        a, b, c, d = (int(usable[i * (len(usable) - 1) // 3]) for i in range(4))
        start = self.tokens.start_id
        expected = torch.stack([self._whole(states_1TD, path) for path in ([start, b, c], [start, a, d])])
        reason = "its decoder takes no position_ids"
        ways: list[Any] = [RowDecoding]
        if "position_ids" in inspect.signature(self._decoder.forward).parameters:
            ways = [TreeDecoding, RowDecoding]
        if is_plain_whisper(self._decoder):
            ways = [WhisperWeights(self._decoder).decoding, *ways]
        for way in ways:
            decoding = way(self._decoder, self._head, states_1TD)
            decoding.start(self._ids(np.array([[start]])))
            decoding.advance(self._ids(np.array([[a, b]])), self._ids(np.array([[0, 0]])))
            got = decoding.advance(self._ids(np.array([[c, d]])), self._ids(np.array([[1, 0]])))[0]
            off = float((got - expected).abs().max() / expected.std())
            if off <= PROBE_TOLERANCE[self._dtype_name]:
                return way, reason if way is RowDecoding else None
            reason = f"{way.__qualname__} is off by {off:.2g} of the logits' spread"
        raise ValueError(f"model '{self.name}': its decoder cannot be stepped through exactly: {reason}.")

    def _whole(self, states_1TD: torch.Tensor, path: Sequence[int]) -> torch.Tensor:
        logits: torch.Tensor = self._model(
            encoder_outputs=_States(last_hidden_state=states_1TD),
            decoder_input_ids=self._ids(np.array([path])),
            use_cache=False,
        ).logits
        return logits[0, -1].float()


def _noise(num_samples: int) -> Waveform:
    return (0.1 * np.random.default_rng(0).standard_normal(num_samples)).astype(np.float32)
