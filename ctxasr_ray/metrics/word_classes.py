"""Words told apart: biased (of the utterance's own true phrases), rare, and all others.

A reference word is biased if it is a word of one of that utterance's true phrases and not a common word; rare if it
stands in a given list, or outside the common words, or too seldom in a training text. An edit at a reference word has
that word's class; an inserted word has its own, and for biased words only those of that utterance's true phrases count.
So the edits of biased and unbiased words add up to those of all words.

Reference:
    Le et al. 2021, arXiv:2104.02194, as its published scorer computes it (with alignment nist, and the third column of
    its reference files as phrases). Wang et al. 2025, arXiv:2502.16142, for rare words; the formula is ours, the same
    as for biased words, because the paper does not state its own.
"""

import hashlib
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np

from ctxasr_ray import align, text
from ctxasr_ray.stage import runtime_field

COMMON_ENGLISH: Final = str(Path(__file__).parents[1] / "assets" / "words" / "common_english_5k.txt")
"""The shipped list of 5,000 common English words."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WordLists:
    """Which words are common and which are rare, by files; their digests stand for them in every identity."""

    common_words: str | None = runtime_field(COMMON_ENGLISH)
    """File with one word per line: never biased, nor rare unless another rule is given. None: no word is common."""
    rare_words: str | None = runtime_field(None)
    """File with one word per line: these are the rare words. None: all words outside `common_words`."""
    training_text: str | None = runtime_field(None)
    """File with one sentence per line: rare are the words that stand in it fewer than `min_count` times."""
    min_count: int = 3
    """Occurrences in `training_text` from which on a word is not rare."""

    def __post_init__(self) -> None:
        if self.rare_words and self.training_text:
            raise ValueError("rare_words and training_text are both given; rare words come from one of them.")

    @property
    def tell_rare_words(self) -> bool:
        """Whether any file says which words are rare."""
        return any((self.common_words, self.rare_words, self.training_text))

    def fingerprint(self) -> Mapping[str, str]:
        """The digest of every file.

        Raises:
            ValueError: a file is not there.
        """
        names = ("common_words", "rare_words", "training_text")
        return {name: _digest(name, path) for name in names if (path := getattr(self, name))}

    def load(self, normaliser: str) -> "WordClasses":
        """Reads the files and normalises their words.

        Raises:
            ValueError: a file is not there or not UTF-8, or an unknown normaliser.
        """
        digests = self.fingerprint()

        def counts(name: str) -> Mapping[str, int]:
            return _counts(name, getattr(self, name), digests[name], normaliser) if name in digests else {}

        common = frozenset(counts("common_words"))
        if self.rare_words:
            rare = RareWords(words=frozenset(counts("rare_words")), listed=True)
        elif self.training_text:
            seen = counts("training_text")
            rare = RareWords(words=frozenset(w for w, count in seen.items() if count >= self.min_count), listed=False)
        else:
            rare = RareWords(words=common, listed=False)
        return WordClasses(normaliser=normaliser, common=common, rare=rare)


def _digest(name: str, path: str) -> str:
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (FileNotFoundError, IsADirectoryError) as error:
        raise ValueError(f"{name} '{path}': no such file; expected UTF-8 text, one entry per line.") from error


@lru_cache(maxsize=16)
def _counts(name: str, path: str, _: str, normaliser: str) -> Mapping[str, int]:
    """Normalised word -> how often it stands in a file; kept by the file's digest."""
    try:
        with Path(path).open(encoding="utf-8-sig") as lines:
            return Counter(word for line in lines for word in text.words(line, normaliser))
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} '{path}': {error}; expected UTF-8 text, one entry per line.") from error


@dataclass(frozen=True, kw_only=True, slots=True)
class RareWords:
    """A set by a list or by its complement; without a list, what has no letter (a number) is never rare."""

    words: frozenset[str]
    listed: bool
    """Whether `words` are the rare ones; else they are all others."""

    @property
    def known(self) -> bool:
        """Whether there is any rule; without one every word would be rare."""
        return self.listed or bool(self.words)

    def __contains__(self, word: object) -> bool:
        if self.listed:
            return word in self.words
        return word not in self.words and isinstance(word, str) and any(map(str.isalpha, word))


@dataclass(frozen=True, kw_only=True, slots=True)
class WordClasses:
    """The word lists, ready to classify normalised words."""

    normaliser: str
    common: frozenset[str]
    rare: RareWords

    def biased(self, phrases: Iterable[str] | None) -> frozenset[str]:
        """The biased words of an utterance: those of its true phrases that are not common."""
        words = frozenset(word for phrase in phrases or () for word in text.words(phrase, self.normaliser))
        return words - self.common


def class_counts(
    references: Sequence[str], hypotheses: Sequence[str], members: Sequence[Container[str]], edits: align.Edits
) -> tuple[align.Counts, align.Counts]:
    """Splits the edits of P pairs into those of a word class and all others.

    Args:
        references: (P,) normalised.
        hypotheses: (P,) normalised.
        members: (P,) the words of the class for each pair.
        edits: Alignments of these pairs, in words.

    Returns:
        Counts of words in the class and of all others, (P,) each.
    """
    num_pairs = len(references)
    errors = np.zeros((2, 4, num_pairs), np.int64)  # outside and inside x op
    last, reference, hypothesis = -1, [""], [""]
    columns = (edits.pair, edits.op, edits.reference_index, edits.hypothesis_index)
    for pair, op, i, j in zip(*(column.tolist() for column in columns), strict=True):
        if pair != last:
            last, reference, hypothesis = pair, references[pair].split(), hypotheses[pair].split()
        word = hypothesis[j] if op == align.INSERTION else reference[i]
        errors[int(word in members[pair]), op, pair] += 1
    lengths = np.array(
        [
            (len(tokens), sum(word in own for word in tokens))
            for tokens, own in zip(map(str.split, references), members, strict=True)
        ],
        np.int64,
    ).reshape(num_pairs, 2)
    outside, inside = (
        align.Counts(length - errors[k, align.SUBSTITUTION] - errors[k, align.DELETION], *errors[k, 1:])
        for k, length in ((0, lengths[:, 0] - lengths[:, 1]), (1, lengths[:, 1]))
    )
    return inside, outside
