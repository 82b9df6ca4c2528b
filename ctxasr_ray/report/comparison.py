"""UTTERANCES, TRANSCRIPTS of several systems -> word errors of every system on every utterance, counted once."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ctxasr_ray import align, text

_OPS: Final = {align.SUBSTITUTION: "sub", align.DELETION: "del", align.INSERTION: "ins"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Several systems on the U utterances that have a reference."""

    systems: Sequence[str]
    normaliser: str
    alignment: str
    utterances: Sequence[Mapping[str, Any]]
    """UTTERANCES rows with a reference."""
    rows: Sequence[Sequence[Mapping[str, Any] | None]]
    """Per system and utterance its TRANSCRIPTS row, None where it has none."""
    references: Sequence[str]
    """Normalised, words separated by one space."""
    said: Sequence[Sequence[str]]
    """Per system and utterance the normalised transcript; empty where it failed or is missing."""
    errors: npt.NDArray[np.int64]
    """(systems, U) substitutions, deletions and insertions."""
    num_words: npt.NDArray[np.int64]
    """(U,) words of each reference."""
    num_unreferenced: int
    """Utterances without a reference, which are left out."""


def compare(
    utterances: pa.Table, transcripts: Mapping[str, pa.Table], *, normaliser: str, alignment: str = "unit"
) -> Comparison:
    """Counts the word errors of every system; an utterance that failed or is missing counts as all deleted.

    Args:
        utterances: UTTERANCES; rows without a reference are left out and counted.
        transcripts: System name -> TRANSCRIPTS; rows are matched by `utterance_id`.
        normaliser: One of `text.NORMALISERS`; words are compared after it.
        alignment: One of `align.ALIGNMENTS`.

    Raises:
        ValueError: an unknown normaliser or alignment.
    """
    scored = [row for row in utterances.to_pylist() if row["reference"] is not None]
    rows = [_by_id(table, scored) for table in transcripts.values()]
    references = text.units([row["reference"] for row in scored], normaliser, "word")
    # In one call: systems that rescore the same lists say the same words nearly everywhere.
    heard = text.units([_heard(row) for column in rows for row in column], normaliser, "word")
    said = [heard[start : start + len(scored)] for start in range(0, len(heard), len(scored))] if scored else []
    said = said or [[] for _ in rows]
    encoded = align.encode("word", references, *said)
    counted = [align.count(encoded[0], side, alignment).errors for side in encoded[1:]]
    return Comparison(
        systems=list(transcripts),
        normaliser=normaliser,
        alignment=alignment,
        utterances=scored,
        rows=rows,
        references=references,
        said=said,
        errors=np.array(counted, np.int64).reshape(len(rows), len(scored)),
        num_words=encoded[0].lengths,
        num_unreferenced=utterances.num_rows - len(scored),
    )


def _by_id(table: pa.Table, scored: Sequence[Mapping[str, Any]]) -> list[dict[str, Any] | None]:
    columns = table.select(["utterance_id", "text", "hypothesis_index", "error_type", "error"])
    found = {row["utterance_id"]: row for row in columns.to_pylist()}
    return [found.get(row["utterance_id"]) for row in scored]


def _heard(row: Mapping[str, Any] | None) -> str:
    return "" if row is None or row["error_type"] is not None else str(row["text"])


def confusions(comparison: Comparison, limit: int = 15) -> list[list[Any]]:
    """The most frequent single errors of any system, with how often each system makes them.

    Args:
        comparison: From `compare`.
        limit: Errors taken from each system, >= 1.

    Returns:
        `[kind, reference word, hypothesis word, [count of each system]]`, kind one of sub, del, ins; the word of
        the side that an error skips is empty.
    """
    counters = [_edits(comparison, said) for said in comparison.said]
    frequent = dict.fromkeys(edit for counter in counters for edit, _ in counter.most_common(limit))
    return [[*edit, [counter[edit] for counter in counters]] for edit in frequent]


def _edits(comparison: Comparison, said: Sequence[str]) -> Counter[tuple[str, str, str]]:
    references, hypotheses = align.encode("word", comparison.references, said)
    found = align.edits(references, hypotheses, comparison.alignment)
    counter: Counter[tuple[str, str, str]] = Counter()
    at, reference, hypothesis = -1, [""], [""]
    columns = (found.pair, found.op, found.reference_index, found.hypothesis_index)
    for pair, op, row, column in zip(*(c.tolist() for c in columns), strict=True):
        if pair != at:
            at, reference, hypothesis = pair, comparison.references[pair].split(), said[pair].split()
        wanted = "" if op == align.INSERTION else reference[row]
        heard = "" if op == align.DELETION else hypothesis[column]
        counter[_OPS[op], wanted, heard] += 1
    return counter
