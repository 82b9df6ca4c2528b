"""UTTERANCES, CONTEXT -> ERRORS: which of an utterance's true phrases stand among the first k of its shortlist.

Each distinct true phrase (UTTERANCES.keywords, normalised) counts once. An utterance whose true phrases are unknown and
the windows of a longer recording are not counted.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Final

import numpy as np
import pyarrow as pa

from ctxasr_ray import align, text
from ctxasr_ray.metrics.counts import MetricCounts, errors_table, same_rows
from ctxasr_ray.stage import Costs, Resources, Stage, light

DEPTHS: Final = (1, 8, 64)
"""The k of recall@k."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShortlistRecallConfig:
    """Counts for `recall@1`, `recall@8` and `recall@64`. Reads UTTERANCES and a shortlist's CONTEXT, best first."""

    NAME: ClassVar[str] = "shortlist_recall"
    STAGE_VERSION: ClassVar[int] = 1
    READS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "utterances": ("keywords", "window_index"),
        "context": ("phrases",),
    }
    WRITES: ClassVar[str] = "errors"

    normaliser: str = "whisper_english"
    """Under which phrases are equal: one of `text.NORMALISERS`."""
    resources: Resources = field(default_factory=light)
    """Actors of the pool."""

    def fingerprint(self) -> Mapping[str, str]:
        """The normaliser's version."""
        return {"normaliser": text.versioned(self.normaliser)}

    def build(self) -> Stage:
        """Returns the counting function; there is nothing to load."""
        self.fingerprint()
        return self._count

    def _count(self, *tables: pa.Table, costs: Costs) -> pa.Table:
        utterances, context = tables
        same_rows("context", context, "utterances", utterances)
        truths, windows = (utterances.column(name).to_pylist() for name in ("keywords", "window_index"))
        counted = np.asarray([t is not None and w is None for t, w in zip(truths, windows, strict=True)], bool)
        found = np.zeros((len(DEPTHS), len(truths)), np.int64)
        asked = np.zeros(len(truths), np.int64)
        for row, (truth, phrases) in enumerate(zip(truths, context.column("phrases").to_pylist(), strict=True)):
            if not counted[row]:
                continue
            true = {normal for phrase in truth if (normal := text.normalise(phrase, self.normaliser))}
            asked[row] = len(true)
            listed = [text.normalise(phrase, self.normaliser) for phrase in phrases or ()]
            found[:, row] = [len(true.intersection(listed[:depth])) for depth in DEPTHS]
        costs.count("phrases_asked", int(asked.sum()))
        nothing = np.zeros(len(truths), np.int64)
        metrics = [
            MetricCounts(
                metric=f"recall@{depth}",
                unit="phrase",
                normaliser=self.normaliser,
                word_class="shortlist",
                alignment="set",
                counted=counted,
                counts=align.Counts(hits, nothing, asked - hits, nothing),
            )
            for depth, hits in zip(DEPTHS, found, strict=True)
        ]
        return errors_table(utterances.column("utterance_id").to_pylist(), metrics)
