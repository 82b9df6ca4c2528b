"""Texts -> the token ids that a causal LM is asked about, by the tokenizer's own conventions.

What stands before the first token:

1. the tokens that the tokenizer itself puts before a text (BOS for Llama or Gemma, nothing for GPT-2 or Qwen2), then
   the prompt;
2. if that is nothing at all, the BOS token that the tokenizer names, if it names one (GPT-2);
3. if it names none (Qwen2), the end-of-sequence token where `start_from_eos` says so; otherwise nothing: then the
   first token has no distribution, is left out of the sum and counted as `first_tokens_unscored`, and an empty text
   has no score for its end.

The first word carries its leading space where the tokenizer writes words inside a text with one (GPT-2), and gets
none where the tokenizer adds it by itself (SentencePiece) or where a space is a token of its own (characters).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from ctxasr_ray.token_tree import Int32

_WORDS: Final = ("of", "time", "a", "you")
"""Probed for how a word is written inside a text; several, because a rare one may fall apart."""
_PROBE: Final = "It's \u00e9t\u00e9: </s> <s> <unk> 42 \u4f60 words,  two spaces"
"""Must be the same ids through transformers and through the tokenizers library."""


def _sentence(text: str) -> str:
    text = " ".join(text.split())
    if not any(letter.islower() for letter in text):
        text = text.lower()
    if not text:
        return ""
    return text[0].upper() + text[1:] + ("" if text[-1] in ".?!" else ".")


TEXT_FORMS: Final[Mapping[str, Callable[[str], str]]] = {
    "raw": lambda text: text,
    "spaced": lambda text: " ".join(text.split()),
    "lower": lambda text: " ".join(text.split()).lower(),
    "upper": lambda text: " ".join(text.split()).upper(),
    "sentence": _sentence,
}
"""How a hypothesis is written for an LM. `raw` as it stands; the others with single spaces: `spaced`, `lower`, `upper`,
`sentence` (first letter a capital, a full stop at the end, all else in lower case if it was all capitals)."""
TEXT_FORMS_VERSION: Final = "1"
"""Raised whenever a form writes something else; part of every fingerprint that uses one."""


class TextTokens:
    """A tokenizer with its prefix, its end of sequence and its word starts.

    Args:
        tokenizer: A tokenizer of transformers.
        text_form: A key of `TEXT_FORMS`.
        prompt: Text before every hypothesis, tokenised by itself; no text form is applied to it.
        start_from_eos: Score the first token from the end-of-sequence token where nothing else stands before it.

    Raises:
        ValueError: an unknown text form.
    """

    prefix: Int32
    """(P,) what stands before the first token of a text; may be empty."""
    eos_token_id: int | None
    """End of sequence, None if the tokenizer names none."""
    leading_space: bool
    """Whether a first word gets a space before it."""

    def __init__(
        self, tokenizer: Any, *, text_form: str = "raw", prompt: str = "", start_from_eos: bool = False
    ) -> None:
        if text_form not in TEXT_FORMS:
            raise ValueError(f"text_form '{text_form}' is unknown; choose one of {', '.join(TEXT_FORMS)}.")
        self.tokenizer, self._form = tokenizer, TEXT_FORMS[text_form]
        self._as_letters = {"split_special_tokens": True}
        try:
            tokenizer("a", **self._as_letters)
        except ValueError:  # mistral-common knows no other way than letters, and refuses the option
            self._as_letters = {}
        self._backend: Any = None
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is not None and self._as_letters:
            expected = self._batch(["a", _PROBE])
            self._backend = backend
            if self._batch(["a", _PROBE]) != expected:  # a subclass that does more than its backend
                self._backend = None
        self.eos_token_id = tokenizer.eos_token_id
        self.special_ids: list[int] = list(tokenizer.all_special_ids)
        self.leading_space = _marks_word_starts(self._ids)
        self._start_from_eos = start_from_eos
        self.prefix = self.behind(prompt)
        self._space = " " if self.leading_space and not prompt[-1:].isspace() else ""

    def behind(self, prompt: str) -> Int32:
        """(P,) what stands before the first token of a text behind some prompt, by the rules above; may be empty."""
        before = self._own_prefix() + (self._ids(prompt) if prompt else [])
        if not before and self.tokenizer.bos_token_id is not None:
            before = [self.tokenizer.bos_token_id]
        if not before and self._start_from_eos and self.eos_token_id is not None:
            before = [self.eos_token_id]
        return np.array(before, np.int32)

    def encode(self, texts: Sequence[str]) -> list[Int32]:
        """Token ids of each text in its form, without BOS and EOS; an empty or blank text has none.

        A special token that is spelled out in a text ("</s>") is read as letters.
        """
        formed = [self._form(text) for text in texts]
        spoken = [self._space + text for text in formed if text.strip()]
        ids = iter(self._batch(spoken) if spoken else [])
        return [np.array(next(ids) if text.strip() else [], np.int32) for text in formed]

    def num_unknown(self, ids: Int32) -> int:
        """Tokens that stand for what the tokenizer does not know."""
        unknown = self.tokenizer.unk_token_id
        return 0 if unknown is None else int((ids == unknown).sum())

    def _batch(self, texts: list[str]) -> list[list[int]]:
        if self._backend is not None:  # five times faster than through transformers, which matters for single words
            self._backend.encode_special_tokens = True
            self._backend.no_padding()
            self._backend.no_truncation()
            return [one.ids for one in self._backend.encode_batch_fast(texts, add_special_tokens=False)]
        ids: list[list[int]] = self.tokenizer(texts, add_special_tokens=False, **self._as_letters)["input_ids"]
        return ids

    def _ids(self, text: str) -> list[int]:
        return list(self._batch([text])[0])

    def _own_prefix(self) -> list[int]:
        plain, whole = self._ids("a"), list(self.tokenizer("a")["input_ids"])
        for start in range(len(whole) - len(plain) + 1):
            if whole[start : start + len(plain)] == plain:
                return whole[:start]
        return []


def _marks_word_starts(ids: Callable[[str], list[int]]) -> bool:
    votes = [_leading_space_helps(ids, word) for word in _WORDS]
    return sum(votes) > len(votes) / 2


def _leading_space_helps(ids: Callable[[str], list[int]], word: str) -> bool:
    """Whether " word" is written as `word` is inside a text, in as many tokens, and "word" is not."""
    before = ids("b")
    inside = ids(f"b {word}")[len(before) :]
    alone, spaced = ids(word), ids(f" {word}")
    return inside == spaced != alone and inside[:1] != ids(" ")
