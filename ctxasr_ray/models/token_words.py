"""Tokens of any tokenizer -> the word that each belongs to, read from what the tokens decode to so far."""

from collections.abc import Callable, Sequence
from typing import Final

_UNFINISHED: Final = "\ufffd"
"""What decoders write for bytes that are no character yet."""
_SPACES: Final = " \u2581\u0120"
"""A space in tokenizers' own spelling: plain, SentencePiece (U+2581), byte-level BPE (U+0120)."""


def token_words(ids: Sequence[int], decode: Callable[[list[int]], str], spelled: Sequence[str]) -> list[int] | None:
    """Index in `decode(ids).split()` of each token's word; -1 for a token that is a space; None if tokens cross words.

    A token belongs to the last word of what is decoded up to it, bytes of an unfinished character included. This holds
    for byte-level BPE, SentencePiece with byte fallback, WordPiece and characters, and asks nothing of the tokenizer
    but its decoder.

    Args:
        ids: L token ids of one text.
        decode: Ids to text; outer spaces may be kept or not.
        spelled: L tokens as the tokenizer writes them.
    """
    words: list[int] = []
    before: list[str] = []
    for end, token in enumerate(spelled, start=1):
        now = decode(list(ids[:end])).split()
        if not token.strip(_SPACES):
            words.append(-1)
        elif len(now) - len(before) not in (0, 1) or not _goes_on(before, now):
            return None
        else:
            words.append(len(now) - 1)
        before = now
    return words


def _goes_on(before: list[str], now: list[str]) -> bool:
    """Whether only the last word grew, or a new one began behind words that stay."""
    settled = before[: -1 if len(now) == len(before) else None]
    return all(a == b or a.endswith(_UNFINISHED) for a, b in zip(settled, now, strict=False))
