"""A trained model as an ordinary Hugging Face directory: half precision on disk, float32 when it is loaded."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file


def publish(model: Any, directory: Path, *, tokenizer: Any, extractor: Any = None) -> None:
    """Writes config.json, model.safetensors (float16), the tokenizer and, for speech, the feature extractor.

    Args:
        model: A `PreTrainedModel`; it is left as it is.
        directory: Made if missing.
        tokenizer: Its files go in too, with `add_bos_token` written out, so that scorers need not guess.
        extractor: A feature extractor, or None.
    """
    directory.mkdir(parents=True, exist_ok=True)
    model.config.dtype = torch.float32  # from_pretrained goes by this, not by the file: float16 on a CPU is slow
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(directory)
    if model.can_generate() and model.generation_config is not None:
        model.generation_config.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    if tokenizer.bos_token is not None:
        path = directory / "tokenizer_config.json"
        settings = {**json.loads(path.read_text("utf-8")), "add_bos_token": True, "add_eos_token": False}
        path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", "utf-8")
    if extractor is not None:
        extractor.save_pretrained(directory)
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    weights = {
        name: (tensor.half() if tensor.is_floating_point() else tensor).contiguous()
        for name, tensor in model.state_dict().items()
        if name not in tied
    }
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "model.safetensors").chmod(0o644)  # safetensors writes for the owner alone


def digests(directory: Path) -> dict[str, str]:
    """Gives the sha256 of every file of a directory, by its path in it."""
    return {
        path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }
