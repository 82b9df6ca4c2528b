"""Raw text -> words and characters, by normalisers with a name and a version.

Tables hold raw text only; a normaliser is applied where words are counted, and its name and version stand in the
signature of every number. Each one returns words separated by one space, nothing around them, and is idempotent
on what it returns in all but odd cases of `whisper_english` (which is Whisper's, as it is).

| name | what it unifies |
|---|---|
| none | white space and a leading byte order mark only |
| basic | case, punctuation and symbols, bracketed tags; marks of combining scripts stay |
| whisper_english | what Whisper's English normaliser does: also contractions, numbers, titles, British spellings |
| librispeech | case and punctuation; apostrophes stay, so "don't" is one word |
| mandarin | full-width forms, case, punctuation; each Han or kana character is a word, Latin words stay whole |
"""

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache
from importlib import resources
from typing import Any, Final

_BRACKETED: Final = re.compile(r"[<\[][^>\]]*[>\]]|\([^)]+?\)")
_IDEOGRAPH: Final = re.compile("([\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff])")
_PLAIN: Final = re.compile("[a-z0-9 ]*")
_DIGIT: Final = re.compile("[0-9]")
_RUN: Final = re.compile("[a-z]+")
_OPENING: Final = re.compile(r"[<\[(']")
_APOSTROPHES: Final = str.maketrans("\u2018\u2019\u02bc\u2032", "''''")
_JOINERS: Final = "\u200c\u200d"  # they carry meaning in Persian and in Indic scripts


@lru_cache(maxsize=1 << 16)
def _spaced(character: str) -> str:
    """The character itself if it belongs to words, a space for punctuation and symbols, nothing for controls."""
    category = unicodedata.category(character)
    if category[0] in "PS":
        return " "
    return "" if category == "Cf" and character not in _JOINERS else character


def _none(text: str) -> str:
    return text


def _basic(text: str) -> str:
    text = unicodedata.normalize("NFKC", _BRACKETED.sub("", text.lower())).lower()
    return "".join(map(_spaced, text))


def _librispeech(text: str) -> str:
    text = unicodedata.normalize("NFKC", text).lower().translate(_APOSTROPHES)
    return "".join(c if c == "'" else _spaced(c) for c in text)


def _mandarin(text: str) -> str:
    return _IDEOGRAPH.sub(r" \1 ", _librispeech(text))


def is_ideographic(text: str) -> bool:
    """Whether a text holds nothing but Han and kana, each a word of its own under `mandarin`; False where empty."""
    return bool(text) and not _IDEOGRAPH.sub("", text)


def american_spellings() -> dict[str, str]:
    """British spelling -> American one, for the words that Whisper's English normaliser unifies."""
    asset = resources.files("ctxasr_ray").joinpath("assets/text/british_spellings.txt").read_text("ascii")
    spellings = {}
    for line in asset.splitlines():
        if line.startswith("#"):
            continue
        family, stems = line.split(" : ")
        change, tails = family.split(" ")
        british, american = (part.strip("-") for part in change.split("/"))
        for stem in stems.split(" "):
            for tail in tails.split(","):
                end = tail.strip("-")
                spellings[stem.strip("-") + british + end] = stem.strip("-") + american + end
    return spellings


class _WhisperEnglish:
    """Whisper's normaliser, with two short cuts.

    Plain letters and digits without a word that it replaces: only spellings change, and digits move away from letters.
    Other texts without bracket, apostrophe or such a word: none of its 50 replacements can match. Lists of names are
    mostly of the two.
    """

    def __init__(self) -> None:
        from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

        self._spellings = american_spellings()
        self._normalise: Any = EnglishTextNormalizer(self._spellings)
        self._replaces_nothing: Any = EnglishTextNormalizer(self._spellings)
        self._replaces_nothing.replacers = {}
        patterns = [self._normalise.ignore_patterns, *self._normalise.replacers]
        replaced = {word for pattern in patterns for word in re.findall("[a-z']+", pattern.replace(r"\b", ""))}
        numbers = set(self._normalise.standardize_numbers.words) - {"and"}  # "and" matters beside a number only
        self._replaced, self._reacting = frozenset(replaced), frozenset(replaced | numbers | {"half"})

    def __call__(self, text: str) -> str:
        lower = text.lower()
        words = _RUN.findall(lower)
        if _PLAIN.fullmatch(lower) and self._reacting.isdisjoint(words):
            if _DIGIT.search(lower):
                words = self._normalise.standardize_numbers(lower).split()
            return " ".join([self._spellings.get(word, word) for word in words])
        if not _OPENING.search(lower) and self._replaced.isdisjoint(words):
            return str(self._replaces_nothing(text))
        return str(self._normalise(text))


@cache
def _whisper_normaliser() -> _WhisperEnglish:
    return _WhisperEnglish()


def _whisper_english(text: str) -> str:
    return _whisper_normaliser()(text)


_NORMALISERS: Final[Mapping[str, tuple[int, Callable[[str], str]]]] = {
    "none": (1, _none),
    "basic": (1, _basic),
    "whisper_english": (1, _whisper_english),
    "librispeech": (1, _librispeech),
    "mandarin": (1, _mandarin),
}
NORMALISERS: Final = tuple(_NORMALISERS)
"""The names; a version is raised whenever a normaliser gives other words for some text."""


def _look_up(normaliser: str) -> tuple[int, Callable[[str], str]]:
    if normaliser not in _NORMALISERS:
        raise ValueError(f"normaliser '{normaliser}' is unknown; choose one of {', '.join(NORMALISERS)}.")
    return _NORMALISERS[normaliser]


def versioned(normaliser: str) -> str:
    """The name as signatures and tables carry it, for example `whisper_english.v1`.

    Raises:
        ValueError: an unknown name.
    """
    return f"{normaliser}.v{_look_up(normaliser)[0]}"


@lru_cache(maxsize=1 << 16)
def normalise(text: str, normaliser: str) -> str:
    """Words of a raw text in their standard form, separated by one space.

    Args:
        text: Raw; a leading byte order mark is no part of it.
        normaliser: One of `NORMALISERS`.

    Returns:
        The empty string where nothing is left; never null, never "nan".

    Raises:
        ValueError: an unknown name.
    """
    _, function = _look_up(normaliser)
    return " ".join(function(text.removeprefix("\ufeff")).split())


def words(text: str, normaliser: str) -> list[str]:
    """The words of a raw text, normalised; for `mandarin` ideographs and Latin words, as in mixed error rate."""
    return normalise(text, normaliser).split()


def characters(text: str, normaliser: str) -> list[str]:
    """The code points of a raw text, normalised.

    The space between two words is a character, as in jiwer, except under `mandarin`, which puts spaces itself.
    """
    return list(units([text], normaliser, "character")[0])


def units(texts: Sequence[str], normaliser: str, unit: str) -> list[str]:
    """Texts ready for `align.encode`: equal texts are normalised once.

    Args:
        texts: Raw.
        normaliser: One of `NORMALISERS`.
        unit: `word`: each returned text is split at white space. `character`: each of its code points counts.

    Raises:
        ValueError: an unknown normaliser or unit.
    """
    _look_up(normaliser)
    if unit not in ("word", "character"):
        raise ValueError(f"unit '{unit}' is unknown; choose word or character.")
    if normaliser == "none" and unit == "word":  # splitting does the rest; a million texts need no Python call each
        return [text if text.isascii() else normalise(text, "none") for text in texts]
    memo = {text: normalise(text, normaliser) for text in dict.fromkeys(texts)}
    if normaliser == "mandarin" and unit == "character":
        memo = {text: normal.replace(" ", "") for text, normal in memo.items()}
    return [memo[text] for text in texts]
