"""What a language model counts in a search: words of the recogniser's labels, or the labels themselves.

Words where the two vocabularies differ: they are tokenised anew. Labels where they are the same. Letter: V labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np

from ctxasr_ray.models.word_boundaries import WordBoundaries
from ctxasr_ray.search.ctc_state import ENDS, INSIDE, SEPARATES, STARTS
from ctxasr_ray.token_tree import Int32

Words = tuple[str, ...]
_SPACES: Final = str.maketrans("\u0120\u2581|", "   ")
"""How byte-level BPE, SentencePiece and character vocabularies spell a space."""


class Units(Protocol):
    """Labels -> units that are complete at sure places."""

    @property
    def kinds(self) -> tuple[int, ...]:
        """(V,) what each label does to units, for `CtcBeamSearch.label_kinds`."""
        ...

    @property
    def are_local(self) -> bool:
        """Whether labels between two boundaries are the same units whatever stands before them."""
        ...

    def words(self, labels: Sequence[int]) -> Words:
        """Units of labels, the last one included."""
        ...


@dataclass(frozen=True, slots=True)
class WordUnits:
    """Words by the recogniser's own convention.

    A label that might complete a word (bytes of a character, a space inside a piece) counts as inside one; the word is
    then found at the next sure boundary.
    """

    boundaries: WordBoundaries

    @property
    def kinds(self) -> tuple[int, ...]:
        """As `Units.kinds`."""
        return tuple(
            _kind(piece, ends)
            for piece, ends in zip(self.boundaries.pieces, self.boundaries.ends.tolist(), strict=True)
        )

    @property
    def are_local(self) -> bool:
        """Words between spaces are; a segmentation without spaces looks at neighbours."""
        return self.boundaries.segmentation == "spaces"

    def words(self, labels: Sequence[int]) -> Words:
        """As `Units.words`."""
        return self.boundaries.words(labels)


def _kind(piece: str, ends: bool) -> int:
    if not piece or "\ufffd" in piece:
        return INSIDE
    if not piece.strip():
        return SEPARATES
    if piece[0].isspace():
        return STARTS
    return ENDS if ends else INSIDE


@dataclass(frozen=True, slots=True)
class LabelUnits:
    """Every label is a unit, named by its number; also their spelling for an LM with the same vocabulary.

    Args:
        tokens: (V,) the LM's token of each label, from `label_tokens`.
    """

    tokens: Int32

    @property
    def kinds(self) -> tuple[int, ...]:
        """Each label is complete at once."""
        return (ENDS,) * len(self.tokens)

    @property
    def are_local(self) -> bool:
        """They are."""
        return True

    @property
    def is_incremental(self) -> bool:
        """One token per label."""
        return True

    def words(self, labels: Sequence[int]) -> Words:
        """Numbers of labels."""
        return tuple(str(label) for label in labels)

    def chunk(self, word: str, first: bool) -> Int32:
        """The token of a label."""
        return self.tokens[int(word) : int(word) + 1]

    def extend(self, words: Words) -> Int32:
        """The tokens of labels."""
        return self.tokens[[int(word) for word in words]]


def label_tokens(pieces: Sequence[str], unwritten: Sequence[int], tokenizer: Any) -> Int32:
    """(V,) the LM's token of each label: the one that is spelled alike, spaces included; 0 for unwritten labels.

    Args:
        pieces: Text that each label adds inside a sequence.
        unwritten: The blank and other labels that a search never writes.
        tokenizer: Of the LM, one of transformers.

    Raises:
        ValueError: a label that the LM's vocabulary lacks.
    """
    tokens: dict[str, int] = {}
    for token, index in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]):
        tokens.setdefault(token.translate(_SPACES), index)
    written = [v for v in range(len(pieces)) if v not in set(unwritten)]
    if missing := [pieces[v] for v in written if pieces[v] not in tokens]:
        raise ValueError(
            f"the LM's vocabulary lacks {len(missing)} of {len(written)} labels of the recogniser, the first is "
            f"{missing[0]!r}; use units 'words', or an LM of the recogniser's own vocabulary."
        )
    made = np.zeros(len(pieces), np.int32)
    made[written] = [tokens[pieces[v]] for v in written]
    return made
