"""Attention recognisers of every family as tiny random checkpoints with widened weights: an error costs nats."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as tf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from ctxasr_ray.models.attention import CTC_HEAD, make_head, save_head

LETTERS = "abcdefghijklmnop"
SPECIAL = (
    "<pad>",
    "<s>",
    "</s>",
    "<unk>",
    "<|prev|>",
    "<|en|>",
    "<|de|>",
    "<|transcribe|>",
    "<|translate|>",
    "<|notimes|>",
)
TIMES = ("<|0.00|>", "<|0.02|>")
START, END = 1, 2
# Untied: a random model whose outputs are its inputs writes one letter for ever.
_IDS: dict[str, Any] = {
    "pad_token_id": 0,
    "bos_token_id": START,
    "eos_token_id": END,
    "decoder_start_token_id": START,
    "tie_word_embeddings": False,
}


def tokenizer(letters: str = LETTERS) -> tf.PreTrainedTokenizerFast:
    """Characters; a space is the token after the letters, timestamps come last as in Whisper."""
    words = {token: n for n, token in enumerate((*SPECIAL[:4], *letters, " ", *SPECIAL[4:], *TIMES))}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made.decoder = decoders.Fuse()
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens=list(SPECIAL[4:]),
    )


def _sizes(vocabulary: int) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary,
        "d_model": 32,
        "encoder_layers": 1,
        "decoder_layers": 2,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48,
        "max_target_positions": 40,
        **_IDS,
    }


def _whisper(vocabulary: int) -> tuple[Any, Any]:
    config = tf.WhisperConfig(**_sizes(vocabulary), num_mel_bins=20, max_source_positions=100)
    return tf.WhisperForConditionalGeneration(config), tf.WhisperFeatureExtractor(feature_size=20, chunk_length=2)


def _moonshine(vocabulary: int) -> tuple[Any, Any]:
    config = tf.MoonshineConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=48,
        encoder_num_hidden_layers=1,
        decoder_num_hidden_layers=2,
        encoder_num_attention_heads=2,
        decoder_num_attention_heads=2,
        max_position_embeddings=40,
        **_IDS,
    )
    return tf.MoonshineForConditionalGeneration(config), tf.Wav2Vec2FeatureExtractor(do_normalize=False)


def _speech_to_text(vocabulary: int) -> tuple[Any, Any]:
    config = tf.Speech2TextConfig(
        **_sizes(vocabulary), input_feat_per_channel=20, conv_channels=32, max_source_positions=400
    )
    return tf.Speech2TextForConditionalGeneration(config), tf.Speech2TextFeatureExtractor(
        feature_size=20, num_mel_bins=20
    )


FAMILIES = {"whisper": _whisper, "moonshine": _moonshine, "speech_to_text": _speech_to_text}

OFTEN = {"whisper": "o", "moonshine": "i", "speech_to_text": "o"}
"""A letter that a family writes often."""


def make(
    family: str,
    directory: Path,
    *,
    letters: str = LETTERS,
    ends_like: str = "",
    never_ends: bool = False,
    widen: float = 1.0,
    **generation: Any,
) -> Path:
    """Writes a random model of a family.

    Args:
        family: A key of `FAMILIES`.
        directory: Where to.
        letters: Of the vocabulary.
        ends_like: A letter that is nearly as likely as the end, so that lists hold hypotheses that ended.
        never_ends: Whether the end (of Whisper) is e^-32 as likely as any letter.
        widen: Scales the spread of weights; 1 makes a wrong mask cost nats.
        generation: Further fields of generation_config.json.
    """
    torch.manual_seed(0)
    words = tokenizer(letters)
    model, extractor = FAMILIES[family](len(words))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() >= 2:
                weight.normal_(0, widen * 1.4 / weight[0].numel() ** 0.5)
        if ends_like:
            rows = model.get_output_embeddings().weight
            rows[END] = 0.97 * rows[words.convert_tokens_to_ids(list(ends_like))].mean(0)
        if never_ends:
            model.model.decoder.layer_norm.bias.fill_(1.0)
            model.get_output_embeddings().weight[END] = -1.0
    ids = {name: value for name, value in _IDS.items() if name != "tie_word_embeddings"}
    if "no_timestamps_token_id" not in generation:
        generation["suppress_tokens"] = words.convert_tokens_to_ids(list(TIMES))
    model.generation_config = tf.GenerationConfig(**ids, max_length=40, **generation)
    model.save_pretrained(directory)
    extractor.save_pretrained(directory)
    words.save_pretrained(directory)
    return directory


def add_ctc_head(directory: Path, seed: int = 0, spread: float = 1.0, blank: float = 0.0) -> Path:
    """Gives a model a random CTC head over its tokens, sure enough of itself that frames differ."""
    model = tf.AutoModelForSpeechSeq2Seq.from_pretrained(directory)
    torch.manual_seed(seed)
    head = make_head(model)
    with torch.no_grad():
        head.weight.normal_(0, spread)
        head.bias.zero_()
        head.bias[0] = blank  # <pad>
    save_head(head, directory / CTC_HEAD)
    return directory


def multilingual() -> dict[str, Any]:
    """Fields of a generation config that has languages, tasks and timestamps."""
    ids = {token: tokenizer().convert_tokens_to_ids(token) for token in SPECIAL}
    return {
        "is_multilingual": True,
        "lang_to_id": {"<|en|>": ids["<|en|>"], "<|de|>": ids["<|de|>"]},
        "task_to_id": {"transcribe": ids["<|transcribe|>"], "translate": ids["<|translate|>"]},
        "no_timestamps_token_id": ids["<|notimes|>"],
        "prev_sot_token_id": ids["<|prev|>"],
    }


def noises(seconds: Sequence[float]) -> list[np.ndarray]:
    """White noises at 16 kHz."""
    rng = np.random.default_rng(0)
    return [(0.1 * rng.standard_normal(round(16000 * s))).astype(np.float32) for s in seconds]
