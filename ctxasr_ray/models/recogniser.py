"""What every recogniser of transformers is asked to be: fields that the configs of its stages share.

First passes and forced scorers inherit these; nothing here loads torch before `load`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from ctxasr_ray.models import checkpoint
from ctxasr_ray.stage import runtime_field

if TYPE_CHECKING:
    from ctxasr_ray.models.ctc import CtcModel
    from ctxasr_ray.models.seq2seq import Seq2SeqModel


@dataclass(frozen=True, kw_only=True, slots=True)
class RecogniserOptions:
    """A checkpoint, its precision and where it runs."""

    DTYPES: ClassVar[tuple[str, ...]] = ("float32", "bfloat16", "float16")

    model: str = field(metadata={"identity": False})
    """Hugging Face directory or hub id. Its fingerprint is in the hash, not its place."""
    revision: str | None = field(default=None, metadata={"identity": False})
    """Branch, tag or commit of a hub id; its commit is in the fingerprint."""
    dtype: Literal["float32", "bfloat16", "float16", "int8"] = "float32"
    """Of the forward passes; log-probs and sums are never below float32. int8 is for the LLM of an LLM recogniser."""
    device: str = runtime_field("auto")
    """As torch writes it; "auto" is CUDA where the actor has a GPU, else the CPU."""

    def fingerprint(self) -> Mapping[str, str]:
        """Digests of weights, tokenizer, preprocessor, generation config and CTC head, or the hub commit."""
        return checkpoint.fingerprint(self.model, self.revision)

    def check(self) -> None:
        """Refuses what can be refused without loading a model.

        Raises:
            ValueError: an unknown dtype.
        """
        if self.dtype not in self.DTYPES:
            raise ValueError(f"dtype is '{self.dtype}'; expected one of {', '.join(self.DTYPES)}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class CtcOptions(RecogniserOptions):
    """A model that `AutoModelForCTC` loads."""

    max_audio_s: float = 120.0
    """Longer audio is a `model_limit`: attention over it would not fit; cut the recording into windows."""
    batch_size: int = runtime_field(8)
    """Utterances per forward pass; of equal length only, where padding would change a model's results."""

    def check(self) -> None:
        """As `RecogniserOptions.check`.

        Raises:
            ValueError: an unknown dtype, or a batch without utterances.
        """
        RecogniserOptions.check(self)
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}; expected at least 1.")

    def load(self) -> "CtcModel":
        """Loads the model.

        Raises:
            ValueError: as `CtcModel`.
        """
        from ctxasr_ray.models.ctc import CtcModel

        resolved = checkpoint.resolve(self.model, self.revision)
        return CtcModel(resolved, dtype=self.dtype, device=_device(self.device))


@dataclass(frozen=True, kw_only=True, slots=True)
class Seq2SeqOptions(RecogniserOptions):
    """A model that `AutoModelForSpeechSeq2Seq` loads, and how its decoder is started."""

    language: str | None = None
    """Language token of a multilingual model, for example en; None takes each utterance's `language`. A model without
    language tokens takes none."""
    task: str = "transcribe"
    """As a model with task tokens names it: transcribe or translate."""
    prompt: str = ""
    """Text that the decoder is told came before; for models with a token for it (Whisper)."""
    prompt_tokens: tuple[str, ...] = ()
    """All tokens before the text, spelled out, in place of start, language, task and prompt."""
    max_audio_s: float = 60.0
    """Longer audio is a `model_limit`; so is audio beyond the feature extractor's window (Whisper: 30 s)."""

    def load(self) -> "Seq2SeqModel":
        """Loads the model and checks that it can be started as asked and stepped through exactly.

        Raises:
            ValueError: as `Seq2SeqModel`, a language that the model lacks, or a prompt too long for it.
        """
        from ctxasr_ray.models.seq2seq import Seq2SeqModel

        model = Seq2SeqModel(
            checkpoint.resolve(self.model, self.revision),
            dtype=self.dtype,
            device=_device(self.device),
            task=self.task,
            before=self.prompt,
            prompt_tokens=self.prompt_tokens,
        )
        model.check_prompt(self.language)
        return model


def _device(name: str) -> str:
    import torch

    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"
