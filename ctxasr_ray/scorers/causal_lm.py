"""N-best lists -> log-probabilities of a causal language model: HYPOTHESES in, SCORES out.

All hypotheses of an utterance are one token tree behind one prompt; see `models.causal_lm`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

import numpy as np
import pyarrow as pa

from ctxasr_ray.models.checkpoint import ADAPTER, check_vocabulary, fingerprint, load_tokenizer, resolve
from ctxasr_ray.models.text_tokens import TEXT_FORMS_VERSION, TextTokens
from ctxasr_ray.nbest import SourceScores, flatten, scores_table
from ctxasr_ray.stage import Costs, Resources, runtime_field
from ctxasr_ray.token_tree import Int32

if TYPE_CHECKING:
    from ctxasr_ray.models.causal_lm import CausalLm
    from ctxasr_ray.models.list_trees import ScoreRequest, SequenceScores
    from ctxasr_ray.models.tree_host import TreeHost


@dataclass(frozen=True, kw_only=True, slots=True)
class CausalLmConfig:
    """Rescoring with any causal LM of transformers, by token tree where the model allows it."""

    NAME: ClassVar[str] = "causal_lm"
    STAGE_VERSION: ClassVar[int] = 1
    READS: ClassVar[Mapping[str, tuple[str, ...]]] = {"hypotheses": ("hypotheses",)}
    WRITES: ClassVar[str] = "scores"

    model: str = field(metadata={"identity": False})
    """Hugging Face directory or hub id; safetensors only. Its fingerprint is in the hash, not its place."""
    revision: str | None = field(default=None, metadata={"identity": False})
    """Branch, tag or commit of a hub id; its commit is in the fingerprint."""
    adapter: str | None = field(default=None, metadata={"identity": False})
    """PEFT adapter on top (LoRA and the like, no learned prompts): directory or hub id."""
    adapter_revision: str | None = field(default=None, metadata={"identity": False})
    """Branch, tag or commit of the adapter's hub id."""
    source: str = "causal_lm"
    """Name of the scores; fusion weights are found per source."""
    dtype: Literal["float32", "bfloat16", "float16", "int8"] = "float32"
    """Of the weights when they are loaded; int8 is for CPUs and multiplies in float32 (`models.int8_linear`)."""
    attention: Literal["auto", "sdpa", "eager"] = "auto"
    """Attention backend; auto is what transformers chooses for the architecture."""
    text_form: Literal["raw", "spaced", "lower", "upper", "sentence"] = "raw"
    """How hypotheses are written for the LM; see `models.text_tokens.TEXT_FORMS`."""
    prompt: str = ""
    """Text before every hypothesis, scored once and not part of the score."""
    start_from_eos: bool = False
    """Score the first token from the end-of-sequence token where neither the tokenizer nor a prompt gives it anything
    to stand behind (Qwen2 without a prompt); otherwise such a first token is left out of the score and counted."""
    device: str = runtime_field("auto")
    """cpu, cuda, cuda:1, ...; auto is the first accelerator, or else the CPU."""
    device_map: str | None = runtime_field(None)
    """Spreads a large model over the accelerators of one actor (accelerate), for example auto."""
    utterances_per_forward: int = runtime_field(0)
    """Trees in one forward pass; 0 is up to 16 on an accelerator, on a CPU one or a few small ones."""
    resources: Resources = field(default_factory=Resources)

    def fingerprint(self) -> Mapping[str, str]:
        """Digests of the model, its tokenizer and the adapter, and the version of the text forms."""
        digests = {**fingerprint(self.model, self.revision), "text_forms": TEXT_FORMS_VERSION}
        if self.adapter is not None:
            adapter = fingerprint(self.adapter, self.adapter_revision, stem=ADAPTER)
            digests |= {f"adapter_{part}": digest for part, digest in adapter.items()}
        return digests

    def build(self) -> "CausalLmScorer":
        """Loads model, tokenizer and adapter, and checks that they belong together and that the tree is exact."""
        lm, tokens = self._load()
        return CausalLmScorer(lm, tokens, self.source)

    def host(self) -> "TreeHost":
        """Loads the same for searches that ask while they work; `stage.HostConfig`."""
        from ctxasr_ray.models.tree_host import TreeHost

        return TreeHost(self._load()[0])

    def _load(self) -> "tuple[CausalLm, TextTokens]":
        from ctxasr_ray.models.causal_lm import load_causal_lm

        checkpoint = resolve(self.model, self.revision)
        adapter = None if self.adapter is None else resolve(self.adapter, self.adapter_revision, stem=ADAPTER)
        tokenizer = load_tokenizer(checkpoint)
        tokens = TextTokens(tokenizer, text_form=self.text_form, prompt=self.prompt, start_from_eos=self.start_from_eos)
        lm = load_causal_lm(
            checkpoint,
            adapter=adapter,
            dtype=self.dtype,
            attention=self.attention,
            device=self.device,
            device_map=self.device_map,
            eos_token_id=tokens.eos_token_id,
            special_ids=tokens.special_ids,
            utterances_per_forward=self.utterances_per_forward,
        )
        check_vocabulary(checkpoint, tokenizer, lm.head.num_outputs)
        return lm, tokens


class SequenceLm(Protocol):
    """A loaded model that scores token sequences: `models.causal_lm.CausalLm`, `models.vllm.VllmLm`."""

    @property
    def eos_token_id(self) -> int | None:
        """End of sequence, None if the model has none."""
        ...

    def score(self, requests: "Sequence[ScoreRequest]", costs: Costs | None = None) -> "list[SequenceScores]":
        """Log-probs of the sequences of each request."""
        ...


class CausalLmScorer:
    """The built stage.

    An empty hypothesis has no tokens, so its log_prob is 0.0, and what the LM says of it is its end of sequence.
    A hypothesis that the model cannot score has null and a reason.

    Args:
        lm: The model.
        tokens: Its tokenizer with prompt and text form.
        source: Name of the scores.
    """

    def __init__(self, lm: SequenceLm, tokens: TextTokens, source: str = "causal_lm") -> None:
        self.lm, self.tokens, self.source = lm, tokens, source

    def __call__(self, *tables: pa.Table, costs: Costs) -> pa.Table:
        """One SCORES row per HYPOTHESES row; `costs` as of `CausalLm.score`, and seconds of `tokenise` and `llm`."""
        from ctxasr_ray.models.list_trees import ScoreRequest

        (hypotheses,) = tables
        flat = flatten(hypotheses)
        with costs.timed("tokenise"):
            ids = self.tokens.encode(flat.texts)
        bounds = flat.bounds()
        costs.count("unknown_tokens", sum(self.tokens.num_unknown(i) for i in ids))
        with costs.timed("llm"):
            scores = self.lm.score([ScoreRequest(self.tokens.prefix, ids[a:b]) for a, b in bounds], costs)
        for utterance_id, one in zip(flat.utterance_ids, scores, strict=True):
            costs.count_utterance(utterance_id, one.counters)
        rows = [[self._row(s, ids[a:b], flat.texts[a:b])] for s, (a, b) in zip(scores, bounds, strict=True)]
        return scores_table(flat.utterance_ids, rows)

    def _row(self, scores: "SequenceScores", ids: Sequence[Int32], texts: Sequence[str]) -> SourceScores:
        reasons = list(scores.reasons)
        for i, text in enumerate(texts):
            if text.strip() and not len(ids[i]):
                reasons[i] = f"text: the tokenizer has no token for {text[:40]!r}"
        return source_scores(self.source, scores, ids, reasons, has_end=self.lm.eos_token_id is not None)


def source_scores(
    source: str, scores: "SequenceScores", ids: Sequence[Int32], reasons: Sequence[str | None], *, has_end: bool
) -> SourceScores:
    """What a model says of the texts of one utterance, as a source of SCORES; null where there is a reason.

    Args:
        source: Name of the scores.
        scores: Of the texts.
        ids: Tokens of each text.
        reasons: Those of `scores` and of what asked.
        has_end: Whether the model has an end of sequence.
    """
    return SourceScores(
        source=source,
        log_probs=_known(scores.log_probs, reasons),
        eos_log_probs=_known(scores.eos_log_probs, reasons) if has_end else None,
        num_tokens=[len(i) for i in ids],
        reasons=list(reasons),
    )


def _known(values: "np.ndarray[tuple[int], np.dtype[np.float64]]", reasons: Sequence[str | None]) -> list[float | None]:
    pairs = zip(values.tolist(), reasons, strict=True)
    return [value if reason is None and np.isfinite(value) else None for value, reason in pairs]
