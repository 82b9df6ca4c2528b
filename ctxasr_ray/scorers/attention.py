"""UTTERANCES, HYPOTHESES -> SCORES: an attention recogniser's exact score of any given text, by teacher forcing.

A text is scored in the tokenizer's own spelling, so that searched, imported and made-up candidates compare; a search
may have found the same text in other tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import pyarrow as pa

from ctxasr_ray.models.recogniser import Seq2SeqOptions
from ctxasr_ray.nbest import SourceScores
from ctxasr_ray.recordings import COLUMNS, Heard
from ctxasr_ray.scorers.heard_lists import score_heard_lists, unscored
from ctxasr_ray.stage import Costs, Resources

if TYPE_CHECKING:
    from ctxasr_ray.models.seq2seq import Seq2SeqModel


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionScorerConfig(Seq2SeqOptions):
    """Forced scores of an attention recogniser from a Hugging Face directory or hub id."""

    NAME: ClassVar[str] = "attention_scorer"
    STAGE_VERSION: ClassVar[int] = 1
    READS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "utterances": (*COLUMNS, "language"),
        "hypotheses": ("hypotheses",),
    }
    WRITES: ClassVar[str] = "scores"

    source: str = "attention"
    """Name of the scores; must differ from the sources of the first pass that is scored."""
    resources: Resources = field(default_factory=Resources)

    def __post_init__(self) -> None:
        """Refuses what can be refused without loading a model."""
        self.check()

    def build(self) -> "AttentionScorer":
        """Loads the model and checks that it can be started as asked."""
        return AttentionScorer(self, self.load())


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
        languages = utterances.column("language").to_pylist()
        limits = self._model.limits(self._config.max_audio_s)

        def score(heard: Heard, texts: list[str]) -> SourceScores:
            return self._scores(heard, languages[heard.row], texts, costs)

        return score_heard_lists(utterances, hypotheses, limits, self._config.source, score, costs)

    def _scores(self, heard: Heard, language: str | None, texts: list[str], costs: Costs) -> SourceScores:
        assert heard.samples is not None
        tokens = self._model.tokens
        prompt, error = tokens.prompt_of(language, self._config.language)
        if prompt is None:
            return unscored(self._config.source, texts, error and ": ".join(error))
        ids = tokens.encode(texts)
        with costs.timed("model"):
            forced = self._model.forced_scores(self._model.encode([heard.samples])[0], prompt, ids)
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
