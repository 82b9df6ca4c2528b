"""N-best lists -> log-probabilities of a causal language model in a vLLM engine: HYPOTHESES in, SCORES out.

The second backend of `scorers.causal_lm`, for models that need tensor parallelism or a quantised kernel: same tokens,
same scores.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from ctxasr_ray.models.checkpoint import check_vocabulary, fingerprint, load_tokenizer, resolve
from ctxasr_ray.models.text_tokens import TEXT_FORMS_VERSION, TextTokens
from ctxasr_ray.scorers.causal_lm import CausalLmScorer
from ctxasr_ray.stage import Resources, runtime_field


@dataclass(frozen=True, kw_only=True, slots=True)
class VllmConfig:
    """Rescoring with any causal LM that vLLM runs (extra `vllm`)."""

    NAME: ClassVar[str] = "vllm"
    STAGE_VERSION: ClassVar[int] = 1
    READS: ClassVar[Mapping[str, tuple[str, ...]]] = {"hypotheses": ("hypotheses",)}
    WRITES: ClassVar[str] = "scores"

    model: str = field(metadata={"identity": False})
    """Hugging Face directory or hub id; safetensors only. Its fingerprint is in the hash, not its place."""
    revision: str | None = field(default=None, metadata={"identity": False})
    """Branch, tag or commit of a hub id; its commit is in the fingerprint."""
    source: str = "causal_lm"
    """Name of the scores; fusion weights are found per source."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Of weights and activations."""
    quantization: str | None = None
    """A method of vLLM (awq, gptq, fp8, ...); None is what the checkpoint's own config says."""
    text_form: Literal["raw", "spaced", "lower", "upper", "sentence"] = "raw"
    """How hypotheses are written for the LM; see `models.text_tokens.TEXT_FORMS`."""
    prompt: str = ""
    """Text before every hypothesis, not part of the score."""
    start_from_eos: bool = False
    """As of `scorers.causal_lm`: the first token is scored from the end-of-sequence token where nothing else is."""
    max_positions: int | None = None
    """Tokens of the longest sequence with its prefix, its end and one more; None is the model's own. A smaller one
    leaves more memory for batches; what is longer has no score and says so."""
    tensor_parallel: int = runtime_field(1)
    """Accelerators of one node that the model is cut over; an actor asks for as many: `resources.num_gpus`."""
    tokens_per_step: int | None = runtime_field(None)
    """Tokens of one forward pass; their logits over the whole vocabulary exist at once. None: vLLM's choice."""
    memory_share: float = runtime_field(0.9)
    """Of an accelerator's memory that the engine takes."""
    resources: Resources = field(default_factory=lambda: Resources(num_gpus=1))

    def __post_init__(self) -> None:
        """Refuses an actor whose accelerators are not those of its engine."""
        gpus = self.resources.num_gpus
        if max(gpus, self.tensor_parallel) > 1 and gpus != self.tensor_parallel:
            raise ValueError(
                f"tensor_parallel is {self.tensor_parallel}, but an actor asks for {gpus:g} GPUs; set "
                "resources.num_gpus to the same number."
            )

    def fingerprint(self) -> Mapping[str, str]:
        """Digests of the model and its tokenizer, and the version of the text forms."""
        return {**fingerprint(self.model, self.revision), "text_forms": TEXT_FORMS_VERSION}

    def build(self) -> CausalLmScorer:
        """Starts the engine and checks that model and tokenizer belong together.

        Raises:
            ValueError: vLLM is missing, or refuses the model.
        """
        from ctxasr_ray.models.vllm import load_vllm

        checkpoint = resolve(self.model, self.revision)
        tokenizer = load_tokenizer(checkpoint)
        tokens = TextTokens(tokenizer, text_form=self.text_form, prompt=self.prompt, start_from_eos=self.start_from_eos)
        lm = load_vllm(
            checkpoint,
            dtype=self.dtype,
            quantization=self.quantization,
            tensor_parallel=self.tensor_parallel,
            max_positions=self.max_positions,
            tokens_per_step=self.tokens_per_step,
            memory_share=self.memory_share,
            eos_token_id=tokens.eos_token_id,
        )
        check_vocabulary(checkpoint, tokenizer, lm.num_outputs)
        return CausalLmScorer(lm, tokens, self.source)
