"""Keywords in PocketSphinx's search: a phrase is one entry of its dictionary and of a language model made at run time.

The search model is a unigram: a phrase of the catalogue, or one of the recogniser's own most frequent words, which
stand for everything else that is said. Longer histories would come from a text in which the phrases do not stand.

    P(phrase) = s softmax(score)      P(word) = (1 - s) P1(word) / sum of P1 over the background and </s>

s is the share of keywords, P1 the recogniser's own unigram. Nothing here is written for a certain list of phrases.

Reference:
    Rohlicek et al., Continuous hidden Markov modeling for speaker-independent word spotting, ICASSP 1989: keywords
    against a background of other speech. Ours: the background is the model's own words by their own unigram.
"""

import math
import tempfile
from collections.abc import Mapping, Sequence
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


class KeywordSearch:
    """A decoder that searches phrases over a background, and the language models that score what it finds.

    Args:
        files: The model.
        catalogue: Phrases; differences between their scores are nats between their priors.
        keyword_share: Probability that the next entry is a keyword, above 0 and below 1.
        background_words: How many of the model's own words stand for other speech, at least 1.
        words: Pronunciations of one's own, as for `models.pocketsphinx.pronunciations`; the dictionary's do not count
            for these.

    Attributes:
        decoder: Hears; see `models.pocketsphinx.hear`.
        phrases: Searched phrases by the name of their entry.
        left_out: Phrases that are not searched.
        counters: How many phrases are searched, and how many are not by reason.

    Raises:
        ValueError: no phrase of the catalogue can be searched, or a pronunciation of one's own uses phones that the
            model lacks.
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
        self.decoder = open_decoder(files)
        own = open_ngram(self.decoder, files.language)
        entries, self.left_out = _entries(self.decoder, catalogue, words)
        if not entries:
            reasons = "; ".join(out.message for out in self.left_out[:3]) or "it is empty"
            raise ValueError(
                f"no phrase of the catalogue can be searched: {reasons}. Leave the catalogue out, or mend it."
            )
        self.phrases: Mapping[str, PhraseEntry] = {entry.name: entry for entry in entries}
        unigrams = _background(self.decoder, own, files.dictionary, background_words)
        with tempfile.TemporaryDirectory(prefix="ctxasr-keywords-") as folder:
            path = Path(folder) / "keywords.lm"
            path.write_text(_arpa(entries, unigrams, keyword_share), encoding="utf-8")
            search = open_ngram(self.decoder, path)
        for entry in entries:
            for variant, phones in enumerate(entry.phones, start=1):
                name = entry.name if variant == 1 else f"{entry.name}({variant})"
                _add(self.decoder, name, phones, " ".join(entry.words))
        self.decoder.add_lm(_SEARCH, search)
        self.decoder.activate_search(_SEARCH)
        self.search_model = Trigram(self.decoder, search)
        for word in dict.fromkeys(word for entry in entries for word in entry.words):
            if own.prob([word]) <= self.decoder.logmath.get_zero():
                own.add_word(word, 1.0)
        self.language_model = Trigram(self.decoder, own)
        self.counters: Mapping[str, int] = {"phrases_searched": len(entries), **_counted(self.left_out)}

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


def _counted(left_out: Sequence[LeftOut]) -> dict[str, int]:
    reasons = [out.reason for out in left_out]
    return {f"phrases_{reason}": reasons.count(reason) for reason in sorted(set(reasons))}


def _entries(decoder: Any, catalogue: Catalogue, own: Sequence[str]) -> tuple[list[PhraseEntry], list[LeftOut]]:
    """What can be searched, and what cannot with its reason; priors are a softmax over what can."""
    found: list[tuple[int, tuple[str, ...], list[tuple[str, ...]]]] = []
    left_out: list[LeftOut] = []
    spoken: dict[str, tuple[str, ...]] = {}
    for word, phones in pronunciations(own):
        spoken[word] = (*spoken.get(word, ()), phones)
    for place, phrase in enumerate(catalogue.phrases):
        words = tuple(bare for word in phrase.lower().split() if (bare := word.strip(_STRIPPED)))
        try:
            for word in words:
                if word not in spoken:
                    spoken[word] = _spoken(decoder, word)
        except ValueError as error:
            left_out.append(LeftOut(phrase, "unpronounceable", str(error)))
            continue
        ways = [spoken[word] for word in words]
        num_phones = sum(len(way[0].split()) for way in ways)
        if not words or num_phones > MAX_PHONES:
            reason = "too_long" if words else "unpronounceable"
            message = f"'{phrase[:40]}': {num_phones} phones, expected 1 to {MAX_PHONES}"
            left_out.append(LeftOut(phrase, reason, message))
            continue
        found.append((place, words, ways))
    scores = [float(catalogue.weights(0.0)[place]) for place, _, _ in found]
    total = max(scores, default=0.0) + math.log(sum(math.exp(s - max(scores)) for s in scores) or 1.0)
    entries = [
        PhraseEntry(
            name=f"keyword/{place}",
            words=words,
            num_phones=tuple(len(way[0].split()) for way in ways),
            log_prior=score - total,
            phones=tuple(" ".join(way) for way in islice(product(*ways), MAX_PRONUNCIATIONS)),
        )
        for (place, words, ways), score in zip(found, scores, strict=True)
    ]
    return entries, left_out


def _spoken(decoder: Any, word: str) -> tuple[str, ...]:
    """The dictionary's pronunciations of a word, else espeak-ng's."""
    known: list[str] = []
    while (phones := decoder.lookup_word(word if not known else f"{word}({len(known) + 1})")) is not None:
        known.append(phones)
    return tuple(known) or (arpabet(word),)


def _background(decoder: Any, ngram: Any, dictionary: Path, num_words: int) -> dict[str, float]:
    """Word -> P of the most frequent words of the dictionary and of the end of a sentence; they sum to 1."""
    with dictionary.open(encoding="utf-8") as lines:
        words = {line.split(maxsplit=1)[0] for line in lines if line.strip()}
    zero, to_ln = decoder.logmath.get_zero(), decoder.logmath.log_to_ln
    scores = [(ngram.prob([word]), word) for word in words if "(" not in word]
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
