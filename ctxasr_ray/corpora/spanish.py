"""A seeded corpus of spoken Spanish commands full of rare names.

Names are made of Spanish syllables and endings, disjoint between splits, as are speakers; voices, noises and files are
those of `synthetic`. The voices are espeak-ng's `es` and `es-419` (Spain and Latin America).
"""

import functools
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

from ctxasr_ray.corpora.names import listed, pick
from ctxasr_ray.corpora.sentences import Sentence
from ctxasr_ray.corpora.synthetic import SyntheticConfig

CHARACTERS: Final = "abcdefghijklmnopqrstuvwxyzñáéíóúü"
"""What a sentence is written in, besides the space."""
MIN_CHARACTERS: Final = 45
MAX_CHARACTERS: Final = 90
"""Bounds of a sentence; at 145 to 195 words per minute that is 3 to 7 s of speech."""
NAMES: Final[Mapping[str, int]] = {"train": 2400, "dev": 240, "test": 600}
"""Split -> distinct names of each kind."""

_FIRST: Final = listed(
    "ana carmen lucía marta paula elena sara laura pilar rosa inés julia alba irene clara nuria juan luis pedro pablo "
    "jorge carlos miguel diego javier sergio andrés álvaro raúl iván óscar hugo martín tomás mateo"
)
_ONSETS: Final = listed("b br c ch cr d f fr g gr j l ll m n p pr r s t tr v z qu gu")
_NUCLEI: Final = listed("a a a e e e i o o u ie ue")
_CODAS: Final = ("", "", "", "", *listed("l n n r r s s m z"))
_ENDS: Final[Mapping[str, tuple[str, ...]]] = {
    "surname": listed("ez edo illo ales ondo arte eros iño ástegui ena avides elles ui ueta aga osa ero uño ías aldón"),
    "town": listed("eda illa uela ejo anca iel agosa adilla enar osa ález iña ares alba éjar ola íes ón ache uera"),
    "product": listed("ix a o ia ora exa atec ona ifón una etel aria ux ino ela amar olvo itec"),
    "drug": listed("ina ol icilina azol atina amida oprofeno azepán idona asartán ormina oxetina afilo"),
}
_COMMON: Final[Mapping[str, tuple[str, ...]]] = {
    "polite": ("", "", "", "por favor ", "oye ", "necesito que me ayudes y ", "cuando puedas "),
    "hour": listed("una dos tres cuatro cinco seis siete ocho nueve diez once doce"),
    "number": listed("dos tres cuatro cinco seis siete ocho nueve diez doce quince veinte treinta cuarenta"),
    "day": listed("hoy mañana lunes martes miércoles jueves viernes sábado domingo"),
    "when": (
        "mañana por la mañana",
        "esta tarde",
        "el <day> a las <hour>",
        "dentro de <number> minutos",
        "antes de las <hour>",
        "el fin de semana",
        "a las <hour> y media",
    ),
    "place": listed("hospital aeropuerto hotel mercado banco colegio ayuntamiento museo teatro taller"),
    "near": listed("farmacia estación gasolinera panadería biblioteca oficina clínica librería"),
    "event": ("la reunión", "la cena", "la comida", "la entrevista", "la boda", "la clase", "la visita", "el viaje"),
    "topic": (
        "el contrato",
        "la factura",
        "el coche nuevo",
        "los billetes de tren",
        "el informe de ventas",
        "la casa del pueblo",
        "el regalo de cumpleaños",
    ),
    "says": (
        "llegaré un poco tarde",
        "no puedo ir <when>",
        "ya estamos en {town}",
        "he leído el informe",
        "nos vemos en el <place> de {town}",
        "me llame <when>",
        "no hay más {drug} en casa",
        "el paquete de {product} ya está aquí",
    ),
    "goods": listed("leche pan aceite arroz café azúcar harina queso fruta sal"),
    "device": listed("teléfono reloj ordenador altavoz televisor cargador teclado"),
    "dose": ("una pastilla", "dos pastillas", "media pastilla", "una caja", "diez gotas", "el jarabe"),
    "meal": ("de comer", "de cenar", "de desayunar", "de dormir"),
    "tail": ("", "", " y avísame", " si es posible", " lo antes posible", " y dile que <says>", " en cuanto puedas"),
}
_TEMPLATES: Final = (
    "<polite>llama a {person} <when><tail>",
    "<polite>llama a la oficina de {person} en {town}<tail>",
    "<polite>manda un mensaje a {person} y dile que <says>",
    "<polite>escribe un correo a {person} sobre <topic><tail>",
    "contesta a {person} que <says>",
    "<polite>lee el último mensaje de {person} sobre <topic>",
    "<polite>pon <event> con {person} <when> en {town}",
    "<polite>cambia <event> con {person} para <when>",
    "anula <event> con {person} en el <place> de {town}",
    "recuérdame <when> que tengo que ver a {person} en {town}",
    "<polite>busca el camino más corto de {town} a {town}",
    "cuánto se tarda en llegar a {town} desde el <place> de {town}",
    "<polite>reserva una mesa para <number> personas en {town} <when>",
    "<polite>compra dos billetes de tren a {town} para <when>",
    "qué tiempo va a hacer en {town} <when>",
    "hay una <near> cerca de {town} que esté abierta <when>",
    "<polite>llévame a la <near> de {town} pasando por {town}",
    "<polite>pide <number> cajas de {drug} en la farmacia de {town}",
    "toma <dose> de {drug} antes <meal> y otra de {drug} después",
    "puedo tomar {drug} con {drug} antes <meal>",
    "el médico le ha dado a {person} <dose> de {drug} para <number> días",
    "<polite>añade <goods> y <goods> y un <device> de {product} a la lista",
    "cuánto cuesta el nuevo <device> de {product} en la tienda de {town}",
    "<polite>devuelve el <device> de {product} que compré en {town}",
    "el <device> de {product} no funciona desde <when>",
    "<polite>pon la última canción de {person} en el altavoz de {product}",
    "<polite>apunta que {person} trabaja ahora en {product} con {person}",
    "quién es {person} y por qué viene a {town} <when>",
)
_SLOT: Final = re.compile(r"<(\w+)>|\{(\w+)\}")


@dataclass(frozen=True, kw_only=True, slots=True)
class SpanishConfig(SyntheticConfig):
    """Which utterances of spoken Spanish there are; equal configs give equal samples in every process."""

    CORPUS: ClassVar[str] = "synthetic_spanish"
    LANGUAGE: ClassVar[str] = "es"
    ACCENTS: ClassVar[tuple[str, ...]] = ("es", "es-419")

    def sentence(self, split: str, index: int) -> Sentence:
        """Gives the text, lower case with its accents, and the names in it."""
        rng = random.Random(f"{self.seed}/spanish/{split}/{index}/sentence")
        while True:
            keywords: list[str] = []
            text = self._filled(rng, split, keywords, pick(rng, _TEMPLATES))
            if MIN_CHARACTERS <= len(text) <= MAX_CHARACTERS:
                return Sentence(text, tuple(dict.fromkeys(keywords)))

    def phrase(self, rng: random.Random, split: str) -> str:
        """Draws one name of a split, as it may be spoken."""
        return self._name(rng, split, pick(rng, ("person", "person", "town", "product", "drug")))

    def rare_words(self, split: str) -> frozenset[str]:
        """Every word of the split's names that no other split has."""
        return frozenset(word for kind in names(self.seed)[split].values() for word in kind)

    def _filled(self, rng: random.Random, split: str, keywords: list[str], text: str) -> str:
        def fill(slot: "re.Match[str]") -> str:
            common, kind = slot.groups()
            if common:
                return self._filled(rng, split, keywords, pick(rng, _COMMON[common]))
            keywords.append(self._name(rng, split, kind))
            return keywords[-1]

        return _SLOT.sub(fill, text)

    def _name(self, rng: random.Random, split: str, kind: str) -> str:
        if kind == "person":
            return f"{pick(rng, _FIRST)} {pick(rng, names(self.seed)[split]['surname'])}"
        return pick(rng, names(self.seed)[split][kind])


@functools.cache
def vocabulary() -> frozenset[str]:
    """Gives every common word of the sentences; rare names are never among them."""
    texts = [*_TEMPLATES, *_FIRST, *(text for texts in _COMMON.values() for text in texts)]
    return frozenset(word for text in texts for word in _SLOT.sub(" ", text).split())


@functools.lru_cache(maxsize=64)
def names(seed: int) -> Mapping[str, Mapping[str, tuple[str, ...]]]:
    """Split -> kind -> names of one word; every name stands in one split only, and none is a common word."""
    taken = set(vocabulary())
    made: dict[str, dict[str, tuple[str, ...]]] = {split: {} for split in NAMES}
    for kind in _ENDS:
        rng = random.Random(f"{seed}/spanish/names/{kind}")
        pool: dict[str, None] = {}
        while len(pool) < sum(NAMES.values()):
            name = _made(rng, kind)
            if name not in taken and 5 <= len(name) <= 12:
                pool[name] = None
        taken |= pool.keys()
        left = iter(pool)
        for split, size in NAMES.items():
            made[split][kind] = tuple(next(left) for _ in range(size))
    return made


def _made(rng: random.Random, kind: str) -> str:
    """One or two syllables and an ending, joined at a consonant."""
    stem = ""
    for _ in range(pick(rng, (1, 1, 2))):
        stem += _syllable(rng) + pick(rng, _CODAS)
    if stem[-1] in "aeiou":
        stem += pick(rng, listed("b c d g l ll m n ñ r rr s t v z"))
    return stem + pick(rng, _ENDS[kind])


def _syllable(rng: random.Random) -> str:
    onset = pick(rng, _ONSETS)
    return onset + pick(rng, listed("e i") if onset in ("qu", "gu") else _NUCLEI)
