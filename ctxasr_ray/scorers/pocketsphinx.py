"""UTTERANCES, HYPOTHESES -> SCORES: PocketSphinx's forced alignment of any given text.

What the acoustic model alone says of a text, searched, imported or made; a confusable text can beat the truth.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ctxasr_ray import audio
from ctxasr_ray.models.pocketsphinx import ModelLimitError, find_model, fingerprint, hear, load, read_samples
from ctxasr_ray.nbest import SourceScores, scores_table
from ctxasr_ray.stage import Costs, Resources

ALIGN_SHIFT = 1024.0
"""In alignment PocketSphinx's scores are shifted down by 10 bits: nats = 1024 ln(ascore)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PocketSphinxScorerConfig:
    """Acoustic scores of given texts by forced alignment, each text alone."""

    NAME: ClassVar[str] = "pocketsphinx_forced"
    STAGE_VERSION: ClassVar[int] = 1
    READS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "utterances": ("audio_uri", "start_s", "duration_s", "channel"),
        "hypotheses": ("hypotheses",),
    }
    WRITES: ClassVar[str] = "scores"

    model: str | None = field(default=None, metadata={"identity": False})
    """Folder with *.lm.bin, *.dict and an acoustic model; None is the wheel's. Its fingerprint is in the hash."""
    words: tuple[str, ...] = ()
    """Words that the dictionary must learn: `zimbrato`, pronounced by espeak-ng, or `zimbrato=Z IH M B R AA T OW`."""
    source: str = "pocketsphinx_forced"
    """Name of the scores."""
    max_audio_s: float = 120.0
    """Longer audio is a `model_limit` row; cut the recording into windows."""
    resources: Resources = field(default_factory=Resources)

    def fingerprint(self) -> Mapping[str, str]:
        """Digests of the model's files, the engine's version and the pronunciations of one's own words."""
        return fingerprint(self.model, self.words)

    def build(self) -> "PocketSphinxScorer":
        """Loads the acoustic model and the dictionary, and teaches it the words."""
        return PocketSphinxScorer(self, load(find_model(self.model), self.words, align=True))


class PocketSphinxScorer:
    """Built by `PocketSphinxScorerConfig`; one call per shard, one decoder per actor: it is not thread-safe.

    The scores are `opaque`: log-likelihoods up to a constant of each frame, the same for every text of an utterance.
    """

    def __init__(self, config: PocketSphinxScorerConfig, decoder: Any) -> None:
        """Takes a decoder from `models.pocketsphinx.load` with `align=True`."""
        self._config, self._decoder = config, decoder
        self._rate = int(decoder.config["samprate"])

    def __call__(self, *tables: pa.Table, costs: Costs) -> pa.Table:
        """UTTERANCES and HYPOTHESES in, SCORES out; a text that cannot be said in the audio has null and a reason.

        Equal texts are aligned once. Letters' case does not count; a word that the dictionary lacks is a reason.

        Raises:
            OSError: a fault of the disk or network while reading audio.
        """
        utterances, hypotheses = tables
        rows, errors = [], []
        lists = hypotheses.column("hypotheses").to_pylist()
        for row, own in zip(utterances.to_pylist(), lists, strict=True):
            scores, error = self._row(row, [hypothesis["text"] for hypothesis in own], costs)
            rows.append(scores)
            errors.append(error)
        return scores_table(utterances.column("utterance_id").to_pylist(), rows, errors)

    def _row(
        self, row: Mapping[str, Any], texts: Sequence[str], costs: Costs
    ) -> tuple[list[SourceScores], tuple[str, str] | None]:
        if not texts:
            return [self._scores([], [])], None
        try:
            with costs.timed("decode"):
                samples = read_samples(row, sample_rate_hz=self._rate, max_audio_s=self._config.max_audio_s)
        except audio.AudioError as fault:
            return [], ("audio", str(fault))
        except ModelLimitError as fault:
            return [], ("model_limit", str(fault))
        words = [tuple(text.lower().split()) for text in texts]
        with costs.timed("align"):
            known = {own: self._align(own, samples, costs) for own in dict.fromkeys(words)}
        answers = [known[own] for own in words]
        return [self._scores([a if isinstance(a, float) else None for a in answers], answers)], None

    def _scores(self, log_probs: Sequence[float | None], answers: Sequence[float | str]) -> SourceScores:
        return SourceScores(
            source=self._config.source,
            kind="opaque",
            log_probs=log_probs,
            reasons=[answer if isinstance(answer, str) else None for answer in answers],
        )

    def _align(self, words: Sequence[str], samples: npt.NDArray[np.float32], costs: Costs) -> float | str:
        """The score in nats, or the reason why there is none."""
        if not words:
            return "text: an empty text cannot be aligned"
        unknown = [word for word in words if self._decoder.lookup_word(word) is None]
        if unknown:
            costs.count("texts_with_unknown_words")
            return f"text: the dictionary lacks {unknown[:5]}; add them to `words`"
        costs.count("alignments")
        self._decoder.set_align_text(" ".join(words))
        hear(self._decoder, samples)
        if self._decoder.hyp() is None:
            costs.count("impossible_texts")
            return "text: it cannot be said in this audio (no alignment)"
        return ALIGN_SHIFT * sum(math.log(segment.ascore) for segment in self._decoder.seg())
