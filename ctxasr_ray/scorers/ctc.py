"""UTTERANCES, HYPOTHESES -> SCORES: a CTC recogniser's exact score of any given text, over all alignments.

A text is scored in the tokenizer's own spelling and in the model's case, so that searched, imported and made-up
candidates compare; a search may have found the same text in other labels. The model runs once per utterance.

Reference:
    Graves et al. 2006, Connectionist temporal classification, ICML, section 4.1 (forward variables).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pyarrow as pa

from ctxasr_ray import text
from ctxasr_ray.models.recogniser import CtcOptions
from ctxasr_ray.nbest import SourceScores, flatten, scores_table
from ctxasr_ray.recordings import COLUMNS, Heard, heard_batches
from ctxasr_ray.scorers.heard_lists import unscored
from ctxasr_ray.stage import Costs, Resources

if TYPE_CHECKING:
    from ctxasr_ray.models.ctc import CtcModel


@dataclass(frozen=True, kw_only=True, slots=True)
class CtcScorerConfig(CtcOptions):
    """Forced scores of a CTC recogniser from a Hugging Face directory or hub id."""

    NAME: ClassVar[str] = "ctc_scorer"
    STAGE_VERSION: ClassVar[int] = 1
    READS: ClassVar[Mapping[str, tuple[str, ...]]] = {"utterances": COLUMNS, "hypotheses": ("hypotheses",)}
    WRITES: ClassVar[str] = "scores"

    source: str = "ctc"
    """Name of the scores; must differ from the sources of the first pass that is scored."""
    normaliser: str = "none"
    """What a text goes through before it is spelled, for example basic for texts with punctuation and a model without.
    The model's case is applied in any case."""
    resources: Resources = field(default_factory=Resources)

    def __post_init__(self) -> None:
        """Refuses what can be refused without loading a model."""
        self.check()
        text.versioned(self.normaliser)

    def fingerprint(self) -> Mapping[str, str]:
        """Digests of weights, tokenizer and preprocessor, or the hub commit; and the normaliser's version."""
        return {**CtcOptions.fingerprint(self), "normaliser": text.versioned(self.normaliser)}

    def build(self) -> "CtcScorer":
        """Loads the model."""
        return CtcScorer(self, self.load())


class CtcScorer:
    """Built by `CtcScorerConfig`; one call per shard.

    Args:
        config: Of the stage.
        model: Loaded.
    """

    def __init__(self, config: CtcScorerConfig, model: "CtcModel") -> None:
        self._config, self._model = config, model

    def __call__(self, *tables: pa.Table, costs: Costs) -> pa.Table:
        """One SCORES row per utterance; what cannot be scored is null with its reason.

        Raises:
            OSError: a fault of the disk or network while reading audio.
        """
        utterances, hypotheses = tables
        flat = flatten(hypotheses)
        bounds = flat.bounds()
        texts = [flat.texts[slice(*own)] for own in bounds]
        rows = [self._unscored(own, None) for own in texts]
        errors: list[tuple[str, str] | None] = [None] * len(rows)

        def refuse(row: int, error: tuple[str, str]) -> None:
            errors[row] = error
            rows[row] = self._unscored(texts[row], ": ".join(error))

        limits, size = self._model.limits(self._config.max_audio_s), self._config.batch_size
        for batch in heard_batches(utterances, limits, size, costs, refuse):
            self._score([heard for heard in batch if texts[heard.row]], texts, rows, costs)
        return scores_table(flat.utterance_ids, [[own] for own in rows], errors)

    def _score(
        self, batch: Sequence[Heard], texts: Sequence[list[str]], rows: list[SourceScores], costs: Costs
    ) -> None:
        if not batch:
            return
        with costs.timed("model"):
            log_probs = self._model.log_probs([heard.samples for heard in batch if heard.samples is not None])
        costs.count("forwards")
        for heard, log_probs_TV in zip(batch, log_probs, strict=True):
            costs.count("frames", len(log_probs_TV))
            with costs.timed("score"):
                rows[heard.row] = self._scores(texts[heard.row], log_probs_TV, costs)

    def _scores(self, texts: list[str], log_probs_TV: "np.ndarray", costs: Costs) -> SourceScores:
        from ctxasr_ray.search.ctc_forced import ctc_forward_scores

        if not np.isfinite(log_probs_TV).all():
            reason = f"model_limit: the model's log-probs are not finite in {self._config.dtype}; use dtype float32."
            return self._unscored(texts, reason)
        spelling = self._model.spelling
        formed = [spelling.text(text.normalise(one, self._config.normaliser)) for one in texts]
        distinct = {one: labels for one, labels in zip(formed, spelling.labels(formed), strict=True)}
        spelled = {one: labels for one, labels in distinct.items() if labels is not None}
        forced = ctc_forward_scores(log_probs_TV, list(spelled.values()), self._model.vocabulary.blank_id)
        found = dict(zip(spelled, forced, strict=True))
        costs.count("texts_scored", len(spelled))
        costs.count("texts_unspellable", len(distinct) - len(spelled))
        labels = [distinct[one] for one in formed]
        return SourceScores(
            source=self._config.source,
            log_probs=[found[one].log_prob if one in found else None for one in formed],
            num_tokens=[None if own is None else len(own) for own in labels],
            reasons=[
                (found[one].reason and f"model_limit: {found[one].reason}")
                if one in found
                else f"text: the model's vocabulary cannot spell {one[:40]!r}"
                for one in formed
            ],
        )

    def _unscored(self, texts: list[str], reason: str | None) -> SourceScores:
        return unscored(self._config.source, texts, reason, has_end=False)
