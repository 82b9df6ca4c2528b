"""Random audio-language models of transformers with widened weights, and processors that write as theirs do.

Their own processors ask for torchaudio (Granite Speech) or a Tekken file (Voxtral); these fakes count placeholders by
the same rules and hand over the same tensors.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers as tf
from test_scorer_causal_lm import bpe
from tiny_causal_lms import widen

from ctxasr_ray.models.text_tokens import TextTokens

AUDIO = "<|audio|>"
_TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
_HEARING: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_mel_bins": 20,
    "max_source_positions": 100,
}


@dataclass(frozen=True)
class Processor:
    """What a family's processor does: features, and as many placeholders as the model makes embeddings."""

    tokenizer: Any
    feature_extractor: Any
    features: Callable[[Any, np.ndarray], tuple[dict[str, torch.Tensor], int]]
    audio_token: str = AUDIO

    def __call__(self, *, text: list[str], audio: list[np.ndarray], return_tensors: str) -> dict[str, torch.Tensor]:
        values, num = self.features(self.feature_extractor, audio[0])
        ids = self.tokenizer(text[0].replace(AUDIO, AUDIO * num), add_special_tokens=False)["input_ids"]
        return {
            "input_ids": torch.tensor([ids]),
            "attention_mask": torch.ones(1, len(ids), dtype=torch.int64),
            **values,
        }


def _log_mel(extractor: Any, samples: np.ndarray) -> dict[str, torch.Tensor]:
    return extractor(samples, sampling_rate=16000, return_tensors="pt", return_attention_mask=True)


def _qwen2_audio(vocabulary: int, audio_id: int) -> tuple[Any, Any, Any]:
    hearing = tf.Qwen2AudioEncoderConfig(
        d_model=32,
        encoder_layers=1,
        encoder_attention_heads=2,
        encoder_ffn_dim=48,
        num_mel_bins=20,
        max_source_positions=100,
    )
    config = tf.Qwen2AudioConfig(
        audio_config=hearing, text_config=tf.Qwen2Config(vocab_size=vocabulary, **_TEXT), audio_token_id=audio_id
    )

    def features(extractor: Any, samples: np.ndarray) -> tuple[dict[str, torch.Tensor], int]:
        batch = _log_mel(extractor, samples)
        frames = int(batch["attention_mask"].sum())
        values = {"input_features": batch["input_features"], "feature_attention_mask": batch["attention_mask"]}
        return values, ((frames - 1) // 2 + 1 - 2) // 2 + 1

    extractor = tf.WhisperFeatureExtractor(feature_size=20, chunk_length=2)
    return tf.Qwen2AudioForConditionalGeneration(config), extractor, features


def _voxtral(vocabulary: int, audio_id: int) -> tuple[Any, Any, Any]:
    config = tf.VoxtralConfig(
        audio_config=tf.VoxtralEncoderConfig(**_HEARING),
        text_config=tf.LlamaConfig(vocab_size=vocabulary, **_TEXT).to_dict(),
        audio_token_id=audio_id,
    )

    def features(extractor: Any, samples: np.ndarray) -> tuple[dict[str, torch.Tensor], int]:
        return {"input_features": _log_mel(extractor, samples)["input_features"]}, 100 * 32 // 64

    extractor = tf.WhisperFeatureExtractor(feature_size=20, chunk_length=2)
    return tf.VoxtralForConditionalGeneration(config), extractor, features


def _granite_speech(vocabulary: int, audio_id: int) -> tuple[Any, Any, Any]:
    hearing = tf.GraniteSpeechEncoderConfig(
        input_dim=40, num_layers=1, hidden_dim=32, num_heads=2, dim_head=16, output_dim=8, context_size=20
    )
    window = {"window_size": 6, "downsample_rate": 3}
    config = tf.GraniteSpeechConfig(
        encoder_config=hearing,
        projector_config=tf.Blip2QFormerConfig(
            hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48, encoder_hidden_size=32
        ),
        text_config=tf.GraniteConfig(
            vocab_size=vocabulary, logits_scaling=3.0, embedding_multiplier=2.0, residual_multiplier=0.5, **_TEXT
        ),
        audio_token_index=audio_id,
        has_lora_adapter=False,
        **window,
    )

    def features(extractor: Any, samples: np.ndarray) -> tuple[dict[str, torch.Tensor], int]:
        mel_MF = _log_mel(extractor, samples)["input_features"][0]
        frames = len(samples) // 320  # pairs of 10 ms frames lie side by side
        values = mel_MF[:, : 2 * frames].T.reshape(1, frames, 40)
        num = -(-frames // 6) * 6 // 3
        heard = -(-frames // 6) * 2
        return {"input_features": values, "input_features_mask": torch.ones(1, heard, dtype=torch.bool)}, num

    extractor = tf.WhisperFeatureExtractor(feature_size=20, chunk_length=2)
    return tf.GraniteSpeechForConditionalGeneration(config), extractor, features


FAMILIES = {"qwen2_audio": _qwen2_audio, "voxtral": _voxtral, "granite_speech": _granite_speech}


def make(family: str, attention: str = "sdpa") -> tuple[Any, Processor, TextTokens]:
    """A random model of the family, its processor and its tokenizer's text side."""
    tokenizer = bpe(bos="<s>")
    tokenizer.add_special_tokens({"additional_special_tokens": [AUDIO]})
    torch.manual_seed(0)
    model, extractor, features = FAMILIES[family](len(tokenizer), tokenizer.convert_tokens_to_ids(AUDIO))
    model = widen(model.eval())
    model.set_attn_implementation(attention)
    return model, Processor(tokenizer, extractor, features), TextTokens(tokenizer)
