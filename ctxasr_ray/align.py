"""The one edit distance: normalised texts -> error counts in bulk, and alignments where they are needed.

Shape letters: P pairs, N sequences, E edits. Two cost schemes, and what breaks a tie between alignments of equal cost:

- `unit`: substitution, deletion and insertion cost 1. Totals are bit-parallel (`align_bits`); where the split or the
  edits are asked for, rapidfuzz aligns: read from the end it takes a deletion before an insertion before the
  diagonal, between a common prefix and suffix. The same split as jiwer's.
- `nist`: substitution 4, deletion 3, insertion 3, as sclite and the is21 scorer. Read from the end, the diagonal
  comes before a deletion, a deletion before an insertion.

Totals under `unit` are the edit distance and do not depend on the rule; substitutions, deletions and insertions do.
Never compare those across tools without naming the scheme.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

Alignment = Literal["unit", "nist"]
Op = Literal["hit", "substitution", "deletion", "insertion"]
ALIGNMENTS: Final = ("unit", "nist")
SUBSTITUTION, DELETION, INSERTION = 1, 2, 3
_OPS: Final[tuple[Op, ...]] = ("hit", "substitution", "deletion", "insertion")
_TAGS: Final = {"replace": SUBSTITUTION, "delete": DELETION, "insert": INSERTION}
_NUM_CODES: Final = 0x110000 - 0x10000  # unit number i is the code point 0x10000 + i

_SEPARATORS: Final = np.zeros(256, bool)
_SEPARATORS[[9, 10, 11, 12, 13, 28, 29, 30, 31, 32]] = True  # ASCII white space as str.split() sees it


@dataclass(frozen=True, slots=True)
class Encoded:
    """Sequences of units over one vocabulary, ready for rapidfuzz and for numba.

    Args:
        codes: (units,) uint32, one code point per unit: the sequences of a whole `encode` call in one line.
        starts: (N,) int64, where each sequence starts in it.
        lengths: (N,) int64, in units.
    """

    codes: npt.NDArray[np.uint32]
    starts: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]

    def __getitem__(self, rows: npt.NDArray[np.int64] | slice) -> "Encoded":
        """The sequences at some rows; sequences may repeat."""
        return Encoded(self.codes, self.starts[rows], self.lengths[rows])

    def string(self, row: int) -> str:
        """One sequence, one character per unit."""
        start, length = int(self.starts[row]), int(self.lengths[row])
        return self.codes[start : start + length].tobytes().decode("utf-32-le", "surrogatepass")

    def strings(self) -> list[str]:
        """All sequences, one character per unit."""
        return [self.string(row) for row in range(len(self.lengths))]


def encode(unit: str, *groups: Sequence[str]) -> tuple[Encoded, ...]:
    """Turns each unit into one code point, by one vocabulary for all groups.

    Args:
        unit: `word` splits each text at white space; `character` takes every code point of it.
        groups: Lists of texts from `text.units`, for example references and hypotheses.

    Returns:
        One `Encoded` per group.

    Raises:
        ValueError: more than 1,048,576 distinct words at once.
    """
    texts = [text for group in groups for text in group]
    if unit == "character":
        codes = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), np.uint32)
        lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    else:
        numbers, lengths = _word_numbers(texts)
        codes = numbers.view(np.uint32) + np.uint32(0x10000)
    every = Encoded(codes, np.cumsum(lengths) - lengths, lengths)
    ends = np.cumsum([len(group) for group in groups], dtype=np.int64).tolist()
    return tuple(every[end - len(group) : end] for group, end in zip(groups, ends, strict=True))


def _word_numbers(texts: Sequence[str]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """(words,) vocabulary index of every word of all texts, and (N,) words per text.

    Words are never made into Python strings: a compiled loop hashes and compares their bytes.
    """
    if not texts:
        return np.zeros(0, np.int32), np.zeros(0, np.int64)
    from ctxasr_ray.align_words import word_numbers  # numba compiles it; nobody else waits for that

    line = "\n".join([*texts, ""])
    if not line.isascii():
        line = "\n".join([*(text if text.isascii() else " ".join(text.split()) for text in texts), ""])
    if line.count("\n") > len(texts):
        line = "\n".join([*(" ".join(text.split()) for text in texts), ""])
    data = np.frombuffer(line.encode("utf-8", "surrogatepass"), np.uint8)
    numbers, lengths, num_distinct = word_numbers(data, _SEPARATORS, len(texts))
    if num_distinct > _NUM_CODES:
        raise ValueError(
            f"{num_distinct} distinct words in one call, at most {_NUM_CODES} fit; align in smaller parts."
        )
    return numbers, lengths


@dataclass(frozen=True, slots=True)
class Counts:
    """Error counts of P pairs, each a (P,) int64 array in units."""

    hits: npt.NDArray[np.int64]
    substitutions: npt.NDArray[np.int64]
    deletions: npt.NDArray[np.int64]
    insertions: npt.NDArray[np.int64]

    @classmethod
    def joined(cls, parts: Sequence["Counts"]) -> "Counts":
        """The counts of several calls, one after the other."""
        return cls(*(np.concatenate(columns) for columns in zip(*(part.columns() for part in parts), strict=True)))

    def columns(self) -> tuple[npt.NDArray[np.int64], ...]:
        """Hits, substitutions, deletions and insertions, in the order of the constructor."""
        return self.hits, self.substitutions, self.deletions, self.insertions

    @property
    def reference_length(self) -> npt.NDArray[np.int64]:
        """(P,) units of each reference."""
        return self.hits + self.substitutions + self.deletions

    @property
    def errors(self) -> npt.NDArray[np.int64]:
        """(P,) substitutions, deletions and insertions together."""
        return self.substitutions + self.deletions + self.insertions


def distances(references: Encoded, hypotheses: Encoded) -> npt.NDArray[np.int32]:
    """(P,) edit distances under `unit` costs, fastest where pairs of one reference stand together.

    Args:
        references: P sequences, parallel to `hypotheses` and of the same `encode` call.
        hypotheses: P sequences.
    """
    from ctxasr_ray.align_bits import unit_distances  # numba compiles it; nobody else waits for that

    return unit_distances(
        references.codes, references.starts, references.lengths, hypotheses.starts, hypotheses.lengths
    )


def count(references: Encoded, hypotheses: Encoded, alignment: str = "unit") -> Counts:
    """Hits, substitutions, deletions and insertions of P pairs, split as `edits` splits them.

    Args:
        references: P sequences, parallel to `hypotheses` and of the same `encode` call.
        hypotheses: P sequences.
        alignment: One of `ALIGNMENTS`.

    Raises:
        ValueError: an unknown alignment.
    """
    check_alignment(alignment)
    surplus = hypotheses.lengths - references.lengths  # insertions - deletions, whatever the alignment
    if alignment == "unit":
        errors = distances(references, hypotheses).astype(np.int64)
        substitutions = _unit_substitutions(references, hypotheses, errors, surplus)
        insertions = (errors - substitutions + surplus) // 2
    else:
        found = edits(references, hypotheses, alignment)
        num_pairs = len(references.lengths)
        substitutions = np.bincount(found.pair[found.op == SUBSTITUTION], minlength=num_pairs).astype(np.int64)
        insertions = np.bincount(found.pair[found.op == INSERTION], minlength=num_pairs)
    deletions = insertions - surplus
    return Counts(references.lengths - substitutions - deletions, substitutions, deletions, insertions)


def _unit_substitutions(
    references: Encoded,
    hypotheses: Encoded,
    errors: npt.NDArray[np.int64],
    surplus: npt.NDArray[np.int64],
) -> npt.NDArray[np.int64]:
    """Substitutions + 2 min(insertions, deletions) is known; only where it is 2 or more must one align to split it."""
    from rapidfuzz.distance import Levenshtein

    substitutions: npt.NDArray[np.int64] = errors - np.abs(surplus)
    for pair in np.flatnonzero(substitutions >= 2).tolist():
        operations = Levenshtein.editops(references.string(pair), hypotheses.string(pair)).as_list()
        substitutions[pair] = len([tag for tag, _, _ in operations if tag == "replace"])
    return substitutions


def check_alignment(alignment: str) -> None:
    """Refuses a cost scheme that does not exist.

    Raises:
        ValueError: it is not one of `ALIGNMENTS`.
    """
    if alignment not in ALIGNMENTS:
        raise ValueError(f"alignment '{alignment}' is unknown; choose one of {', '.join(ALIGNMENTS)}.")


@dataclass(frozen=True, slots=True)
class Edits:
    """Every edit of P pairs in one line, pair by pair, left to right; each a (E,) array.

    Args:
        pair: int64 index of the pair.
        op: int8, SUBSTITUTION, DELETION or INSERTION.
        reference_index: int64 unit of the reference; for an insertion the unit that it stands before.
        hypothesis_index: int64 unit of the hypothesis; for a deletion the unit that it would stand before.
    """

    pair: npt.NDArray[np.int64]
    op: npt.NDArray[np.int8]
    reference_index: npt.NDArray[np.int64]
    hypothesis_index: npt.NDArray[np.int64]


def edits(references: Encoded, hypotheses: Encoded, alignment: str = "unit") -> Edits:
    """Aligns P pairs and keeps what is not a hit.

    Args:
        references: P sequences, parallel to `hypotheses` and of the same `encode` call.
        hypotheses: P sequences.
        alignment: One of `ALIGNMENTS`.

    Raises:
        ValueError: an unknown alignment.
    """
    check_alignment(alignment)
    return _unit_edits(references, hypotheses) if alignment == "unit" else _nist_edits(references, hypotheses)


def _unit_edits(references: Encoded, hypotheses: Encoded) -> Edits:
    from rapidfuzz.distance import Levenshtein

    pairs: list[int] = []
    operations: list[tuple[str, int, int]] = []
    for pair in np.flatnonzero(distances(references, hypotheses)).tolist():
        found = Levenshtein.editops(references.string(pair), hypotheses.string(pair))
        pairs.extend([pair] * len(found))
        operations.extend((edit.tag, edit.src_pos, edit.dest_pos) for edit in found)
    tags, reference_indices, hypothesis_indices = zip(*operations, strict=True) if operations else ((), (), ())
    return Edits(
        np.array(pairs, np.int64),
        np.array([_TAGS[tag] for tag in tags], np.int8),
        np.array(reference_indices, np.int64),
        np.array(hypothesis_indices, np.int64),
    )


def _nist_edits(references: Encoded, hypotheses: Encoded) -> Edits:
    from ctxasr_ray.align_nist import walk  # numba compiles it; nobody else waits for that

    return Edits(*walk(references.codes, references.starts, references.lengths, hypotheses.starts, hypotheses.lengths))


class Edit(NamedTuple):
    """One step of an alignment; the index of the side that it skips is None."""

    op: Op
    reference_index: int | None
    hypothesis_index: int | None


def align(reference: Sequence[str], hypothesis: Sequence[str], alignment: str = "unit") -> list[Edit]:
    """The whole alignment of one pair, left to right, hits included.

    Args:
        reference: Units, for example `text.words(...)`.
        hypothesis: Units.
        alignment: One of `ALIGNMENTS`.

    Raises:
        ValueError: an unknown alignment.
    """
    vocabulary: dict[str, int] = {}
    codes = np.array([vocabulary.setdefault(u, len(vocabulary)) for u in (*reference, *hypothesis)], np.uint32)
    lengths = np.array([len(reference), len(hypothesis)], np.int64)
    both = Encoded(codes + np.uint32(0x10000), np.array([0, len(reference)], np.int64), lengths)
    found = edits(both[:1], both[1:], alignment)
    steps: list[Edit] = []
    i = j = 0
    for op, row, column in zip(found.op, found.reference_index.tolist(), found.hypothesis_index.tolist(), strict=True):
        steps.extend(Edit("hit", i + k, j + k) for k in range(row - i))
        i, j = row + (op != INSERTION), column + (op != DELETION)
        steps.append(Edit(_OPS[op], None if op == INSERTION else row, None if op == DELETION else column))
    steps.extend(Edit("hit", i + k, j + k) for k in range(len(reference) - i))
    return steps
