"""UTTERANCES, HYPOTHESES -> SCORES: an attention recogniser's exact score of any given text, by teacher forcing.

A text is scored in the tokenizer's own spelling, so that searched, imported and made-up candidates compare; a search
may have found the same text in other tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import pyarrow as pa

from ctxasr_ray.first_pass.attention import fingerprint, limits
from ctxasr_ray.nbest import SourceScores, flatten, scores_table
from ctxasr_ray.recordings import COLUMNS, heard_ahead
from ctxasr_ray.stage import Costs, Resources, runtime_field

if TYPE_CHECKING:
    from ctxasr_ray.models.seq2seq import Seq2SeqModel


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionScorerConfig:
    """Forced scores of an attention recogniser from a Hugging Face directory or hub id."""

    NAME: ClassVar[str] = "attention_scorer"
    STAGE_VERSION: ClassVar[int] = 1
    READS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "utterances": (*COLUMNS, "language"),
        "hypotheses": ("hypotheses",),
    }
    WRITES: ClassVar[str] = "scores"

    model: str = field(metadata={"identity": False})
    """Directory or hub id of a model that `AutoModelForSpeechSeq2Seq` loads."""
    revision: str | None = field(default=None, metadata={"identity": False})
    """Branch, tag or commit of a hub id; its commit is in the fingerprint."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the forward passes."""
    source: str = "attention"
    """Name of the scores; must differ from the sources of the first pass that is scored."""
    language: str | None = None
    """Language token of a multilingual model; None takes each utterance's `language`."""
    task: str = "transcribe"
    """As a model with task tokens names it."""
    prompt: str = ""
    """Text that the decoder is told came before."""
    prompt_tokens: tuple[str, ...] = ()
    """All tokens before the text, spelled out, in place of start, language, task and prompt."""
    max_audio_s: float = 60.0
    """Hypotheses of longer audio have no score."""
    device: str = runtime_field("auto")
    """As torch writes it; "auto" is CUDA where the actor has a GPU, else the CPU."""
    resources: Resources = field(default_factory=Resources)

    def fingerprint(self) -> Mapping[str, str]:
        """Digests of weights, tokenizer, preprocessor and generation config, or the hub commit."""
        return fingerprint(self.model, self.revision)

    def build(self) -> "AttentionScorer":
        """Loads the model and checks that it can be started as asked."""
        from ctxasr_ray.models.seq2seq import load_seq2seq

        model = load_seq2seq(
            self.model,
            self.revision,
            dtype=self.dtype,
            device=self.device,
            task=self.task,
            before=self.prompt,
            prompt_tokens=self.prompt_tokens,
        )
        model.check_prompt(self.language)
        return AttentionScorer(self, model)


class AttentionScorer:
    """Built by `AttentionScorerConfig`; one call per shard.

    Args:
        config: Of the stage.
        model: Loaded.
    """

    def __init__(self, config: AttentionScorerConfig, model: "Seq2SeqModel") -> None:
        self._config, self._model = config, model

    def __call__(self, *tables: pa.Table, costs: Costs) -> pa.Table:
        """One SCORES row per utterance; what cannot be scored is null with its reason.

        Raises:
            OSError: a fault of the disk or network while reading audio.
        """
        utterances, hypotheses = tables
        flat = flatten(hypotheses)
        bounds = list(zip(flat.offsets[:-1].tolist(), flat.offsets[1:].tolist(), strict=True))
        languages = utterances.column("language").to_pylist()
        rows, errors = [], []
        for heard in heard_ahead(utterances, limits(self._model, self._config.max_audio_s), 2):
            costs.seconds["decode"] = costs.seconds.get("decode", 0.0) + heard.seconds
            texts = flat.texts[slice(*bounds[heard.row])]
            scores, error = self._scores(heard.samples, languages[heard.row], texts, costs), heard.error
            if error is not None:
                reason = f"{error[0]}: {error[1]}"
                scores = self._unscored(texts, reason)
            rows.append([scores])
            errors.append(error)
        return scores_table(flat.utterance_ids, rows, errors)

    def _scores(
        self, samples: "np.ndarray | None", language: str | None, texts: list[str], costs: Costs
    ) -> SourceScores:
        tokens = self._model.tokens
        if samples is None or not texts:
            return self._unscored(texts, None)
        if not tokens.is_multilingual or self._config.language is not None:
            language = self._config.language
        try:
            prompt = tokens.prompt(language)
        except ValueError as error:
            return self._unscored(texts, f"model_limit: {error}")
        ids = tokens.encode(texts)
        with costs.timed("model"):
            forced = self._model.forced_scores(self._model.encode([samples])[0], prompt, ids)
        costs.count("tokens_scored", sum(len(i) for i in ids))
        reasons = list(forced.reasons)
        for i, text in enumerate(texts):
            if tokens.unspellable(ids[i]) or (text.strip() and not len(ids[i])):
                reasons[i] = f"text: the model's vocabulary cannot spell {text[:40]!r}"
        return SourceScores(
            source=self._config.source,
            log_probs=[None if r else float(v) for v, r in zip(forced.log_probs, reasons, strict=True)],
            eos_log_probs=[None if r else float(v) for v, r in zip(forced.eos_log_probs, reasons, strict=True)],
            num_tokens=[len(i) for i in ids],
            reasons=reasons,
        )

    def _unscored(self, texts: list[str], reason: str | None) -> SourceScores:
        nothing = [None] * len(texts)
        return SourceScores(
            source=self._config.source, log_probs=nothing, eos_log_probs=nothing, reasons=[reason] * len(texts)
        )
