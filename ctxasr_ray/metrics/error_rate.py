"""UTTERANCES, TRANSCRIPTS -> ERRORS: word and character errors of each utterance, to be summed, never averaged."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import pyarrow as pa

from ctxasr_ray import align, text
from ctxasr_ray.metrics.counts import count_metric, errors_table, same_rows
from ctxasr_ray.stage import Costs, Resources, Stage, light


@dataclass(frozen=True, kw_only=True, slots=True)
class ErrorCountsConfig:
    """Counts errors against the reference; a failed utterance is all deletions, one without reference is left out."""

    NAME: ClassVar[str] = "error_rate"
    STAGE_VERSION: ClassVar[int] = 1
    READS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "utterances": ("reference",),
        "transcripts": ("text", "error_type"),
    }
    WRITES: ClassVar[str] = "errors"

    metrics: tuple[str, ...] = ("wer", "cer")
    """Some of wer, cer."""
    normaliser: str = "whisper_english"
    """One of `text.NORMALISERS`, for both sides."""
    alignment: str = "unit"
    """Costs of the alignment: unit (1/1/1) or nist (4/3/3)."""
    resources: Resources = field(default_factory=light)
    """Actors of the pool."""

    def fingerprint(self) -> Mapping[str, str]:
        """The normaliser's version: it changes numbers without a change of this config.

        Raises:
            ValueError: an unknown metric, normaliser or alignment.
        """
        unknown = sorted(set(self.metrics) - {"wer", "cer"})
        if unknown:
            raise ValueError(f"metrics: {unknown} are unknown; choose some of wer, cer.")
        align.check_alignment(self.alignment)
        return {"normaliser": text.versioned(self.normaliser)}

    def build(self) -> Stage:
        """Returns the counting function; there is no model to load."""
        self.fingerprint()
        return self._count

    def _count(self, *tables: pa.Table, costs: Costs) -> pa.Table:
        utterances, transcripts = tables
        same_rows("transcripts", transcripts, "utterances", utterances)
        with costs.timed("align"):
            references = utterances.column("reference").to_pylist()
            failed = transcripts.column("error_type").is_valid().to_pylist()
            heard = ["" if bad else t for t, bad in zip(transcripts.column("text").to_pylist(), failed, strict=True)]
            metrics = [count_metric(m, references, heard, self.normaliser, self.alignment) for m in self.metrics]
        costs.count("pairs_aligned", len(references) * len(metrics))
        return errors_table(utterances.column("utterance_id").to_pylist(), metrics)
