"""An LLM recogniser: a speech encoder, an adapter and a causal LM that reads its output behind an instruction.

A model is a directory in the layout of Hugging Face: `config.json` says which encoder and which LLM belong to it (by
place, relative to the directory, or hub id, and by digest) and how the prompt is written; `model.safetensors` holds
the adapter; `lora/` is a PEFT adapter of the LLM, where one was trained.
Letters of shapes: T encoder frames, S stacked frames, P prefix, D width.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from ctxasr_ray.models import checkpoint
from ctxasr_ray.models.checkpoint import ADAPTER, Checkpoint
from ctxasr_ray.models.frame_encoder import FrameEncoder
from ctxasr_ray.models.speech_adapter import AdapterConfig, stack_frames
from ctxasr_ray.models.speech_prompt import Prompt
from ctxasr_ray.models.text_tokens import TextTokens
from ctxasr_ray.recordings import Limits

if TYPE_CHECKING:
    import torch

    from ctxasr_ray.models.causal_lm import CausalLm

MODEL_TYPE: Final = "ctxasr_speech_llm"
LORA: Final = "lora"
"""Directory of the PEFT adapter inside the model's."""
_ASSETS: Final = Path(__file__).parents[1] / "assets"


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """What `config.json` says."""

    encoder: str
    """Of the speech encoder: "asset:NAME" for a shipped one, a directory (relative to the model's), or a hub id."""
    llm: str
    """The same of the causal LM."""
    encoder_digest: str
    """Of weights and config, from `checkpoint.fingerprint`: an adapter understands one encoder only."""
    llm_digest: str
    prompt: str
    """Template as of `Prompt`."""
    adapter: AdapterConfig = field(default_factory=AdapterConfig)

    def save(self, directory: Path) -> None:
        """Writes `config.json`."""
        directory.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"model_type": MODEL_TYPE, **asdict(self)}, indent=2, sort_keys=True)
        (directory / "config.json").write_text(text + "\n", "utf-8")


def is_ours(model: Checkpoint) -> bool:
    """Whether a checkpoint is an LLM recogniser of ours, not an audio-language model of transformers."""
    values = json.loads((model.directory / "config.json").read_text("utf-8"))
    return bool(values.get("model_type") == MODEL_TYPE)


def read_parts(model: Checkpoint) -> Parts:
    """Reads `config.json` and finds encoder and LLM; their places are absolute in the result.

    Raises:
        ValueError: a checkpoint of another kind, or an encoder or LLM that is not the one of the training.
    """
    path = model.directory / "config.json"
    values = json.loads(path.read_text("utf-8"))
    found = values.pop("model_type", None)
    if found != MODEL_TYPE:
        raise ValueError(
            f"model '{model.name}' is no LLM recogniser: {path} has model_type '{found}', expected '{MODEL_TYPE}'. "
            "Give the directory that `ctxasr train speech_llm` wrote."
        )
    try:
        values["adapter"] = AdapterConfig(**values["adapter"])
        parts = Parts(**values)
    except (KeyError, TypeError) as error:
        raise ValueError(f"model '{model.name}': {path} is of another version: {error}.") from error
    places = {name: _placed(model.directory, getattr(parts, name)) for name in ("encoder", "llm")}
    refuse_another(model.name, parts, **places)
    return Parts(**{**values, **places})


def refuse_another(model: str, parts: Parts, encoder: str, llm: str) -> None:
    """Refuses an encoder or an LLM that is not the one that an adapter was trained with.

    Raises:
        ValueError: names both.
    """
    for name, place in (("encoder", encoder), ("llm", llm)):
        expected, got = getattr(parts, f"{name}_digest"), checkpoint.fingerprint(place)["model"]
        if got != expected:
            raise ValueError(
                f"model '{model}' was trained with the {name} {expected[:23]}, but '{place}' is {got[:23]}; put "
                f"the {name} of the training there, or train the adapter again."
            )


def fingerprint(model: str, revision: str | None = None) -> dict[str, str]:
    """Digests of the adapter and its config, the encoder, the LLM and the LoRA.

    Raises:
        ValueError: as `checkpoint.resolve` and `read_parts`.
    """
    resolved = checkpoint.resolve(model, revision)
    parts = read_parts(resolved)
    own = checkpoint.fingerprint(model, revision)
    for name in ("encoder", "llm"):
        own |= {f"{name}_{part}": digest for part, digest in checkpoint.fingerprint(getattr(parts, name)).items()}
    if (resolved.directory / LORA).is_dir():
        lora = checkpoint.fingerprint(str(resolved.directory / LORA), stem=ADAPTER)
        own |= {f"lora_{part}": digest for part, digest in lora.items()}
    return own


def load_adapter(model: Checkpoint, parts: Parts, encoder_width: int, llm_width: int) -> Any:
    """Reads the MLP of `model.safetensors`.

    Raises:
        ValueError: its width does not fit the encoder or the LLM; names both.
    """
    from safetensors.torch import load_file

    adapter = parts.adapter.build(encoder_width, llm_width)
    weights = {k: v.float() for file in model.weight_files for k, v in load_file(file).items()}
    expected = {name: tuple(tensor.shape) for name, tensor in adapter.state_dict().items()}
    got = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if got != expected:
        last = max(weights, key=lambda name: (len(name), name)) if weights else ""
        raise ValueError(
            f"model '{model.name}': its adapter does not fit: encoder '{parts.encoder}' has width {encoder_width} and "
            f"LLM '{parts.llm}' {llm_width}, so expected {expected}, got {got} (up to '{last}'). Give the encoder and "
            "the LLM that the adapter was trained with."
        )
    adapter.load_state_dict(weights)
    return adapter.eval()


class SpeechLlm:
    """A loaded LLM recogniser; its `lm` scores and steps behind the embeddings that `prefix` gives.

    Attributes:
        name: As the user wrote it.
        lm: The LLM, its LoRA included.
        tokens: Its tokenizer's text side.
        prompt: How the instruction is written.
    """

    def __init__(
        self, encoder: FrameEncoder, adapter: Any, lm: "CausalLm", tokens: TextTokens, prompt: Prompt, *, name: str
    ) -> None:
        """Joins loaded parts; `load` reads them from a directory.

        Args:
            encoder: Hears.
            adapter: The MLP, from stacked frames to the LLM's width.
            lm: Writes.
            tokens: Of the LLM.
            prompt: Of the model.
            name: Stands in messages.
        """
        self._encoder, self._adapter = encoder, adapter
        self._stack = adapter[0].in_features // encoder.width
        self.lm, self.tokens, self.prompt, self.name = lm, tokens, prompt, name

    def limits(self, max_audio_s: float) -> Limits:
        """What the model can hear, where a config allows so many seconds."""
        return self._encoder.limits(max_audio_s, self._stack)

    def prefix(
        self, samples: npt.NDArray[np.float32], keywords: Sequence[str] = (), history: str | None = None
    ) -> "torch.Tensor":
        """(P, D) embeddings of the instruction with the speech in it; what is written stands behind.

        Args:
            samples: (num_samples,) mono, [-1, 1], at the rate of `limits`.
            keywords: Phrases that may be said.
            history: What was said before.

        Raises:
            ValueError: a keyword list or history, and a prompt without a place for it.
        """
        import torch

        before, after = self.prompt.around(keywords, history)
        with torch.inference_mode():
            states_1TD = self._encoder.states(samples)
            lengths = torch.tensor([states_1TD.shape[1]])
            stacked_1SD, _ = stack_frames(states_1TD, lengths, self._stack)
            embed, device = self.lm.body.embed, self.lm.device
            speech_SD = self._adapter(stacked_1SD)[0].to(device, self.lm.body.dtype)
            ends = [embed(torch.tensor(ids, dtype=torch.int64, device=device)) for ids in (before, after)]
            return torch.cat([ends[0], speech_SD, ends[1]])


def load(model: Checkpoint, *, dtype: str = "float32", device: str = "cpu", prompt: str | None = None) -> SpeechLlm:
    """Loads an LLM recogniser from its directory.

    Args:
        model: From `checkpoint.resolve`.
        dtype: float32, bfloat16, float16, or int8: the LLM's weights are rounded, encoder and adapter are in float32.
        device: As torch writes it.
        prompt: In place of the one that it was trained with.

    Raises:
        ValueError: as `read_parts` and `load_adapter`, or an LLM that cannot be scored behind embeddings.
    """
    import torch

    from ctxasr_ray.models.causal_lm import load_causal_lm
    from ctxasr_ray.models.dtypes import floating

    parts = read_parts(model)
    source = checkpoint.resolve(parts.llm)
    tokenizer = checkpoint.load_tokenizer(source)
    written = Prompt(tokenizer, parts.prompt if prompt is None else prompt)
    tokens = TextTokens(tokenizer, prompt=written.after)
    lora = model.directory / LORA
    lm = load_causal_lm(
        source,
        adapter=checkpoint.resolve(str(lora), stem=ADAPTER) if lora.is_dir() else None,
        dtype=dtype,
        device=device,
        eos_token_id=tokens.eos_token_id,
        special_ids=tokens.special_ids,
    )
    encoder = FrameEncoder(checkpoint.resolve(parts.encoder), dtype=floating(dtype), device=device)
    adapter = load_adapter(model, parts, encoder.width, lm.body.embed.weight.shape[1])
    return SpeechLlm(encoder, adapter.to(device, getattr(torch, floating(dtype))), lm, tokens, written, name=model.name)


def written_place(place: str) -> str:
    """How `config.json` names a model: a shipped one as "asset:NAME", a directory by its whole path, else hub id."""
    path = Path(place).resolve()
    if not path.is_dir():
        return place
    return f"asset:{path.name}" if path.parent == _ASSETS else str(path)


def _placed(directory: Path, place: str) -> str:
    if place.startswith("asset:"):
        return str(_ASSETS / place.removeprefix("asset:"))
    beside = directory / place
    return str(beside.resolve()) if beside.is_dir() else place
