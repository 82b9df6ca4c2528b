"""Labels of a recogniser -> which words of a hypothesis are complete, whatever the tokenizer's convention.

A word is complete when no further label can change it: behind a space label, behind a word-end piece, or when the
next word-start piece has come, so that word-start pieces are one word late. Languages without spaces have a named
segmentation instead. Letter: V labels of the recogniser.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from ctxasr_ray.models.ctc_vocabulary import Vocabulary
from ctxasr_ray.token_tree import Int32

if TYPE_CHECKING:
    from ctxasr_ray.models.seq2seq_tokens import Seq2SeqTokens

Bools = npt.NDArray[np.bool_]
SEGMENTATIONS: Final = ("spaces", "characters")
"""`spaces`: a word is what stands between spaces. `characters`: every Han or kana character is a word, and so is every
run of other letters between them; a unit keeps the space before it, so that units are joined by nothing."""
_WITHOUT_SPACES: Final = frozenset({"zh", "cmn", "yue", "wuu", "nan", "hak", "ja", "jpn", "zho"})
IDEOGRAPH: Final = (
    "\u3007\u3040-\u30ff\u3105-\u312f\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uff66-\uff9f\U00020000-\U0003ffff"
)
_UNIT: Final = re.compile(f" ?(?:[{IDEOGRAPH}]|[^ {IDEOGRAPH}]+)")
_ENDS_IN_IDEOGRAPH: Final = re.compile(f"[{IDEOGRAPH}]$")
_PART: Final = "\ufffd"
"""What a decoder writes for some of the bytes of a character."""


def segmentation_of(language: str | None) -> str:
    """Names the segmentation of a language: `characters` for Chinese and Japanese, otherwise `spaces`.

    Args:
        language: A code such as "en", "zh" or "zh-CN"; None is a language with spaces.
    """
    code = (language or "").replace("_", "-").lower().split("-")[0]
    return "characters" if code in _WITHOUT_SPACES else "spaces"


def split_words(text: str, segmentation: str = "spaces") -> tuple[str, ...]:
    """Words of a text; `join_words` of them is the text with single spaces.

    Raises:
        ValueError: an unknown segmentation.
    """
    _check(segmentation)
    spaced = text.split()
    return tuple(spaced) if segmentation == "spaces" else tuple(_UNIT.findall(" ".join(spaced)))


def join_words(words: Sequence[str], segmentation: str = "spaces") -> str:
    """The text that words of `split_words` came from.

    Raises:
        ValueError: an unknown segmentation.
    """
    _check(segmentation)
    return (" " if segmentation == "spaces" else "").join(words)


def _check(segmentation: str) -> None:
    if segmentation not in SEGMENTATIONS:
        raise ValueError(f"segmentation '{segmentation}' is unknown; choose one of {', '.join(SEGMENTATIONS)}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class WordBoundaries:
    """Where words end in the label sequences of one recogniser.

    The three masks say what a label does whatever stands before it. Labels that are some bytes of a character have
    all that such a character could do: then a mask says "may", and `complete_words` what is true.
    """

    pieces: tuple[str, ...]
    """Text that each of V labels adds inside a sequence, spaces included; "" for labels that write nothing."""
    decode: Callable[[list[int]], str] | None = field(default=None, repr=False)
    """The tokenizer's own decoder, where joined pieces differ from it."""
    segmentation: str = "spaces"
    """One of `SEGMENTATIONS`."""
    completes: Bools = field(init=False, repr=False)
    """(V,) whether the word before the label is complete once the label is written."""
    starts: Bools = field(init=False, repr=False)
    """(V,) whether the label writes the beginning of a word."""
    ends: Bools = field(init=False, repr=False)
    """(V,) whether nothing stays open behind the label: its own word, or the one before it, is complete."""

    def __post_init__(self) -> None:
        """Reads the masks from the pieces."""
        _check(self.segmentation)
        single = [self.segmentation == "characters" and _may_be_ideograph(piece) for piece in self.pieces]
        spaced = [bool(re.search(r"\s", piece)) for piece in self.pieces]
        first = [piece[:1].isspace() for piece in self.pieces]
        last = [piece[-1:].isspace() for piece in self.pieces]
        written = [bool(piece.strip()) for piece in self.pieces]
        object.__setattr__(self, "completes", np.asarray(spaced, np.bool_) | np.asarray(single, np.bool_))
        starts = (np.asarray(first, np.bool_) | np.asarray(single, np.bool_)) & np.asarray(written, np.bool_)
        object.__setattr__(self, "starts", starts)
        closed = [_PART in piece or bool(_ENDS_IN_IDEOGRAPH.search(piece)) for piece in self.pieces]
        closed = [one and this for one, this in zip(single, closed, strict=True)]
        object.__setattr__(self, "ends", np.asarray(last, np.bool_) | np.asarray(closed, np.bool_))

    @classmethod
    def of_ctc(cls, vocabulary: Vocabulary, segmentation: str = "spaces") -> "WordBoundaries":
        """Boundaries in a CTC model's label sequences, blanks taken out."""
        return cls(pieces=vocabulary.pieces, decode=vocabulary.decode, segmentation=segmentation)

    @classmethod
    def of_attention(cls, tokens: "Seq2SeqTokens", segmentation: str = "spaces") -> "WordBoundaries":
        """Boundaries in what an attention decoder writes, without its prompt and its end.

        Args:
            tokens: Of the recogniser; tokens that it never writes have an empty piece.
            segmentation: One of `SEGMENTATIONS`.
        """
        written = [v for v in range(len(tokens.suppressed)) if not tokens.suppressed[v] and v != tokens.eos_id]
        return cls(
            pieces=_pieces(tokens.text, written, len(tokens.suppressed)), decode=tokens.text, segmentation=segmentation
        )

    def complete_words(self, token_ids: Sequence[int] | Int32) -> tuple[tuple[str, ...], str]:
        """The complete words of a label sequence, and the text of the open one behind them, "" if none is open.

        Args:
            token_ids: Labels without blanks and special tokens, in order.
        """
        ids = [int(token) for token in token_ids]
        raw = self.decode(ids) if self.decode else "".join([self.pieces[token] for token in ids])
        words = split_words(raw, self.segmentation)
        if not words or self._is_closed(raw, ids):
            return words, ""
        return words[:-1], words[-1]

    def words(self, token_ids: Sequence[int] | Int32) -> tuple[str, ...]:
        """All words of a finished label sequence, the last one included."""
        complete, rest = self.complete_words(token_ids)
        return (*complete, rest) if rest else complete

    def _is_closed(self, raw: str, ids: list[int]) -> bool:
        last = next((self.pieces[token] for token in reversed(ids) if self.pieces[token]), "")
        if raw[-1:].isspace() or last[-1:].isspace():
            return True
        return self.segmentation == "characters" and bool(_ENDS_IN_IDEOGRAPH.search(raw))


def _may_be_ideograph(piece: str) -> bool:
    return _PART in piece or bool(re.search(f"[{IDEOGRAPH}]", piece))


def _pieces(text: Callable[[list[int]], str], written: Sequence[int], num_labels: int) -> tuple[str, ...]:
    """What each token adds between two others, because decoders strip the spaces at the ends of a text."""
    anchor = next((v for v in written if text([v]).strip() and _PART not in text([v])), None)
    pieces = [""] * num_labels
    if anchor is None:
        return tuple(pieces)
    before = len(text([anchor]))
    after = len(text([anchor, anchor])) - before
    for v in written:
        whole = text([anchor, v, anchor])
        pieces[v] = whole[before : len(whole) - after]
    return tuple(pieces)
