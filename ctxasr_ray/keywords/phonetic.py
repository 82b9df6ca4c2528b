"""How alike texts sound: phones as characters, graded distances, and a catalogue searched by sound.

Two phones differ by their articulation: t and d a little, t and m more, t and a vowel wholly. The distance of two texts
is the cheapest way to turn one's phones into the other's, per phone of the phrase that is looked for, so 0 is the same
sound and 1 is as if nothing was heard. Catalogues are searched by plain edit distance first (rapidfuzz), the best are
ranked by the graded one. Letters: Q queries, N phrases, A phones.

Reference:
    Features are textbook articulatory phonetics (place, manner, voicing; height, backness); their weights are ours.
"""

import functools
import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numba
import numpy as np
import numpy.typing as npt
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cdist

from ctxasr_ray.keywords.pronunciation import IPA_TO_ARPABET, phonemes

Floats = npt.NDArray[np.float64]

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


def distances(heard: Sequence[str], phrases: Sequence[str]) -> Floats:
    """Graded distance of every heard sound to every phrase, per phone of the phrase.

    Args:
        heard: (Q,) from `sound`.
        phrases: (N,) from `sound`; an empty one is at distance 1 of everything.

    Returns:
        (Q, N), 0 to 1 and more where much is heard that the phrase does not have.
    """
    swap, gap = costs()
    return np.asarray(_all_distances(*_flat(heard), *_flat(phrases), swap, gap))


def evidence(num_phones: npt.NDArray[np.int64] | int, distance: Floats | float, max_distance: float) -> Floats:
    """What a phrase explains of what was heard: its phones, times how far its distance stays below the largest one.

    A short phrase is near something in every sentence; a long one is not.
    """
    return np.asarray(num_phones * (max_distance - distance))


def _flat(sounds: Sequence[str]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    phones = np.frombuffer("".join(sounds).encode("utf-32-le"), dtype=np.int32) - _FIRST
    return phones, np.concatenate([[0], np.cumsum([len(one) for one in sounds])]).astype(np.int64)


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]  # numba is untyped
def _all_distances(
    heard: npt.NDArray[np.int32],
    heard_offsets: npt.NDArray[np.int64],
    phrases: npt.NDArray[np.int32],
    phrase_offsets: npt.NDArray[np.int64],
    swap: Floats,
    gap: Floats,
) -> Floats:
    num_heard, num_phrases = len(heard_offsets) - 1, len(phrase_offsets) - 1
    out = np.ones((num_heard, num_phrases))
    for n in range(num_phrases):
        phrase = phrases[phrase_offsets[n] : phrase_offsets[n + 1]]
        if len(phrase) == 0:
            continue
        row = np.empty(len(phrase) + 1)
        whole = gap[phrase].sum()
        for q in range(num_heard):
            row[0] = 0.0
            for j in range(len(phrase)):
                row[j + 1] = row[j] + gap[phrase[j]]
            for i in range(heard_offsets[q], heard_offsets[q + 1]):
                phone = heard[i]
                diagonal = row[0]
                row[0] += gap[phone]
                for j in range(len(phrase)):
                    best = min(diagonal + swap[phone, phrase[j]], row[j + 1] + gap[phone], row[j] + gap[phrase[j]])
                    diagonal = row[j + 1]
                    row[j + 1] = best
            out[q, n] = row[len(phrase)] / whole
    return out


@dataclass(frozen=True, slots=True)
class PhoneticIndex:
    """The sounds of N phrases in the order of their lengths, made once and shared."""

    sounds: tuple[str, ...]
    """(N,) in the order of the catalogue."""
    order: npt.NDArray[np.int64]
    """(N,) phrases by ascending length."""
    by_length: tuple[str, ...]
    """Sounds in that order."""
    lengths: npt.NDArray[np.int64]
    """(N,) ascending."""

    def nearest(
        self, heard: Sequence[str], *, most: int, max_distance: float = 0.6, max_edits: float = 0.4
    ) -> list[tuple[npt.NDArray[np.int64], Floats]]:
        """The phrases for which each query is most evidence: long ones that it sounds like.

        Args:
            heard: (Q,) from `sound`.
            most: Phrases per query, at most.
            max_distance: Graded distance beyond which a phrase is left out.
            max_edits: Plain edits per phone of the query beyond which a phrase is not looked at, 0 to 1.

        Returns:
            Per query the phrases, and their evidence as `evidence` gives it, largest first.
        """
        by_length: dict[int, list[int]] = {}
        for q, one in enumerate(heard):
            by_length.setdefault(len(one), []).append(q)
        found: list[tuple[npt.NDArray[np.int64], Floats]] = [(np.zeros(0, np.int64), np.zeros(0))] * len(heard)
        for length, queries in by_length.items():
            limit = int(max_edits * length)
            low, high = np.searchsorted(self.lengths, [max(length - limit, 1), length + limit + 1])
            if length == 0 or low == high:
                continue
            choices = self.by_length[low:high]
            plain = cdist(
                [heard[q] for q in queries], choices, scorer=Levenshtein.distance, score_cutoff=limit, dtype=np.uint8
            )
            for q, row in zip(queries, plain, strict=True):
                near = np.flatnonzero(row <= limit)
                if len(near) > 2 * most:
                    near = near[np.argpartition(row[near], 2 * most)[: 2 * most]]
                graded = distances([heard[q]], [choices[n] for n in near.tolist()])[0]
                close = graded <= max_distance
                near = near[close]
                worth = evidence(self.lengths[low + near], graded[close], max_distance)
                best = np.argsort(-worth, kind="stable")[:most]
                found[q] = (self.order[low + near[best]], worth[best])
        return found


def phonetic_index(phrases: Sequence[str], voice: str = "en-us") -> PhoneticIndex:
    """Pronounces a list; some 30 us per new word.

    Raises:
        RuntimeError: as `pronunciation.phonemes`.
    """
    sounds = tuple(sound(phrase, voice) for phrase in phrases)
    lengths = np.asarray([len(one) for one in sounds], dtype=np.int64)
    order = np.argsort(lengths, kind="stable")
    return PhoneticIndex(sounds, order, tuple(sounds[n] for n in order.tolist()), lengths[order])
