"""Language models that hear, behind one protocol: our LLM recogniser, and the audio-language models of transformers.

Whatever the architecture, the sound becomes embeddings once per utterance, and texts are branches of one token tree
behind them. An audio-language model's own forward makes these embeddings: what it hands to its language model is
caught there, so no architecture is special. A load check compares the tree with the whole model on a noise.
Letters: P prefix, D width.
"""

from collections.abc import Sequence
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import torch

from ctxasr_ray.models import speech_llm
from ctxasr_ray.models.causal_lm import CausalLm
from ctxasr_ray.models.checkpoint import Checkpoint, load_model, load_tokenizer
from ctxasr_ray.models.dtypes import INT8
from ctxasr_ray.models.list_trees import ScoreRequest
from ctxasr_ray.models.speech_prompt import SPEECH
from ctxasr_ray.models.text_tokens import TextTokens
from ctxasr_ray.recordings import CUT_OR_RAISE, Limits

Waveform = npt.NDArray[np.float32]

PROBE_TOLERANCE: Final = 1e-2
"""Largest difference of a text's log_prob from the whole model's, in nats (float32); a lost sound costs nats."""
HALF_TOLERANCE: Final = 0.5
"""The same for half precision."""
_MIN_S: Final = 0.1
_PROBE_S: Final = 1.0


class AudioLm(Protocol):
    """A loaded model that says log P(text | sound)."""

    @property
    def name(self) -> str:
        """As the user wrote it."""
        ...

    @property
    def lm(self) -> CausalLm:
        """Scores and steps behind a prefix."""
        ...

    @property
    def tokens(self) -> TextTokens:
        """Texts to tokens."""
        ...

    def limits(self, max_audio_s: float) -> Limits:
        """What it can hear."""
        ...

    def prefix(self, samples: Waveform, keywords: Sequence[str] = (), history: str | None = None) -> torch.Tensor:
        """(P, D) embeddings of instruction and sound."""
        ...


def load_audio_lm(
    checkpoint: Checkpoint, *, dtype: str = "float32", device: str = "auto", prompt: str | None = None
) -> AudioLm:
    """Loads an LLM recogniser of ours, or any model that `AutoModelForMultimodalLM` loads.

    Args:
        checkpoint: From `checkpoint.resolve`.
        dtype: A floating type of torch; of ours also int8, see `models.int8_linear`.
        device: As torch writes it; "auto" is CUDA where there is one, else the CPU.
        prompt: Template with `{speech}`; None is the model's own.

    Raises:
        ValueError: as `speech_llm.load` and `TransformersAudioLm`, or int8 is asked of a model of transformers.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if speech_llm.is_ours(checkpoint):
        return speech_llm.load(checkpoint, dtype=dtype, device=device, prompt=prompt)
    from transformers import AutoModelForMultimodalLM, AutoProcessor

    if dtype == INT8:
        raise ValueError(f"model '{checkpoint.name}': dtype int8 is for LLM recognisers of ours; take bfloat16.")
    model = load_model(AutoModelForMultimodalLM, checkpoint, dtype=getattr(torch, dtype)).to(device)
    place = str(checkpoint.directory)
    try:
        processor = AutoProcessor.from_pretrained(place, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ValueError(f"model '{checkpoint.name}': no processor can be read: {error}") from error
    tokens = TextTokens(load_tokenizer(checkpoint))
    return TransformersAudioLm(model, processor, tokens, name=checkpoint.name, prompt=prompt, place=place)


class TransformersAudioLm:
    """An audio-language model of transformers: Qwen2-Audio, Voxtral, Granite Speech, ...

    Args:
        model: In evaluation mode.
        processor: Its processor.
        tokens: Its tokenizer's text side.
        name: Stands in messages.
        prompt: Text with `{speech}` where the sound stands, special tokens spelled out; None is the processor's own
            request for a transcript, or its chat template around the sound alone.
        place: Directory or hub id, which a request for a transcript names.

    Raises:
        ValueError: a prompt without a place for the sound, or a model whose texts behind a sound are no token tree.
    """

    def __init__(
        self, model: Any, processor: Any, tokens: TextTokens, *, name: str, prompt: str | None = None, place: str = ""
    ) -> None:
        if prompt is not None and prompt.count(SPEECH) != 1:
            raise ValueError(f"prompt {prompt!r} must hold {SPEECH} once.")
        self._model, self._processor, self.tokens, self.name = model, processor, tokens, name
        self._template, self._place = prompt, place
        self._extractor: Any = getattr(processor, "feature_extractor", None) or processor.audio_processor
        self._rate = int(getattr(self._extractor, "sampling_rate", 16000))
        self.lm = CausalLm(_TextSide(model), eos_token_id=tokens.eos_token_id, special_ids=tokens.special_ids)
        self._check(PROBE_TOLERANCE if model.dtype == torch.float32 else HALF_TOLERANCE)

    def limits(self, max_audio_s: float) -> Limits:
        """At least 100 ms, at most the extractor's window where it has one."""
        window = getattr(self._extractor, "n_samples", None)
        longest = max_audio_s if window is None else min(max_audio_s, window / self._rate)
        return Limits(self._rate, round(_MIN_S * self._rate), longest, CUT_OR_RAISE)

    @torch.inference_mode()
    def prefix(self, samples: Waveform, keywords: Sequence[str] = (), history: str | None = None) -> torch.Tensor:
        """(P, D) what the model hands to its language model for instruction and sound.

        Args:
            samples: (num_samples,) mono, [-1, 1], at the rate of `limits`.
            keywords: Must be empty: these models' prompts have no place for them.
            history: Must be None.
        """
        if keywords or history:
            raise ValueError(f"model '{self.name}' is given no keywords and no history; write them into the prompt.")
        caught: list[torch.Tensor] = []

        def catch(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
            caught.append(kwargs["inputs_embeds"])
            raise _CaughtError

        handle = self.lm.body.base.register_forward_pre_hook(catch, with_kwargs=True)
        try:
            self._model(**self._inputs(samples), use_cache=False)
        except _CaughtError:
            pass
        finally:
            handle.remove()
        return caught[0][0]

    def _inputs(self, samples: Waveform) -> dict[str, torch.Tensor]:
        own = self._processor
        if self._template is not None:
            written = self._template.replace(SPEECH, own.audio_token)
            batch = own(text=[written], audio=[samples], return_tensors="pt")
        elif hasattr(own, "apply_transcription_request"):
            batch = own.apply_transcription_request(
                audio=[samples], model_id=self._place, sampling_rate=self._rate, format=["wav"]
            )
        else:
            asked = [{"role": "user", "content": [{"type": "audio", "audio": samples}]}]
            batch = own.apply_chat_template(
                [asked], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
            )
        device, dtype = self.lm.device, self._model.dtype
        return {
            name: value.to(device, dtype) if value.is_floating_point() else value.to(device)
            for name, value in batch.items()
            if isinstance(value, torch.Tensor)
        }

    @torch.inference_mode()
    def whole(self, samples: Waveform, text: npt.NDArray[np.int32]) -> float:
        """Log P(text | sound) by one forward of the whole model: slow, the second opinion."""
        inputs = self._inputs(samples)
        ids = torch.from_numpy(text.astype(np.int64))[None].to(self.lm.device)
        inputs["input_ids"] = torch.cat([inputs["input_ids"], ids], dim=1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        logits_NV = self._model(**inputs, use_cache=False).logits[0].float()
        log_probs_NV = logits_NV[-len(text) - 1 : -1].log_softmax(-1)
        return float(log_probs_NV.gather(1, ids[0, :, None]).sum())

    def _check(self, tolerance: float) -> None:
        noise = 0.1 * np.random.default_rng(0).standard_normal(round(_PROBE_S * self._rate)).astype(np.float32)
        texts = [ids for ids in self.tokens.encode(["a", "a b", "b a"]) if len(ids)]
        (scores,) = self.lm.score([ScoreRequest(self.prefix(noise), texts)])
        expected = np.array([self.whole(noise, text) for text in texts])
        off = float(np.abs(scores.log_probs - expected).max())
        if not off <= tolerance:
            raise ValueError(
                f"model '{self.name}' ({type(self._model).__name__}): texts behind a sound score {off:.2g} nats off "
                "the whole model; its language model takes more than embeddings. Choose another model."
            )


class _CaughtError(Exception):
    """Ends a forward pass where the language model would begin."""


class _TextSide:
    """The language model of an audio-language model, as `CausalLm` sees a causal LM."""

    def __init__(self, model: Any) -> None:
        self._model, self.base_model = model, model.get_decoder()
        self.config, self.dtype = model.config, model.dtype
        self.get_input_embeddings = model.get_input_embeddings
        self.get_output_embeddings = model.get_output_embeddings

    def __call__(self, **inputs: Any) -> Any:
        return self._model(**inputs)
