"""Any model that `AutoModelForSpeechSeq2Seq` loads: waveforms -> encoder states -> log-probs of texts.

Every utterance goes through its own feature extractor alone: Whisper pads it to its fixed window, others do not pad.
Only features of equal length share an encoder pass, so no utterance hears another one or its padding.
Letters: U utterances, T encoder positions, D width, N texts, P prompt, n nodes, R rows, Q scores, V vocabulary.
"""

import inspect
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoFeatureExtractor, AutoModelForSpeechSeq2Seq
from transformers.modeling_outputs import BaseModelOutput

from ctxasr_ray.models.checkpoint import Checkpoint, check_vocabulary, load_model, load_tokenizer
from ctxasr_ray.models.seq2seq_decoding import Decoding, RowDecoding, TreeDecoding
from ctxasr_ray.models.seq2seq_tokens import Seq2SeqTokens
from ctxasr_ray.recordings import CUT_OR_RAISE, Limits
from ctxasr_ray.token_tree import Int32, merge

Waveform = npt.NDArray[np.float32]

LOGITS_LIMIT_BYTES: Final = 64 * 2**20
"""Largest logits buffer of a forced score."""
MAX_NODES: Final = 2048
"""Tokens in one pass of forced texts; the mask grows with their square."""
PROBE_TOLERANCE: Final = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.02}
"""Largest difference between our steps and the whole model, relative to the spread of its logits; a wrong position or
mask differs by more than the spread itself."""
_MIN_S: Final = 0.1
_log = logging.getLogger(__name__)


@dataclass
class _States(BaseModelOutput):  # type: ignore[misc]  # transformers is untyped here
    """Encoder output with the field that some models ask for."""

    attention_mask: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class ForcedScores:
    """What the recogniser says of given texts, in nats.

    Args:
        log_probs: (N,) float64 sum over the text's tokens, without prompt and end; 0.0 for an empty text.
        eos_log_probs: (N,) float64 of the end behind the text.
        reasons: (N,) None, or why a text has no score (which is then nan).
    """

    log_probs: npt.NDArray[np.float64]
    eos_log_probs: npt.NDArray[np.float64]
    reasons: list[str | None]


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
    refusal: str | None
    """Why beams are rows of a batch instead of a tree; None where the tree is used."""

    def __init__(self, checkpoint: Checkpoint, *, dtype: str = "float32", device: str = "cpu", **options: Any) -> None:
        self._name, self._dtype_name = checkpoint.name, dtype
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
        remedy = "the model hears no more at once: cut it into windows (start_s, duration_s)."
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
                f"model '{self._name}': the prompt has {num_tokens} tokens, prompt and text together may have "
                f"{self.max_positions}; shorten the prompt."
            )

    @property
    def many_utterances(self) -> bool:
        """Whether one decoding holds several utterances."""
        return self.refusal is None

    def decode(self, states_UTD: torch.Tensor) -> Decoding:
        """Opens a decoding; rows of a batch (`refusal`) hold one utterance only."""
        decoding: Decoding = self._decoding(self._decoder, self._head, states_UTD)
        return decoding

    @torch.inference_mode()
    def forced_scores(self, states_1TD: torch.Tensor, prompt: Int32, texts: Sequence[Int32]) -> ForcedScores:
        """Exact scores of given texts by teacher forcing; equal beginnings are forwarded once.

        Args:
            states_1TD: Of one utterance, from `encode`.
            prompt: (P,) from `Seq2SeqTokens.prompt`.
            texts: N token sequences, without end.
        """
        reasons: list[str | None] = [self._limit(len(prompt) + len(text)) for text in texts]
        log_probs, eos_log_probs = np.full(len(texts), np.nan), np.full(len(texts), np.nan)
        for group in self._groups(texts, reasons):
            chosen = [texts[i] for i in group]
            paths, hidden_RD = self._forced(states_1TD, prompt, chosen)
            targets = [np.append(text, self.tokens.eos_id).astype(np.int64) for text in chosen]
            values = self._read(hidden_RD, np.concatenate(paths), np.concatenate(targets))
            for i, own in zip(group, np.split(values, np.cumsum([len(p) for p in paths])[:-1]), strict=True):
                log_probs[i], eos_log_probs[i] = own[:-1].sum(), own[-1]
                if not np.isfinite(own).all():
                    log_probs[i] = eos_log_probs[i] = np.nan
                    reasons[i] = f"the model's log_probs are not finite in {self._dtype_name}; use dtype float32"
        return ForcedScores(log_probs, eos_log_probs, reasons)

    def _limit(self, num_positions: int) -> str | None:
        if num_positions <= self.max_positions:
            return None
        return f"model_limit: {num_positions} tokens with the prompt, the decoder takes {self.max_positions}"

    @staticmethod
    def _groups(texts: Sequence[Int32], reasons: Sequence[str | None]) -> Iterator[list[int]]:
        """Indices in groups of bounded size, neighbours in the alphabet together."""
        group: list[int] = []
        size = 0
        for i in sorted((i for i in range(len(texts)) if reasons[i] is None), key=lambda i: texts[i].tolist()):
            if group and size + len(texts[i]) > MAX_NODES:
                yield group
                group, size = [], 0
            group.append(i)
            size += len(texts[i])
        if group:
            yield group

    def _forced(
        self, states_1TD: torch.Tensor, prompt: Int32, texts: Sequence[Int32]
    ) -> tuple[list[npt.NDArray[np.int64]], torch.Tensor]:
        """Per text the rows whose states predict its tokens and its end, and the (R, D) states."""
        if self.refusal is None:
            merged = merge(texts, prompt)
            tree, nodes = merged.tree, np.arange(len(merged.tree), dtype=np.int32)
            seen = torch.from_numpy(tree.visible(nodes, nodes)).to(self.device)
            mask = torch.full(seen.shape, torch.finfo(self.dtype).min, dtype=self.dtype, device=self.device)
            hidden = self._decoder(
                input_ids=self._ids(tree.tokens[None]),
                attention_mask=mask.masked_fill_(seen, 0.0)[None, None],
                position_ids=self._ids(tree.depths[None]),
                encoder_hidden_states=states_1TD,
                use_cache=False,
            ).last_hidden_state[0]
            last = len(prompt) - 1
            return [
                np.concatenate([[last], own[: len(text)]]).astype(np.int64)
                for own, text in zip(merged.nodes, texts, strict=True)
            ], hidden
        rows, paths, start = [], [], 0
        for text in texts:
            tokens = np.concatenate([prompt, text])
            rows.append(
                self._decoder(
                    input_ids=self._ids(tokens[None]), encoder_hidden_states=states_1TD, use_cache=False
                ).last_hidden_state[0]
            )
            paths.append(np.arange(start + len(prompt) - 1, start + len(tokens)))
            start += len(tokens)
        return paths, torch.cat(rows)

    def _read(
        self, hidden_RD: torch.Tensor, rows_Q: npt.NDArray[np.int64], tokens_Q: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float64]:
        """(Q,) log-probs of single tokens; the head runs over a bounded number of rows at a time."""
        needed, local = np.unique(rows_Q, return_inverse=True)
        values = np.empty(len(rows_Q))
        step = max(1, LOGITS_LIMIT_BYTES // (4 * self.num_outputs))
        for start in range(0, len(needed), step):
            rows = torch.from_numpy(needed[start : start + step]).to(self.device)
            logits = self._head(hidden_RD[rows]).float()
            mine = np.flatnonzero((local >= start) & (local < start + step))
            picked = logits[self._ids(local[mine] - start), self._ids(tokens_Q[mine])]
            values[mine] = (picked - logits.logsumexp(-1)[self._ids(local[mine] - start)]).cpu().numpy()
        return values

    def _ids(self, ids: npt.NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(np.asarray(ids, np.int64)).to(self.device)

    def _features(self, waveform: Waveform) -> torch.Tensor:
        batch = self._extractor(waveform, sampling_rate=self.sample_rate_hz, return_tensors="pt")
        values: torch.Tensor = batch[self._extractor.model_input_names[0]]
        return values

    def _check_window(self, config: Any) -> None:
        frames, positions = getattr(self._extractor, "nb_max_frames", None), getattr(config, "max_source_positions", 0)
        if frames is not None and frames != 2 * positions:
            raise ValueError(
                f"model '{self._name}': preprocessor_config.json pads to {frames} frames, the encoder of config.json "
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
        for way in ways:
            decoding = way(self._decoder, self._head, states_1TD)
            decoding.start(self._ids(np.array([[start]])))
            decoding.advance(self._ids(np.array([[a, b]])), self._ids(np.array([[0, 0]])))
            got = decoding.advance(self._ids(np.array([[c, d]])), self._ids(np.array([[1, 0]])))[0]
            off = float((got - expected).abs().max() / expected.std())
            if off <= PROBE_TOLERANCE[self._dtype_name]:
                return way, None if way is TreeDecoding else reason
            reason = f"{way.__name__} is off by {off:.2g} of the logits' spread"
        raise ValueError(f"model '{self._name}': its decoder cannot be stepped through exactly: {reason}.")

    def _whole(self, states_1TD: torch.Tensor, path: Sequence[int]) -> torch.Tensor:
        logits: torch.Tensor = self._model(
            encoder_outputs=_States(last_hidden_state=states_1TD),
            decoder_input_ids=self._ids(np.array([path])),
            use_cache=False,
        ).logits
        return logits[0, -1].float()
