"""UTTERANCES, TRANSCRIPTS, TRANSCRIPTS -> ERRORS: which words a system spoiled and which it repaired.

Both systems are aligned with the reference; each reference word is then right or wrong in either. A word is spoiled
that the baseline had right and the system has wrong, repaired in the other case. Inserted words belong to no reference
word and take no part; they are in the error rates.

Reference:
    The shares are ours; the idea is AgWER's harmful edit rate for corrected transcripts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ctxasr_ray import align, text
from ctxasr_ray.metrics.counts import PAIRS_PER_STEP, CountOptions, MetricCounts, errors_table, same_rows
from ctxasr_ray.metrics.joined_windows import WINDOW_COLUMNS, WORD_COLUMNS, join_windows
from ctxasr_ray.stage import Costs, Stage


def wrong_words(references: align.Encoded, hypotheses: align.Encoded, alignment: str) -> npt.NDArray[np.bool_]:
    """(W,) for every word of all references in one line, whether it is substituted or deleted.

    Args:
        references: P sequences, parallel to `hypotheses` and of the same `encode` call.
        hypotheses: P sequences.
        alignment: One of `align.ALIGNMENTS`.
    """
    edits = align.edits(references, hypotheses, alignment)
    starts = np.concatenate([[0], np.cumsum(references.lengths)])
    wrong = np.zeros(starts[-1], bool)
    lost = edits.op != align.INSERTION
    wrong[starts[edits.pair[lost]] + edits.reference_index[lost]] = True
    return wrong


@dataclass(frozen=True, kw_only=True, slots=True)
class EditCountsConfig(CountOptions):
    """Counts `harmful_edits` and `helpful_edits` of a system against the baseline.

    Reads UTTERANCES, the baseline's TRANSCRIPTS, the system's TRANSCRIPTS, in this order.
    """

    NAME: ClassVar[str] = "edit_counts"
    STAGE_VERSION: ClassVar[int] = 1
    READS: ClassVar[Mapping[str, tuple[str, ...]]] = {"utterances": WINDOW_COLUMNS, "transcripts": WORD_COLUMNS}
    WRITES: ClassVar[str] = "errors"

    def build(self) -> Stage:
        """Returns the counting function; there is no model to load."""
        self.fingerprint()
        return self._count

    def _count(self, *tables: pa.Table, costs: Costs) -> pa.Table:
        utterances, *transcripts = tables
        known = utterances.column("reference").to_pylist()
        texts = []
        for name, table in zip(("baseline", "system"), transcripts, strict=True):
            same_rows(f"transcripts of the {name}", table, "utterances", utterances)
            joined = join_windows(utterances, table)
            failed = joined.column("error_type").is_valid().to_pylist()
            texts.append(["" if bad else t for t, bad in zip(joined.column("text").to_pylist(), failed, strict=True)])
        parts = []
        with costs.timed("align"):
            for start in range(0, len(known), PAIRS_PER_STEP) or (0,):
                step = slice(start, start + PAIRS_PER_STEP)
                sides = (["" if r is None else r for r in known[step]], *(side[step] for side in texts))
                parts.append(self._counts(*(text.units(side, self.normaliser, "word") for side in sides)))
        costs.count("pairs_aligned", 2 * len(known))
        counted = np.array([reference is not None for reference in known], bool)
        metrics = [
            MetricCounts(
                metric=metric,
                unit="word",
                normaliser=self.normaliser,
                word_class="all",
                alignment=self.alignment,
                counted=counted,
                counts=align.Counts.joined([part[k] for part in parts]),
            )
            for k, metric in enumerate(("harmful_edits", "helpful_edits"))
        ]
        return errors_table(utterances.column("utterance_id").to_pylist(), metrics)

    def _counts(self, *sides: list[str]) -> tuple[align.Counts, align.Counts]:
        """Words that the baseline had right, then words that it had wrong; hits: right in the system."""
        references, *both = align.encode("word", *sides)
        before, after = (wrong_words(references, heard, self.alignment) for heard in both)
        owner = np.repeat(np.arange(len(references.lengths)), references.lengths)

        def per_pair(words: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
            return np.bincount(owner[words], minlength=len(references.lengths)).astype(np.int64)

        nothing = np.zeros(len(references.lengths), np.int64)
        return (
            align.Counts(per_pair(~before & ~after), per_pair(~before & after), nothing, nothing),
            align.Counts(per_pair(before & ~after), per_pair(before & after), nothing, nothing),
        )
