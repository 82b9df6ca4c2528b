"""UTTERANCES, TRANSCRIPTS -> every word that a system wrote, with its confidence and whether it is right.

A word is right if the alignment with the reference makes it a hit. Confidence belongs to raw words and errors to
normalised ones: a normalised word has the confidence of the raw word that it came from; where words were joined or
split by the normaliser across each other ("twenty one" to "21"), it has none and is counted as unplaced.
Shape letters: U utterances, W written words, R reference words.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ctxasr_ray import align, text
from ctxasr_ray.metrics.counts import same_rows
from ctxasr_ray.metrics.joined_windows import join_windows


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgedWords:
    """All written words of a system in one line; failed utterances and those without reference have none."""

    utterance: npt.NDArray[np.int64]
    """(W,) row of its utterance."""
    words: list[str]
    """(W,) normalised."""
    confidence: npt.NDArray[np.float64]
    """(W,) 0 to 1; nan where unknown."""
    raw_word: npt.NDArray[np.int64]
    """(W,) place among the raw words of its utterance; -1 where unplaced."""
    op: npt.NDArray[np.int8]
    """(W,) 0 for a hit, else `align.SUBSTITUTION` or `align.INSERTION`."""
    place: npt.NDArray[np.int64]
    """(W,) for a substitution the reference word that it stands for, for an insertion the one that it stands before,
    counted over all references; -1 for a hit."""
    wrong_references: npt.NDArray[np.bool_]
    """(R,) whether each reference word is substituted or deleted."""
    deletions: npt.NDArray[np.int64]
    """(U,) deleted reference words."""
    has_reference: npt.NDArray[np.bool_]
    """(U,)"""
    unplaced: int
    """Words without a confidence of their own although the raw words have one."""

    @property
    def is_right(self) -> npt.NDArray[np.bool_]:
        """(W,) whether the word is a hit."""
        return np.equal(self.op, 0)

    @property
    def known(self) -> npt.NDArray[np.bool_]:
        """(W,) whether the word has a confidence."""
        return ~np.isnan(self.confidence)

    def insertions(self) -> Counter[tuple[int, str]]:
        """How often each word is inserted in each utterance."""
        rows = np.flatnonzero(self.op == align.INSERTION).tolist()
        return Counter((int(self.utterance[row]), self.words[row]) for row in rows)


def judge(utterances: pa.Table, transcripts: pa.Table, normaliser: str, alignment: str = "unit") -> JudgedWords:
    """Aligns the words of a system with the references.

    Args:
        utterances: With `joined_windows.WINDOW_COLUMNS`.
        transcripts: Row for row the same utterances, with `joined_windows.WORD_COLUMNS`.
        normaliser: One of `text.NORMALISERS`.
        alignment: One of `align.ALIGNMENTS`.
    """
    same_rows("transcripts", transcripts, "utterances", utterances)
    references = utterances.column("reference").to_pylist()
    said = join_windows(utterances, transcripts).select(["text", "words", "error_type"]).to_pylist()
    heard: list[str] = []
    confidence: list[float] = []
    raw_word: list[int] = []
    unplaced = 0
    for reference, row in zip(references, said, strict=True):
        normal = text.words("" if reference is None or row["error_type"] is not None else row["text"], normaliser)
        owners = _owners(normal, [word["word"] for word in row["words"]], normaliser)
        own = [None if owner < 0 else row["words"][owner]["confidence"] for owner in owners]
        unplaced += sum(c is None for c in own) if any(w["confidence"] is not None for w in row["words"]) else 0
        heard.append(" ".join(normal))
        raw_word += owners
        confidence += [np.nan if c is None else c for c in own]
    known = text.units(["" if r is None else r for r in references], normaliser, "word")
    reference_units, hypothesis_units = align.encode("word", known, heard)
    edits = align.edits(reference_units, hypothesis_units, alignment)
    reference_starts, word_starts = (
        np.concatenate([[0], np.cumsum(units.lengths)]) for units in (reference_units, hypothesis_units)
    )
    op, place = np.zeros(word_starts[-1], np.int8), np.full(word_starts[-1], -1, np.int64)
    written, lost = edits.op != align.DELETION, edits.op != align.INSERTION
    rows = word_starts[edits.pair[written]] + edits.hypothesis_index[written]
    op[rows] = edits.op[written]
    place[rows] = reference_starts[edits.pair[written]] + edits.reference_index[written]
    wrong = np.zeros(reference_starts[-1], bool)
    wrong[reference_starts[edits.pair[lost]] + edits.reference_index[lost]] = True
    deleted = edits.pair[edits.op == align.DELETION]
    return JudgedWords(
        utterance=np.repeat(np.arange(len(known)), hypothesis_units.lengths),
        words=[word for line in heard for word in line.split()],
        confidence=np.array(confidence, np.float64),
        raw_word=np.array(raw_word, np.int64),
        op=op,
        place=place,
        wrong_references=wrong,
        deletions=np.bincount(deleted, minlength=len(known)).astype(np.int64),
        has_reference=np.array([reference is not None for reference in references], bool),
        unplaced=unplaced,
    )


def _owners(normal: Sequence[str], words: Sequence[str], normaliser: str) -> list[int]:
    """The raw word that each normalised word came from, -1 where the normaliser joined or split across them."""
    parts = [(part, owner) for owner, word in enumerate(words) for part in text.words(word, normaliser)]
    apart = [part for part, _ in parts]
    if apart == list(normal):
        return [owner for _, owner in parts]
    found = [-1] * len(normal)
    for step in align.align(apart, normal):
        if step.op == "hit" and step.reference_index is not None and step.hypothesis_index is not None:
            found[step.hypothesis_index] = parts[step.reference_index][1]
    return found
