"""A random LLM recogniser in a directory: Whisper's encoder, an MLP adapter, a Llama, and a LoRA where asked."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from test_scorer_causal_lm import bpe, saved
from tiny_seq2seq import make as make_seq2seq

from ctxasr_ray.models import checkpoint, speech_llm
from ctxasr_ray.models.speech_adapter import AdapterConfig
from ctxasr_ray.training.trainable import Lora, save_lora


def make(directory: Path, *, prompt: str = "{speech}", lora: Lora | None = None, stack: int = 2) -> Path:
    """Writes all parts; encoder and LLM lie beside the adapter."""
    encoder = make_seq2seq("whisper", directory / "encoder")
    place, llm = saved(directory / "llm", bpe(bos="<s>", pad_first=True))
    adapter = AdapterConfig(stack=stack, width=24)
    parts = speech_llm.Parts(
        encoder="encoder",
        llm="llm",
        encoder_digest=checkpoint.fingerprint(str(encoder))["model"],
        llm_digest=checkpoint.fingerprint(place)["model"],
        prompt=prompt,
        adapter=adapter,
    )
    parts.save(directory)
    torch.manual_seed(1)
    mlp = adapter.build(32, llm.config.hidden_size)
    save_file({name: 3 * weight for name, weight in mlp.state_dict().items()}, directory / "model.safetensors")
    if lora is not None:
        updated = lora.around(llm)
        torch.manual_seed(2)
        for name, weight in updated.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.3)
        save_lora(updated, directory / speech_llm.LORA, written_base=place)
    return directory
