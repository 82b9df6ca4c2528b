"""Keyword matches of every hypothesis of a list: what lets a weight search maximise F1 or recall of phrases."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from ctxasr_ray.keywords.catalogue import Catalogue
from ctxasr_ray.keywords.context import row_phrases
from ctxasr_ray.metrics.counts import same_rows
from ctxasr_ray.metrics.joined_windows import recordings
from ctxasr_ray.metrics.keywords import KeywordCounter, PhraseCounts
from ctxasr_ray.nbest import FlatNBest

MATCHES = ("true_positives", "false_positives", "false_negatives")
"""Columns of HYPOTHESIS_ERRORS that only phrases have."""


class NbestKeywords:
    """Counts the phrases of a catalogue in whole lists, as `metrics.keywords` counts them in one transcript.

    Args:
        catalogue: The global phrase list; None: own true phrases and context lists are the catalogue.
        normaliser: One of `text.NORMALISERS`.
    """

    def __init__(self, catalogue: Catalogue | None, normaliser: str) -> None:
        self.catalogue = catalogue
        self._counter = KeywordCounter(catalogue, normaliser)

    def matches(self, flat: FlatNBest, utterances: pa.Table, context: pa.Table | None) -> dict[str, Any]:
        """One entry of NBEST_ERRORS: matches, phrases written and phrases asked for; U utterances, H hypotheses.

        Args:
            flat: The lists.
            utterances: Row for row; those whose true phrases are null, and windows of a longer recording, are unknown.
            context: Row for row, where the run has it.

        Returns:
            known (U,), lengths (U,) true phrases, and (H,) `MATCHES` and num_units (phrases written).
        """
        num_utterances = len(flat.utterance_ids)
        lists: Sequence[Any] = [None] * num_utterances
        if context is not None:
            same_rows("context", context, "utterances", utterances)
            lists = row_phrases(context, self.catalogue)
        references, keywords = (utterances.column(name).to_pylist() for name in ("reference", "keywords"))
        known = np.array([own is not None for own in keywords], bool)
        for rows in recordings(utterances):
            known[rows] = False
        lengths = np.zeros(num_utterances, np.int64)
        numbers = np.zeros((4, len(flat.texts)), np.int64)
        for row in np.flatnonzero(known).tolist():
            own = lists[row]
            start, end = flat.offsets[row : row + 2].tolist()
            found = self._counter.count_list(
                ["", *flat.texts[start:end]],  # the empty text says how many phrases are asked for
                references[row],
                keywords[row],
                () if own is None else [phrase.text for phrase in own.own],
                None if own is None else own.num_shared,
            )
            lengths[row] = found[0].truth.total()
            numbers[:, start:end] = np.array([_numbers(one) for one in found[1:]], np.int64).reshape(-1, 4).T
        return {"known": known, "lengths": lengths, **dict(zip((*MATCHES, "num_units"), numbers, strict=True))}


def _numbers(one: PhraseCounts) -> tuple[int, int, int, int]:
    parts = (one.true_positives, one.false_positives, one.false_negatives, one.written)
    return parts[0].total(), parts[1].total(), parts[2].total(), parts[3].total()
