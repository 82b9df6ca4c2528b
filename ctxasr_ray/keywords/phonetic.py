"""How alike texts sound: phones as characters, graded distances, and a catalogue searched by sound.

Two phones differ by their articulation: t and d a little, t and m more, t and a vowel wholly. The distance of two texts
is the cheapest way to turn one's phones into the other's, per phone of the phrase that is looked for, so 0 is the same
sound and 1 is as if nothing was heard. Catalogues are searched by pairs of phones, where like phones count as one; the
phrases that share most pairs are ranked by the graded distance. Letters: Q queries, N phrases, A phones, W words of 64.

Reference:
    Features are textbook articulatory phonetics (place, manner, voicing; height, backness); their weights are ours.
"""

import functools
import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from ctxasr_ray.keywords.phonetic_kernels import Floats, Int64s, Sounds, Words, all_distances, near, pair_bits
from ctxasr_ray.keywords.pronunciation import IPA_TO_ARPABET, phonemes

_PLACES: Final = {"labial": "P B M F V W", "dental": "TH DH", "alveolar": "T D N S Z L R", "palatal": "SH ZH CH JH Y"}
_PLACES_BACK: Final = {"velar": "K G NG", "glottal": "HH"}
_MANNERS: Final = {
    "stop": "P B T D K G", "affricate": "CH JH", "fricative": "F V TH DH S Z SH ZH HH", "nasal": "M N NG",
    "approximant": "W Y R L",
}  # fmt: skip
_VOICELESS: Final = frozenset(("P", "T", "K", "CH", "F", "TH", "S", "SH", "HH"))
_VOWELS: Final = {  # height (1 close), backness (1 back), of where the vowel begins and ends
    "IY": (1.0, 0.0, 1.0, 0.0), "IH": (0.8, 0.2, 0.8, 0.2), "EY": (0.6, 0.0, 0.9, 0.1), "EH": (0.4, 0.1, 0.4, 0.1),
    "AE": (0.1, 0.1, 0.1, 0.1), "AA": (0.0, 0.8, 0.0, 0.8), "AO": (0.3, 1.0, 0.3, 1.0), "OW": (0.5, 0.9, 0.8, 0.9),
    "UH": (0.8, 0.8, 0.8, 0.8), "UW": (1.0, 1.0, 1.0, 1.0), "AH": (0.4, 0.5, 0.4, 0.5), "ER": (0.4, 0.4, 0.5, 0.4),
    "AY": (0.0, 0.5, 0.9, 0.1), "AW": (0.0, 0.5, 0.8, 0.8), "OY": (0.4, 1.0, 0.9, 0.1),
}  # fmt: skip
_PHONES: Final = (*_VOWELS, *dict.fromkeys(" ".join(_MANNERS.values()).split()))
_FIRST: Final = 0xE000  # private use: phones become characters that no text holds
_GAP_VOWEL, _GAP_CONSONANT, _GAP_WEAK = 0.7, 0.7, 0.4
_WEAK: Final = frozenset(("AH", "IH", "HH"))
_ALIKE: Final = "P B|F V|TH DH|T D|S Z|SH ZH CH JH|K G|M|N NG|L|R ER|W|Y|HH|IY IH EY|EH AE|AH UH|AA AO AW|OW UW|AY OY"
"""Classes of phones that are taken for one another; sounds that the table lacks are a class, and so are ends."""


def _features(table: dict[str, str]) -> dict[str, int]:
    return {phone: place for place, phones in enumerate(table.values()) for phone in phones.split()}


@functools.cache
def costs() -> tuple[Floats, Floats]:
    """(A, A) cost of hearing one phone for another, and (A,) of a phone too much or too little; 0 to 1.

    The last phone stands for every sound that the table lacks; it is like none other.
    """
    places, manners = _features({**_PLACES, **_PLACES_BACK}), _features(_MANNERS)
    size = len(_PHONES) + 1
    swap, gap = np.ones((size, size)), np.full(size, _GAP_CONSONANT)
    for a, one in enumerate(_PHONES):
        if one in _VOWELS:
            gap[a] = _GAP_VOWEL
        if one in _WEAK:
            gap[a] = _GAP_WEAK
        for b, other in enumerate(_PHONES):
            if one in _VOWELS and other in _VOWELS:
                apart = np.abs(np.subtract(_VOWELS[one], _VOWELS[other]))
                swap[a, b] = min(1.0, 0.15 * (one != other) + 0.25 * float(apart.sum()))
            elif one not in _VOWELS and other not in _VOWELS:
                place = min(abs(places[one] - places[other]), 2) / 2
                manner = float(manners[one] != manners[other])
                voice = float((one in _VOICELESS) != (other in _VOICELESS))
                swap[a, b] = min(1.0, 0.45 * place + 0.45 * manner + 0.25 * voice + 0.1 * (one != other))
    np.fill_diagonal(swap, 0.0)
    swap[-1, -1] = 0.5  # two sounds that the table lacks may be the same one
    return swap, gap


@functools.lru_cache(maxsize=1 << 18)
def _word_sound(word: str, voice: str) -> str:
    known = {phone: chr(_FIRST + n) for n, phone in enumerate(_PHONES)}
    other = chr(_FIRST + len(_PHONES))
    return "".join(
        known.get(phone, other) for ipa in phonemes(word, voice) for phone in IPA_TO_ARPABET.get(ipa, ipa).split()
    )


def engine() -> str:
    """What pronounces words here, with its version: part of the identity of stages that compare sounds."""
    return f"espeakng-loader {importlib.metadata.version('espeakng-loader')}"


def sound(text: str, voice: str = "en-us") -> str:
    """The phones of a text, one character each, words pronounced one by one; each word is looked up once.

    Raises:
        RuntimeError: as `pronunciation.phonemes`.
    """
    return "".join([_word_sound(word, voice) for word in text.lower().split()])


def distances(heard: Sequence[str], phrases: Sequence[str], largest: float | Floats = np.inf) -> Floats:
    """Graded distance of every heard sound to every phrase, per phone of the phrase.

    Args:
        heard: (Q,) from `sound`.
        phrases: (N,) from `sound`; an empty one is at distance 1 of everything.
        largest: Of all phrases or of each, (N,): what is farther apart may be given as infinitely far, which is faster.

    Returns:
        (Q, N), 0 to 1 and more where much is heard that the phrase does not have.
    """
    swap, gap = costs()
    limits = np.broadcast_to(np.asarray(largest, dtype=np.float64), len(phrases)).copy()
    return np.asarray(all_distances(_flat(heard), _flat(phrases), swap, gap, limits))


def evidence(num_phones: npt.NDArray[np.int64] | int, distance: Floats | float, max_distance: float) -> Floats:
    """What a phrase explains of what was heard: its phones, times how far its distance stays below the largest one.

    A short phrase is near something in every sentence; a long one is not.
    """
    return np.asarray(num_phones * (max_distance - distance))


def _flat(sounds: Sequence[str]) -> Sounds:
    phones = np.frombuffer("".join(sounds).encode("utf-32-le"), dtype=np.int32) - _FIRST
    return Sounds(phones, np.concatenate([[0], np.cumsum([len(one) for one in sounds])]).astype(np.int64))


@functools.cache
def _classes() -> tuple[npt.NDArray[np.int32], int]:
    """(A,) the class of each phone, and that of an end."""
    alike = [phones.split() for phones in _ALIKE.split("|")]
    place = {phone: number for number, phones in enumerate(alike) for phone in phones}
    return np.asarray([*(place[phone] for phone in _PHONES), len(alike)], dtype=np.int32), len(alike) + 1


@dataclass(frozen=True, slots=True)
class PhoneticIndex:
    """The sounds of N phrases in the order of their lengths, made once and shared."""

    sounds: tuple[str, ...]
    """(N,) in the order of the catalogue."""
    order: Int64s
    """(N,) phrases by ascending length."""
    lengths: Int64s
    """(N,) phones, in that order."""
    flat: Sounds
    """Sounds in that order."""
    bits: Words
    """(pairs of classes, W) which phrases, in that order, have a pair."""

    def nearest(
        self,
        heard: Sequence[str],
        *,
        max_distance: float = 0.6,
        num_shared: int | None = None,
        looked_at: int = 16,
        least_shared: float = 0.25,
        max_edits: float = 0.4,
    ) -> tuple[Int64s, Floats]:
        """The phrases that some query sounds like, and how much evidence the best of the queries is for each.

        Defaults: on 60 utterances of the synthetic dev part and 50,000 phrases, the true ones among them, 61 % of these
        are among the 64 of most evidence, as many as where all within `max_edits` are found first. Without `max_edits`
        it is 66 %, but keyword F1 of candidates from 1,000 phrases falls from 0.69 to 0.61.

        Args:
            heard: (Q,) from `sound`.
            max_distance: Graded distance beyond which a phrase is left out.
            num_shared: Only the first phrases of the catalogue are looked for; None: all.
            looked_at: Phrases per query that are compared phone by phone: those that share most pairs, and ties.
            least_shared: Share of a query's pairs that a phrase must have to be compared, 0 to 1; two at least.
            max_edits: Plain edits per phone of the query beyond which a phrase is left out.

        Returns:
            (phrases, evidence as `evidence` gives it), the most evidence first, else in the order of the catalogue.
        """
        spans = _flat(heard)
        phones_Q = np.diff(spans.offsets)
        room_Q = (max_edits * phones_Q).astype(np.int64)
        first_Q, stop_Q = (
            np.searchsorted(self.lengths, bound) for bound in (np.maximum(phones_Q - room_Q, 1), phones_Q + room_Q + 1)
        )
        classes, edge = _classes()
        _, n, apart = near(
            spans, first_Q, stop_Q, self.flat, self.bits, self._allowed(num_shared), classes, edge, *costs(),
            looked_at, least_shared, max_distance, max_edits,
        )  # fmt: skip
        worth, places = evidence(self.lengths[n], apart, max_distance), self.order[n]
        by_place = np.lexsort((-worth, places))
        first = np.flatnonzero(np.diff(places[by_place], prepend=-1))
        best = by_place[first]
        best = best[np.argsort(-worth[best], kind="stable")]
        return places[best], worth[best]

    def _allowed(self, num_shared: int | None) -> Words:
        """(W,) a bit for each of the first phrases of the catalogue."""
        flags = np.zeros(64 * self.bits.shape[1], dtype=np.bool_)
        flags[: len(self.order)] = self.order < (len(self.order) if num_shared is None else num_shared)
        return np.packbits(flags, bitorder="little").view(np.uint64)


def phonetic_index(phrases: Sequence[str], voice: str = "en-us") -> PhoneticIndex:
    """Pronounces a list of at least one phrase; some 30 us per new word.

    Raises:
        RuntimeError: as `pronunciation.phonemes`.
    """
    sounds = tuple(sound(phrase, voice) for phrase in phrases)
    lengths = np.asarray([len(one) for one in sounds], dtype=np.int64)
    order = np.argsort(lengths, kind="stable")
    flat = _flat([sounds[n] for n in order.tolist()])
    return PhoneticIndex(sounds, order, lengths[order], flat, pair_bits(flat, *_classes()))
