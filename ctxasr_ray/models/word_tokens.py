"""Growing prefixes of whole words -> token ids of a language model, each new word tokenised once.

Most tokenizers never merge letters of two words, so a text's ids are the ids of its words, one after another. That
is checked when the tokenizer is loaded and, on prefixes drawn by their ids, while it is used. A tokenizer that does
merge across spaces gets whole prefixes instead, and only then are ids above an old word able to change.
"""

import logging
import random
import re
from typing import Final

import numpy as np

from ctxasr_ray.models.text_tokens import TextTokens
from ctxasr_ray.models.word_boundaries import IDEOGRAPH, SEGMENTATIONS, join_words, split_words
from ctxasr_ray.token_tree import Int32

CHECK_EVERY: Final = 97
"""One prefix in so many is compared with the ids of its whole text; some 1 us per prefix."""
MEMO_WORDS: Final = 1 << 16
"""Words or whole prefixes remembered before the memory is emptied."""
_PROBES: Final = (
    "a i the of you lot time and to in is it been don't o'clock mother's 's well-known co- U.S. Mr. I'm THE NASA "
    "2 10 1999 3.5 $5 50% & - , . ? hello? x y2k iPhone fo\u00f6 stra\u00dfe caf\u00e9 se\u00f1or na\u00efve "
    "\u043f\u0440\u0438\u0432\u0435\u0442 \u03bb\u03cc\u03b3\u03bf\u03c2 \u4f60\u597d \u6771\u4eac "
    "\u0645\u0631\u062d\u0628\u0627 \u0928\u092e\u0938\u094d\u0924\u0947 antidisestablishmentarianism"
)
_UNSPACED_PROBES: Final = (
    "\u4f60\u597d\u6211\u7684\u662f\u4e0d\u4e00\u4e2d\u56fd\u4eba\u5927\u3053\u308c\u306f\u3067\u3059\u6771\u4eac"
)
_NUM_PROBES: Final = 48
_TWO_WORDS: Final = {
    "spaces": re.compile(r"\S +\S"),
    "characters": re.compile(f"[{IDEOGRAPH}] *\\S|\\S *[{IDEOGRAPH}]|\\S +\\S"),
}
_BYTE: Final = re.compile("<0x[0-9A-F]{2}>")
_MARKS: Final = str.maketrans("\u0120\u2581", "  ")  # how byte-level BPE and SentencePiece spell a space

_log = logging.getLogger(__name__)


class WordTokens:
    """Ids of word-complete prefixes by the language model's own tokenizer; a pure function of the words.

    Args:
        text_tokens: Tokenizer with its prefix, text form and word starts.
        segmentation: What a word is, one of `word_boundaries.SEGMENTATIONS`.

    Raises:
        ValueError: an unknown segmentation.
    """

    refusal: str | None
    """Why words are not tokenised one by one; None where they are."""
    num_words: int
    """Words that the tokenizer was asked for, not found in the memory."""
    num_checked: int
    """Prefixes that were compared with the ids of their whole text."""
    num_unequal: int
    """Of these, prefixes whose ids differ; each was given the ids of its whole text."""

    def __init__(self, text_tokens: TextTokens, *, segmentation: str = "spaces") -> None:
        if segmentation not in SEGMENTATIONS:
            raise ValueError(f"segmentation '{segmentation}' is unknown; choose one of {', '.join(SEGMENTATIONS)}.")
        self.text_tokens, self.segmentation = text_tokens, segmentation
        self._first: dict[str, list[int] | None] = {}
        self._inner: dict[str, list[int] | None] = {}
        self._texts: dict[str, Int32] = {}
        self._two_words = _TWO_WORDS[segmentation]
        self._anchor = "a" if segmentation == "spaces" else "\u4eba"
        self._anchor_ids = self._ids(self._anchor)
        self.num_words = self.num_checked = self.num_unequal = 0
        self.refusal = self._crossing_token() or self._unequal_probe()
        if self.refusal:
            _log.warning("words are tokenised with all that stands before them: %s", self.refusal)

    @property
    def is_incremental(self) -> bool:
        """Whether the ids of a longer prefix begin with those of a shorter one."""
        return self.refusal is None

    def chunk(self, word: str, first: bool) -> Int32:
        """Ids that a word adds behind other words, or as the first of a text.

        Raises:
            ValueError: the tokenizer merges this word with the one before it, so it has no ids of its own.
        """
        ids = self._chunk(word, first)
        if ids is None:
            raise ValueError(f"the tokenizer does not keep {word!r} apart from the word before it; use `extend`.")
        return np.array(ids, np.int32)

    def extend(self, words: tuple[str, ...]) -> Int32:
        """Ids of a whole prefix, those of `text_tokens.encode` for its text.

        Args:
            words: Complete words in order, as `word_boundaries` splits them.

        Returns:
            (n,) int32, without what stands before a text (`text_tokens.prefix`) and without its end.
        """
        if not words:
            return np.zeros(0, np.int32)
        if self.refusal is not None:
            return self._whole(words)
        known, chunk = self._inner, self._chunk(words[0], True)
        if chunk is None:
            return self._whole(words)
        ids = chunk.copy()
        for word in words[1:]:
            chunk = known.get(word) or self._chunk(word, False)
            if chunk is None:
                return self._whole(words)
            ids += chunk
        made = np.array(ids, np.int32)
        if sum(ids) % CHECK_EVERY == 0:
            return self._checked(made, words)
        return made

    def forget(self) -> None:
        """Empties the memory of words, which changes no ids."""
        for memo in (self._first, self._inner, self._texts):
            memo.clear()

    def _checked(self, made: Int32, words: tuple[str, ...]) -> Int32:
        """The same ids, compared; which prefixes are drawn depends on nothing but their ids."""
        whole = self._whole(words)
        self.num_checked += 1
        if np.array_equal(made, whole):
            return made
        if not self.num_unequal:
            _log.warning("the tokenizer writes %r in one text otherwise than word by word", join_words(words[-3:]))
        self.num_unequal += 1
        return whole

    def _chunk(self, word: str, first: bool) -> list[int] | None:
        memo = self._first if first else self._inner
        if word in memo:
            return memo[word]
        if len(memo) >= MEMO_WORDS:
            memo.clear()
        self.num_words += 1
        if first:
            ids: list[int] | None = self._ids(word)
        else:
            whole = self._ids(join_words((self._anchor, word), self.segmentation))
            begins = whole[: len(self._anchor_ids)] == self._anchor_ids
            ids = whole[len(self._anchor_ids) :] if begins else None
        memo[word] = ids
        return ids

    def _whole(self, words: tuple[str, ...]) -> Int32:
        text = join_words(words, self.segmentation)
        if text not in self._texts:
            if len(self._texts) >= MEMO_WORDS:
                self._texts.clear()
            self._texts[text] = self.text_tokens.encode([text])[0]
        return self._texts[text]

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.text_tokens.encode([text])[0].tolist()
        return ids

    def _crossing_token(self) -> str | None:
        """A token that holds parts of two words: the tokenizer may use it across them."""
        tokenizer = self.text_tokens.tokenizer
        special = set(tokenizer.all_special_ids)
        for token, index in tokenizer.get_vocab().items():
            if index in special or not self._two_words.search(token.translate(_MARKS)):
                continue
            written = self._decoded([*self._anchor_ids, index])[len(self._decoded(self._anchor_ids)) :]
            if self._two_words.search(written):  # and not bytes of odd spaces, as in a token of GPT-2
                return f"its token {written!r} holds parts of two words"
        if self.segmentation == "characters":
            tokens = tokenizer.convert_ids_to_tokens(self._anchor_ids)
            allowed = {self._anchor, f" {self._anchor}", " ", tokenizer.unk_token}
            if not all(token.translate(_MARKS) in allowed or _BYTE.fullmatch(token) for token in tokens):
                return "it merges bytes of neighbouring characters"
        return None

    def _decoded(self, ids: list[int]) -> str:
        return str(self.text_tokens.tokenizer.decode(ids, clean_up_tokenization_spaces=False))

    def _unequal_probe(self) -> str | None:
        """The first of some seeded texts whose ids are not those of its words."""
        rng = random.Random(0)
        for _ in range(_NUM_PROBES):
            if self.segmentation == "spaces":
                words = tuple(rng.choices(_PROBES.split(), k=rng.randrange(2, 9)))
            else:
                letters = "".join(rng.choices(_UNSPACED_PROBES, k=rng.randrange(2, 9)))
                words = split_words(f"{letters} ok {letters[::-1]}", self.segmentation)
            chunks = [self._chunk(word, place == 0) for place, word in enumerate(words)]
            whole = self._ids(join_words(words, self.segmentation))
            joined = [one for chunk in chunks for one in chunk or ()]
            if None in chunks or joined != whole:
                return f"it writes {join_words(words, self.segmentation)!r} otherwise than word by word"
        return None
