"""CTC models of every family as tiny random checkpoints with widened weights, so that a padding error costs nats."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    HubertConfig,
    HubertForCTC,
    ParakeetCTCConfig,
    ParakeetFeatureExtractor,
    ParakeetForCTC,
    SeamlessM4TFeatureExtractor,
    Wav2Vec2BertConfig,
    Wav2Vec2BertForCTC,
    Wav2Vec2Config,
    Wav2Vec2ConformerConfig,
    Wav2Vec2ConformerForCTC,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    WavLMConfig,
    WavLMForCTC,
)

LETTERS = ["<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefghijklmnopqrstuvwxyz'"]
_SIZES: dict[str, Any] = {
    "vocab_size": len(LETTERS),
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "pad_token_id": 0,
}
_WAVE = {**_SIZES, "conv_dim": (32,) * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
_LAYER = {**_WAVE, "feat_extract_norm": "layer", "do_stable_layer_norm": True}


def _parakeet(subsampling: int) -> ParakeetForCTC:
    encoder = {k: v for k, v in _SIZES.items() if k not in ("vocab_size", "pad_token_id")}
    encoder |= {"subsampling_conv_channels": 16, "subsampling_factor": subsampling, "num_mel_bins": 80}
    return ParakeetForCTC(ParakeetCTCConfig(vocab_size=len(LETTERS), pad_token_id=0, encoder_config=encoder))


def _wave_features(mask: bool) -> Wav2Vec2FeatureExtractor:
    return Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=mask)


FAMILIES: dict[str, Any] = {
    "wav2vec2-group-norm": lambda: (Wav2Vec2ForCTC(Wav2Vec2Config(**_WAVE)), _wave_features(False)),
    "wav2vec2": lambda: (Wav2Vec2ForCTC(Wav2Vec2Config(**_LAYER)), _wave_features(True)),
    "hubert": lambda: (HubertForCTC(HubertConfig(**_LAYER)), _wave_features(True)),
    "wavlm": lambda: (WavLMForCTC(WavLMConfig(**_LAYER)), _wave_features(True)),
    "wav2vec2-conformer": lambda: (
        Wav2Vec2ConformerForCTC(Wav2Vec2ConformerConfig(**_WAVE, feat_extract_norm="layer")),
        _wave_features(True),
    ),
    "wav2vec2-bert": lambda: (Wav2Vec2BertForCTC(Wav2Vec2BertConfig(**_SIZES)), SeamlessM4TFeatureExtractor()),
    "wav2vec2-bert-adapter": lambda: (
        Wav2Vec2BertForCTC(Wav2Vec2BertConfig(**_SIZES, output_hidden_size=32, add_adapter=True)),
        SeamlessM4TFeatureExtractor(padding_value=1),
    ),
    "parakeet-4x": lambda: (_parakeet(4), ParakeetFeatureExtractor()),
    "parakeet-8x": lambda: (_parakeet(8), ParakeetFeatureExtractor()),
}


def make(family: str, directory: Path) -> Path:
    """Writes a random model of a family with a character tokenizer, as an ordinary Hugging Face directory."""
    torch.manual_seed(0)
    model, extractor = FAMILIES[family]()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() >= 2 and "conv" not in name:
                weight.normal_(0, 1.4 / weight[0].numel() ** 0.5)
    model.save_pretrained(directory)
    extractor.save_pretrained(directory)
    save_letters(directory)
    return directory


def save_letters(directory: Path, letters: list[str] | None = None) -> None:
    """Writes a character tokenizer with `|` between words."""
    path = directory / "vocab.json"
    path.write_text(json.dumps({letter: n for n, letter in enumerate(letters or LETTERS)}))
    Wav2Vec2CTCTokenizer(str(path)).save_pretrained(directory)


def noise(seed: int, seconds: float) -> np.ndarray:
    """White noise at 16 kHz."""
    samples = 0.1 * np.random.default_rng(seed).standard_normal(round(16000 * seconds))
    return samples.astype(np.float32)
