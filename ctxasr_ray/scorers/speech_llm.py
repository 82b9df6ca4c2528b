"""UTTERANCES, HYPOTHESES -> SCORES: log P(text | sound) of a language model that hears, by teacher forcing.

The sound becomes a prefix of embeddings once per utterance; all hypotheses are one token tree behind it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import pyarrow as pa

from ctxasr_ray.models.hearing_options import HearingOptions
from ctxasr_ray.nbest import SourceScores
from ctxasr_ray.recordings import COLUMNS, Heard
from ctxasr_ray.scorers.causal_lm import source_scores
from ctxasr_ray.scorers.heard_lists import score_heard_lists
from ctxasr_ray.stage import Costs, Resources

if TYPE_CHECKING:
    from ctxasr_ray.models.audio_lm import AudioLm


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeechLlmScorerConfig(HearingOptions):
    """Forced scores of an LLM recogniser of ours or an audio-language model of transformers."""

    NAME: ClassVar[str] = "speech_llm_scorer"
    STAGE_VERSION: ClassVar[int] = 1
    READS: ClassVar[Mapping[str, tuple[str, ...]]] = {"utterances": COLUMNS, "hypotheses": ("hypotheses",)}
    WRITES: ClassVar[str] = "scores"

    source: str = "speech_llm"
    """Name of the scores; must differ from the sources of the first pass that is scored."""
    hears: Literal["own", "next"] = "own"
    """next: every hypothesis is scored behind the sound of the shard's next utterance, the last one behind the first's.
    A control: what is gained then, the model gains as a language model that knows its domain, not by hearing."""
    resources: Resources = field(default_factory=Resources)

    def __post_init__(self) -> None:
        """Refuses what can be refused without loading a model."""
        self.check()

    def build(self) -> "SpeechLlmScorer":
        """Loads the model."""
        return SpeechLlmScorer(self, self.load())


class SpeechLlmScorer:
    """Built by `SpeechLlmScorerConfig`; one call per shard.

    Args:
        config: Of the stage.
        model: Loaded.
    """

    def __init__(self, config: SpeechLlmScorerConfig, model: "AudioLm") -> None:
        self._config, self._model = config, model

    def __call__(self, *tables: pa.Table, costs: Costs) -> pa.Table:
        """One SCORES row per utterance; what cannot be scored is null with its reason.

        Raises:
            OSError: a fault of the disk or network while reading audio.
            ValueError: the next utterance is to be heard, and the shard has only one.
        """
        utterances, hypotheses = tables
        if self._config.hears == "next":
            utterances = _moved_on(utterances)
        limits = self._model.limits(self._config.max_audio_s)

        def score(heard: Heard, texts: list[str]) -> SourceScores:
            return self._scores(heard, texts, costs)

        return score_heard_lists(utterances, hypotheses, limits, self._config.source, score, costs)

    def _scores(self, heard: Heard, texts: list[str], costs: Costs) -> SourceScores:
        from ctxasr_ray.models.list_trees import ScoreRequest

        assert heard.samples is not None
        ids = self._model.tokens.encode(texts)
        with costs.timed("encoder"):
            prefix = self._model.prefix(heard.samples)
        with costs.timed("llm"):
            (scores,) = self._model.lm.score([ScoreRequest(prefix, ids)], costs)
        reasons = list(scores.reasons)
        for i, text in enumerate(texts):
            if text.strip() and (not len(ids[i]) or self._model.tokens.num_unknown(ids[i])):
                reasons[i] = f"text: the tokenizer has no token for {text[:40]!r}"
        has_end = self._model.lm.eos_token_id is not None
        return source_scores(self._config.source, scores, ids, reasons, has_end=has_end)


def _moved_on(utterances: pa.Table) -> pa.Table:
    """In each row what the next one has."""
    if utterances.num_rows < 2:
        raise ValueError(
            "speech_llm with hears='next': a shard of one utterance has no other sound; give more seconds of audio per "
            "shard (--shard-audio-s)."
        )
    return utterances.take(np.roll(np.arange(utterances.num_rows), -1))
