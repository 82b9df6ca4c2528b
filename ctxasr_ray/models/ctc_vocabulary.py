"""The labels of a CTC model as text: which is the blank, which write nothing, which begin a word."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ctxasr_ray.models.checkpoint import Checkpoint, check_vocabulary
from ctxasr_ray.models.token_words import token_words


@dataclass(frozen=True, kw_only=True, slots=True)
class Vocabulary:
    """V labels. Joined pieces are the text, whatever convention the tokenizer has for words."""

    pieces: tuple[str, ...]
    """Text that each label adds; a word delimiter is " ", a word-start piece begins with " ", the blank is ""."""
    blank_id: int
    suppressed: tuple[int, ...]
    """Labels that stand for no text (<s>, </s>, <unk>): a search must not write them."""
    decode: Callable[[list[int]], str] | None = field(default=None, repr=False)
    """The tokenizer's own decoder, where joined pieces differ from it (bytes of a character in several pieces)."""
    spelled: tuple[str, ...] = ()
    """Labels as the tokenizer writes them; set with `decode`."""

    def text(self, token_ids: Sequence[int] | npt.NDArray[np.int32]) -> str:
        """The text of a label sequence without blanks; runs of spaces become one, none at the ends."""
        ids = [int(token) for token in token_ids]
        text = self.decode(ids) if self.decode else "".join(self.pieces[token] for token in ids)
        return " ".join(text.split())

    def token_words(self, ids: Sequence[int] | npt.NDArray[np.int32]) -> list[int] | None:
        """Index in `text(ids).split()` of each label's word, -1 for a space; None where labels cross words."""
        if self.decode is not None:
            labels = [int(token) for token in ids]
            return token_words(labels, self.decode, [self.spelled[token] for token in labels])
        words: list[int] = []
        word, starts = -1, True
        for token in ids:
            piece = self.pieces[token]
            starts |= piece.startswith(" ")
            if not piece.strip():
                words.append(-1)
                continue
            word += starts
            words.append(word)
            starts = piece.endswith(" ")
        return words if word + 1 == len(self.text(ids).split()) else None

    def starts_word(self) -> npt.NDArray[np.bool_]:
        """(V,) whether a label ends the word before it: it is, or begins with, a space."""
        return np.asarray([piece.startswith(" ") for piece in self.pieces])


def vocabulary(checkpoint: Checkpoint, tokenizer: Any, num_labels: int, blank_id: int | None) -> Vocabulary:
    """Reads a tokenizer's conventions from what it decodes, and refuses one that cannot be the model's.

    Args:
        checkpoint: Names the files in messages.
        tokenizer: `Wav2Vec2CTCTokenizer` (word delimiter), or any tokenizer with a decoder (word-start pieces,
            characters with a space).
        num_labels: Outputs of the model, blank included.
        blank_id: `config.pad_token_id`, which all CTC heads of transformers use for the blank.

    Raises:
        ValueError: no blank, a token id beyond the outputs, or an output that no token stands for.
    """
    check_vocabulary(checkpoint, tokenizer, num_labels, special_may_exceed=True)
    config = checkpoint.directory / "config.json"
    if blank_id is None or not 0 <= blank_id < num_labels:
        raise ValueError(
            f"model '{checkpoint.name}': pad_token_id in {config} is {blank_id}; expected the id of the blank, "
            f"0 to {num_labels - 1}."
        )
    known = set(tokenizer.get_vocab().values())
    nameless = [v for v in range(num_labels) if v not in known and v != blank_id]
    if nameless:
        names = ", ".join(str(p) for p in checkpoint.tokenizer_files)
        raise ValueError(
            f"model '{checkpoint.name}': output {nameless[0]} (of {len(nameless)}) has no token in {names}; the "
            "tokenizer does not match the weights. Use the tokenizer that the model was trained with."
        )
    delimiter_id = tokenizer.word_delimiter_token_id if hasattr(tokenizer, "word_delimiter_token_id") else None
    special = {int(i) for i in tokenizer.all_special_ids if i < num_labels}
    suppressed = tuple(sorted(special - {blank_id, delimiter_id}))  # Wav2Vec2CTCTokenizer counts `|` as special
    written = [v for v in range(num_labels) if v != blank_id and v not in suppressed]
    if not written:
        raise ValueError(f"model '{checkpoint.name}': every label is special; expected labels that stand for text.")

    def decode(ids: list[int]) -> str:
        # equal neighbours are two labels with a blank between them here, not one label held for two frames
        return str(tokenizer.decode(ids, group_tokens=False, clean_up_tokenization_spaces=False))

    pieces = [""] * num_labels
    anchor = next((v for v in written if decode([v]).strip()), written[0])
    for v in written:
        if v == delimiter_id:
            pieces[v] = " "
        else:  # behind an anchor, because decoders strip the space before a text's first word
            pieces[v] = decode([anchor, v])[len(decode([anchor])) :]
    made = Vocabulary(pieces=tuple(pieces), blank_id=blank_id, suppressed=suppressed)
    rng = random.Random(0)
    trials = [[rng.choice(written) for _ in range(12)] for _ in range(32)]
    if all(made.text(ids) == " ".join(decode(ids).split()) for ids in trials):
        return made
    spelled = tuple("" if one is None else str(one) for one in tokenizer.convert_ids_to_tokens(list(range(num_labels))))
    return replace(made, decode=decode, spelled=spelled)
