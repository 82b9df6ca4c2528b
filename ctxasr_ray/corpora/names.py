"""Rare names made by a seeded grammar: surnames, first names, towns, products and drugs, disjoint between splits.

Syllables give a stem, morphology gives the kind (-mycin, -minster, -ovich), so a name that nobody has heard
still sounds like what it names.
"""

import functools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

T = TypeVar("T")


def listed(words: str) -> tuple[str, ...]:
    """Splits a list of words that is written as one string, to be read as one line."""
    return tuple(words.split())


KINDS: Final = ("surname", "first", "town", "product", "drug")
SIZES: Final[Mapping[str, Mapping[str, int]]] = {
    "train": {"surname": 4000, "first": 1200, "town": 2400, "product": 2400, "drug": 2400},
    "dev": {"surname": 400, "first": 120, "town": 240, "product": 240, "drug": 240},
    "test": {"surname": 1000, "first": 300, "town": 600, "product": 600, "drug": 600},
}
"""Split -> kind -> distinct names."""

_ONSETS: Final = listed(
    "b br c ch cl cr d dr f fl fr g gl gr h j k kr l m n p pl pr qu r s sh sk sl sp st str t tr v w z"
)
_NUCLEI: Final = listed("a a a a e e e e i i i o o o o u u ai ee ea oo ar er or")
_CODAS: Final = ("", "", "", "", *listed("b d g k l l m n n nd nt r r rd rk rn s s st t x"))
_CODAS_AFTER_R: Final = ("", "", "d", "n", "t")
_SUFFIXES: Final[Mapping[str, Sequence[str]]] = {
    "surname": listed(
        "son sen ski sky wicz vich vic ov ova in ini etti elli ano ez ides ard man mann stein berg ford ton well wood "
        "field by land sson poulos enko chuk yan ian akis oglu ura oka ato ley more ster worth ell er ick"
    ),
    "first": listed("a ia ina ette elle is us in an on iel ara ena ilo ian eth as or ra ya mir slav bert wen ine"),
    "town": listed(
        "ton ville burg bury ford field worth wick stead mouth haven minster by thorpe dale ham port ridge brook "
        "grove bridge cester combe ness holm wood ley hurst more grad ova ico"
    ),
    "product": listed(
        "ix ex o a ia io ify ora exa tron pad cast sync flow matic zon era ella ium on ster tek ora una ivo ax ware "
        "line ly ique omi"
    ),
    "drug": listed(
        "mycin cillin prazole olol statin sartan pril dipine azepam afil vir mab tinib oxacin setron triptan gliptin "
        "cycline zolam parin thiazide terol sone profen caine dronate lukast fenac oxetine idone"
    ),
}


@dataclass(frozen=True, slots=True)
class Lexicon:
    """The rare names of one split, by kind."""

    split: str
    names: Mapping[str, tuple[str, ...]]

    @property
    def words(self) -> frozenset[str]:
        """All rare words of the split; no other split and no common vocabulary holds any of them."""
        return frozenset(word for names in self.names.values() for word in names)


def pick(rng: random.Random, choices: Sequence[T]) -> T:
    """Draws one choice, uniformly, through `random()` alone: the one call whose stream Python promises to keep."""
    return choices[int(rng.random() * len(choices))]


@functools.lru_cache(maxsize=4)
def lexicons(seed: int, reserved: frozenset[str]) -> Mapping[str, Lexicon]:
    """Makes the lexicons of all splits at once, so that they are disjoint by construction.

    Args:
        seed: Names of two seeds have little in common.
        reserved: Common words that no name may equal.

    Returns:
        Split -> lexicon, of the sizes in `SIZES`.
    """
    taken = set(reserved)
    pools: dict[str, list[str]] = {}
    for kind in KINDS:
        rng = random.Random(f"{seed}/names/{kind}")
        total = sum(sizes[kind] for sizes in SIZES.values())
        pool: list[str] = []
        while len(pool) < total:
            name = _name(rng, kind)
            if name not in taken and 5 <= len(name) <= 13:
                taken.add(name)
                pool.append(name)
        pools[kind] = pool
    result = {}
    for split, sizes in SIZES.items():
        names = {}
        for kind, size in sizes.items():
            names[kind], pools[kind] = tuple(pools[kind][:size]), pools[kind][size:]
        result[split] = Lexicon(split, names)
    return result


def _name(rng: random.Random, kind: str) -> str:
    """One stem of one to three syllables and a suffix, joined so that it stays pronounceable."""
    num_syllables = pick(rng, {"drug": (1, 2, 2), "first": (1, 1, 2)}.get(kind, (1, 1, 1, 2)))
    stem = ""
    for _ in range(num_syllables):
        stem += pick(rng, _ONSETS) if stem or rng.random() < 0.9 else ""
        stem += pick(rng, _NUCLEI)
    suffix = pick(rng, _SUFFIXES[kind])
    if suffix[0] in "aeiou":
        coda = pick(rng, _CODAS_AFTER_R if stem[-1] == "r" else _CODAS) or "l"
        return stem + coda + suffix
    coda = pick(rng, _CODAS_AFTER_R if stem[-1] == "r" else _CODAS)
    if coda and coda[-1] == suffix[0]:
        coda = ""
    return stem + coda + suffix
