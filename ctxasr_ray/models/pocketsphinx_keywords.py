"""Keywords in PocketSphinx's search: a phrase is one entry of its dictionary and of a language model made at run time.

The search model is a unigram: a phrase of the catalogue, or one of the recogniser's own most frequent words, which
stand for everything else that is said. Longer histories would come from a text in which the phrases do not stand.

    P(phrase) = s softmax(score)      P(word) = (1 - s) P1(word) / sum of P1 over the background and </s>

s is the share of keywords, P1 the recogniser's own unigram. Nothing here is written for a certain list of phrases.

Reference:
    Rohlicek et al., Continuous hidden Markov modeling for speaker-independent word spotting, ICASSP 1989: keywords
    against a background of other speech. Ours: the background is the model's own words by their own unigram.
"""

import hashlib
import math
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from typing import Any, Final

from ctxasr_ray.keywords.catalogue import Catalogue
from ctxasr_ray.keywords.pronunciation import arpabet
from ctxasr_ray.models.pocketsphinx import (
    SENTENCE_END,
    SENTENCE_START,
    ModelFiles,
    Trigram,
    open_decoder,
    open_ngram,
    pronunciations,
)

MAX_PRONUNCIATIONS: Final = 4
"""Of one phrase: each word may have several, and their combinations multiply."""
MAX_PHONES: Final = 150
"""About 15 s of speech; a longer phrase is no keyword and is left out."""
_SEARCH: Final = "keywords"
_VARIANT: Final = re.compile(r"\(\d+\)$")
_STRIPPED: Final = '.,;:!?"()[]'


@dataclass(frozen=True, slots=True)
class PhraseEntry:
    """A phrase as the search knows it."""

    name: str
    """Its entry in the dictionary."""
    words: tuple[str, ...]
    """As it is written in a transcript."""
    num_phones: tuple[int, ...]
    """Of each word; a phrase's time is shared out among its words by them."""
    log_prior: float
    """ln of its share among the phrases."""
    phones: tuple[str, ...]
    """Its pronunciations."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A phrase that the recogniser cannot search, with the reason."""

    phrase: str
    reason: str
    """unpronounceable or too_long."""
    message: str


@dataclass(frozen=True, slots=True)
class Searchable:
    """What of a catalogue can be searched, and what cannot."""

    entries: tuple[PhraseEntry, ...]
    left_out: tuple[LeftOut, ...]

    def digest(self) -> str:
        """Of names, words, priors and pronunciations."""
        lines = (f"{e.name} {' '.join(e.words)} {e.log_prior:.6f} {'|'.join(e.phones)}" for e in self.entries)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def searchable(catalogue: Catalogue, dictionary: Mapping[str, Sequence[str]], own: Sequence[str] = ()) -> Searchable:
    """Pronounces a catalogue; no decoder is needed.

    Args:
        catalogue: Differences between scores are nats between priors; other spellings are other pronunciations.
        dictionary: From `read_dictionary`; espeak-ng pronounces what it lacks.
        own: Pronunciations of one's own, as for `models.pocketsphinx.pronunciations`, instead of the dictionary's.

    Raises:
        ValueError: no phrase can be searched; says why.
        RuntimeError: espeakng-loader is not installed.
    """
    spoken: dict[str, tuple[str, ...]] = {}
    for word, phones in pronunciations(own):
        spoken[word] = (*spoken.get(word, ()), phones)
    weights = catalogue.weights(0.0).astype(float).tolist()
    found: list[tuple[int, tuple[str, ...], tuple[int, ...], tuple[str, ...]]] = []
    left_out: list[LeftOut] = []
    for place, (phrase, spellings) in enumerate(zip(catalogue.phrases, catalogue.spellings, strict=True)):
        words = _words(phrase)
        try:
            ways = [_ways(written, dictionary, spoken) for written in (words, *map(_words, spellings)) if written]
        except ValueError as error:
            left_out.append(LeftOut(phrase, "unpronounceable", str(error)))
            continue
        sizes = tuple(len(way[0].split()) for way in ways[0]) if words else ()
        if not 0 < sum(sizes) <= MAX_PHONES:
            reason = "too_long" if sizes else "unpronounceable"
            left_out.append(
                LeftOut(phrase, reason, f"'{phrase[:40]}': {sum(sizes)} phones, expected 1 to {MAX_PHONES}")
            )
            continue
        said = [" ".join(way) for spelled in ways for way in islice(product(*spelled), MAX_PRONUNCIATIONS)]
        found.append((place, words, sizes, tuple(dict.fromkeys(said))))
    if not found:
        reasons = "; ".join(out.message.rstrip(".") for out in left_out[:3]) or "it is empty"
        raise ValueError(f"no phrase of the catalogue can be searched: {reasons}. Mend it, or take another first pass.")
    top = max(weights[place] for place, *_ in found)
    total = top + math.log(sum(math.exp(weights[place] - top) for place, *_ in found))
    entries = [
        PhraseEntry(
            name=f"keyword/{place}", words=words, num_phones=sizes, log_prior=weights[place] - total, phones=ways
        )
        for place, words, sizes, ways in found
    ]
    return Searchable(tuple(entries), tuple(left_out))


def _words(phrase: str) -> tuple[str, ...]:
    """The words of a phrase that can be said: an emoji beside them cannot."""
    words = (word.strip(_STRIPPED) for word in phrase.lower().split())
    return tuple(word for word in words if any(character.isalnum() for character in word))


def _ways(
    words: Sequence[str], dictionary: Mapping[str, Sequence[str]], spoken: dict[str, tuple[str, ...]]
) -> list[tuple[str, ...]]:
    """The pronunciations of each word; `spoken` remembers them."""
    for word in words:
        if word not in spoken:
            spoken[word] = tuple(dictionary.get(word, ())) or (arpabet(word),)
    return [spoken[word] for word in words]


def read_dictionary(path: Path) -> dict[str, list[str]]:
    """Word -> pronunciations of a dictionary in CMU form, where word(2) is another way to say word."""
    read: dict[str, list[str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        word, _, phones = line.strip().partition(" ")
        if word and not word.startswith(("##", ";;")):
            read.setdefault(_VARIANT.sub("", word), []).append(" ".join(phones.split()))
    return read


class KeywordSearch:
    """A decoder that searches phrases over a background, and the language models that score what it finds.

    Args:
        files: The model.
        catalogue: Phrases; see `searchable`.
        keyword_share: Probability that the next entry is a keyword, above 0 and below 1.
        background_words: How many of the model's own words stand for other speech, at least 1.
        words: Pronunciations of one's own; see `searchable`.

    Attributes:
        decoder: Hears; see `models.pocketsphinx.hear`.
        phrases: Searched phrases by the name of their entry.
        num_phrases: How many are searched.
        left_out: Phrases that are not searched.
        unwritable: The same by name and reason, as `stage.Costs.name` takes them.

    Raises:
        ValueError: as `searchable`, or a pronunciation uses phones that the model lacks.
        RuntimeError: pocketsphinx or espeakng-loader is not installed.
    """

    def __init__(
        self,
        files: ModelFiles,
        catalogue: Catalogue,
        *,
        keyword_share: float,
        background_words: int,
        words: Sequence[str] = (),
    ) -> None:
        dictionary = read_dictionary(files.dictionary)
        made = searchable(catalogue, dictionary, words)
        self.phrases: Mapping[str, PhraseEntry] = {entry.name: entry for entry in made.entries}
        self.left_out = made.left_out
        self.num_phrases = len(made.entries)
        self.unwritable: Sequence[str] = [f"{out.phrase[:40]} ({out.reason})" for out in made.left_out]
        self.decoder = open_decoder(files)
        own = open_ngram(self.decoder, files.language)
        background = _background(self.decoder, own, dictionary, background_words)
        with tempfile.TemporaryDirectory(prefix="ctxasr-keywords-") as folder:
            path = Path(folder) / "keywords.lm"
            path.write_text(_arpa(made.entries, background, keyword_share), encoding="utf-8")
            search = open_ngram(self.decoder, path)
        for entry in made.entries:
            for variant, phones in enumerate(entry.phones, start=1):
                name = entry.name if variant == 1 else f"{entry.name}({variant})"
                _add(self.decoder, name, phones, " ".join(entry.words))
        self.decoder.add_lm(_SEARCH, search)
        self.decoder.activate_search(_SEARCH)
        self.search_model = Trigram(self.decoder, search)
        for word in dict.fromkeys(word for entry in made.entries for word in entry.words):
            if own.prob([word]) <= self.decoder.logmath.get_zero():
                own.add_word(word, 1.0)
        self.language_model = Trigram(self.decoder, own)

    def written(
        self, names: Sequence[str], start_s: Sequence[float], end_s: Sequence[float]
    ) -> tuple[tuple[str, ...], tuple[float, ...], tuple[float, ...]]:
        """Words and their times of what the search found; a phrase's time is shared out by the words' phones.

        Args:
            names: Entries of the dictionary.
            start_s: (n,) seconds at which each starts.
            end_s: (n,) seconds at which each ends.
        """
        words: list[str] = []
        starts: list[float] = []
        ends: list[float] = []
        for name, start, end in zip(names, start_s, end_s, strict=True):
            entry = self.phrases.get(name)
            own, sizes = ((name,), (1,)) if entry is None else (entry.words, entry.num_phones)
            edges = [start]
            for size in sizes:
                edges.append(edges[-1] + (end - start) * size / sum(sizes))
            words += own
            starts += edges[:-1]
            ends += [*edges[1:-1], end]
        return tuple(words), tuple(starts), tuple(ends)


def _add(decoder: Any, name: str, phones: str, phrase: str) -> None:
    try:
        decoder.add_word(name, phones, update=False)
    except RuntimeError as error:
        raise ValueError(
            f"phrase '{phrase}': the model refuses the phones '{phones}'; expected phones of its own set."
        ) from error


def _background(decoder: Any, ngram: Any, words: Iterable[str], num_words: int) -> dict[str, float]:
    """Word -> P of the most frequent of some words and of the end of a sentence; they sum to 1."""
    zero, to_ln = decoder.logmath.get_zero(), decoder.logmath.log_to_ln
    scores = [(ngram.prob([word]), word) for word in words]
    frequent = sorted((pair for pair in scores if pair[0] > zero), key=lambda pair: (-pair[0], pair[1]))[:num_words]
    frequent.append((ngram.prob([SENTENCE_END]), SENTENCE_END))
    probs = {word: math.exp(to_ln(score)) for score, word in frequent}
    total = sum(probs.values())
    return {word: prob / total for word, prob in probs.items()}


def _arpa(entries: Sequence[PhraseEntry], background: Mapping[str, float], keyword_share: float) -> str:
    """The search model as an ARPA file; the start of a sentence is never predicted."""
    lines = [f"-99\t{SENTENCE_START}"]
    lines += [f"{math.log10((1 - keyword_share) * prob):.6f}\t{word}" for word, prob in background.items()]
    lines += [f"{math.log10(keyword_share) + e.log_prior / math.log(10):.6f}\t{e.name}" for e in entries]
    return "\n".join(["\\data\\", f"ngram 1={len(lines)}", "", "\\1-grams:", *lines, "", "\\end\\", ""])
