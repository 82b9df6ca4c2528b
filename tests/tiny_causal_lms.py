"""Random causal LMs of many families, two or more layers each, with widened weights.

The default initialisation (standard deviation 0.02) is nearly uniform over the vocabulary and hides errors; with
N(0, (1.4 / sqrt(fan_in))^2) a wrong mask costs 1 to 10 nats per hypothesis.
"""

from collections.abc import Callable
from typing import Any

import torch
import transformers as tf

VOCABULARY = 64
EOS = 2
WINDOW = 5  # shorter than the tests' prefixes: only then does a wrong window show

_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": EOS,
    "pad_token_id": 0,
}
_MOE: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
_WINDOWED = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": WINDOW}


def _config(name: str, without: tuple[str, ...] = (), **options: Any) -> Callable[[], Any]:
    settings = {key: value for key, value in _SIZES.items() if key not in without} | options
    return lambda: getattr(tf, name)(**settings)


_GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
_SPECIAL = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": EOS, "pad_token_id": 0}

TREE = {
    "llama": _config("LlamaConfig"),
    "qwen2": _config("Qwen2Config"),
    "qwen2_window": _config("Qwen2Config", use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1),
    "qwen3": _config("Qwen3Config", head_dim=8),
    "qwen3_window": _config(
        "Qwen3Config", head_dim=8, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1
    ),
    "qwen3_moe": _config("Qwen3MoeConfig", head_dim=8, num_experts=4, **_MOE),
    "olmo2": _config("Olmo2Config"),
    "granite": _config("GraniteConfig", logits_scaling=3.0, embedding_multiplier=2.0, residual_multiplier=0.5),
    "smollm3": _config("SmolLM3Config", no_rope_layers=[1, 0]),
    "gpt2": lambda: tf.GPT2Config(**_GPT, **_SPECIAL),
    "gpt_neox": _config("GPTNeoXConfig", without=("num_key_value_heads",)),
    "opt": lambda: tf.OPTConfig(
        hidden_size=32,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        word_embed_proj_dim=16,
        max_position_embeddings=256,
        **_SPECIAL,
    ),
    "falcon": lambda: tf.FalconConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, alibi=False, max_position_embeddings=256, **_SPECIAL
    ),
    "deepseek_v3": _config(
        "DeepseekV3Config",
        num_key_value_heads=4,
        n_routed_experts=4,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
        kv_lora_rank=16,
        q_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=8,
        n_shared_experts=1,
        **_MOE,
    ),
    "mistral": _config("MistralConfig", sliding_window=None, head_dim=8),
    "mistral_window": _config("MistralConfig", sliding_window=WINDOW, head_dim=8),
    "phi3_window": _config("Phi3Config", sliding_window=WINDOW),
    "gemma2": _config("Gemma2Config", head_dim=8, final_logit_softcapping=5.0, **_WINDOWED),
    "gemma3": _config("Gemma3TextConfig", head_dim=8, **_WINDOWED),
    "cohere2": _config("Cohere2Config", head_dim=8, logit_scale=0.3, **_WINDOWED),
    "gpt_oss": _config("GptOssConfig", head_dim=8, num_local_experts=4, num_experts_per_tok=2, **_WINDOWED),
}
"""Families that are scored as a tree."""

PADDED = {
    "gpt_neo": lambda: tf.GPTNeoConfig(
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        window_size=WINDOW,
        max_position_embeddings=256,
        **_SPECIAL,
    ),
    "bloom": lambda: tf.BloomConfig(hidden_size=32, n_layer=2, n_head=4, **_SPECIAL),
    "mamba": lambda: tf.MambaConfig(hidden_size=32, num_hidden_layers=2, state_size=8, **_SPECIAL),
    "lfm2": _config("Lfm2Config", layer_types=["conv", "full_attention"]),
    "qwen3_next": _config(
        "Qwen3NextConfig",
        head_dim=8,
        layer_types=["linear_attention", "full_attention"],
        num_experts=4,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        shared_expert_intermediate_size=16,
        decoder_sparse_step=1,
        mlp_only_layers=[],
        **_MOE,
    ),
    "granite_hybrid": _config(
        "GraniteMoeHybridConfig",
        layer_types=["mamba", "attention"],
        mamba_n_heads=8,
        mamba_d_head=8,
        mamba_d_state=8,
        mamba_n_groups=1,
        num_local_experts=4,
        num_experts_per_tok=2,
        shared_intermediate_size=16,
        logits_scaling=3.0,
    ),
}
"""Families that the rule or the load check refuses: recurrent, convolutional, alibi, cache-indexed windows."""


def tiny(family: str, seed: int = 0, attention: str | None = None) -> Any:
    """A widened random model of the family, in evaluation mode."""
    config = (TREE | PADDED)[family]()
    torch.manual_seed(seed)
    options = {} if attention is None else {"attn_implementation": attention}
    model = tf.AutoModelForCausalLM.from_config(config, **options).eval()
    return widen(model)


def widen(model: Any) -> Any:
    """Draws every matrix anew, wide enough that a wrong mask shows."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                fan_in = parameter[0].numel() if parameter.dim() == 2 else parameter.shape[-1]
                parameter.normal_(0.0, 1.4 / fan_in**0.5)
    return model


def one_by_one(model: Any, prefix: list[int], sequence: list[int], eos: int = EOS) -> tuple[float, float]:
    """Log-probs of a sequence and of its end: alone, unpadded, without a cache; the second opinion."""
    with torch.inference_mode():
        log_probs = model(input_ids=torch.tensor([[*prefix, *sequence]]), use_cache=False).logits[0].log_softmax(-1)
    start = len(prefix) - 1
    total = sum(float(log_probs[start + i, token]) for i, token in enumerate(sequence) if start + i >= 0)
    return total, float(log_probs[-1, eos])
