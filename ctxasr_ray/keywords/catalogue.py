"""A phrase list -> a catalogue: phrases in one seeded order, normalised like the text, with findings about the list.

What happens to odd entries; each is named and counted in `Catalogue.findings`:

| finding | the entry |
|---|---|
| no_phrases | the whole list is empty: carried, and equal to no context |
| blank | no phrase: left out |
| lost_in_normalising | nothing is left after normalising (emoji, punctuation): left out |
| duplicate | equal to an earlier one after normalising: carried once, as first written, spellings joined |
| conflicting_scores | duplicates with different scores: the highest is carried |
| near_duplicate | differs from an earlier one in spaces, apostrophes or accents only: both carried |
| common_word | one of the common words: carried |
| one_character | carried |
| long | more than `LONG_CHARACTERS`: carried |
| mixed_scripts | letters of more than one script: carried |
| looks_like_nemo | holds an underscore, which joins spellings in a list of format nemo: carried as it stands |

A score of nan, a broken line or a file in another encoding is refused with file and line (`phrase_files`). Phrases that
a recogniser cannot write (a list of another language) are found where they meet its tokens, and named as `UNWRITABLE`.
"""

import functools
import hashlib
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from ctxasr_ray import text
from ctxasr_ray.keywords.phrase_entries import Entry
from ctxasr_ray.keywords.phrase_files import format_of, read_bytes, read_entries

LONG_CHARACTERS: Final = 100
"""A phrase beyond is reported; no name or term of art is that long."""
UNWRITABLE: Final = "unwritable_phrases"
"""Kind under which stages name the phrases that their recogniser cannot write: `stage.Costs.name`."""
_ORDER: Final = b"ctxasr catalogue order 1"
_EXAMPLES: Final = 3
_SEPARATORS: Final = {ord(c): None for c in " -'\u2019"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """Something about a list that its owner should know; nothing is dropped without one."""

    kind: str
    """A row of the table at the top of the file."""
    count: int
    examples: tuple[str, ...]
    """The first few, as written."""

    def __str__(self) -> str:
        """One line for people."""
        shown = ", ".join(repr(example[:40]) for example in self.examples)
        return f"{self.kind}: {self.count}" + (f" ({shown}{', ...' if self.count > len(self.examples) else ''})")


@dataclass(frozen=True, kw_only=True, slots=True)
class Catalogue:
    """N distinct phrases. A phrase's id is its place in the order, which depends on the phrases alone.

    The order is by a keyed hash of the normalised phrase: a shuffled file gives the same one, and an added phrase
    moves no two others past each other.
    """

    digest: str
    """Names phrases, order, scores, spellings and normaliser; what CONTEXT rows carry."""
    normaliser: str
    phrases: tuple[str, ...]
    """As first written."""
    normalised: tuple[str, ...]
    """Distinct, never empty."""
    scores: npt.NDArray[np.float32]
    """(N,) nan where the list gives none."""
    spellings: tuple[tuple[str, ...], ...]
    """Per phrase other ways to write it, raw."""
    ids: Mapping[str, int]
    """Normalised phrase -> id."""
    findings: tuple[Finding, ...]

    def __len__(self) -> int:
        """N."""
        return len(self.phrases)

    def id_of(self, phrase: str) -> int:
        """The id of a raw phrase, -1 where the catalogue lacks it."""
        return self.ids.get(text.normalise(phrase, self.normaliser), -1)

    def weights(self, default: float = 1.0) -> npt.NDArray[np.float32]:
        """(N,) scores, with a default where the list gives none."""
        return np.where(np.isnan(self.scores), np.float32(default), self.scores)


def other_spellings(catalogue: Catalogue | None, phrase_id: int) -> Sequence[str]:
    """Other ways to write a phrase of CONTEXT; none for a phrase that no catalogue holds."""
    return () if catalogue is None or phrase_id < 0 else catalogue.spellings[phrase_id]


@dataclass(frozen=True, kw_only=True, slots=True)
class CatalogueOptions:
    """The catalogue in the config of every stage that takes one."""

    catalogue: str | None = field(default=None, metadata={"identity": False})
    """Path or URL of the phrase list, the one that CONTEXT names by its digest; its digest is in the hash. None: there
    is none, or rows bring all their phrases (a shortlist does)."""
    catalogue_format: str | None = field(default=None, metadata={"identity": False})
    """One of `phrase_files.FORMATS`; None: the extension tells."""
    normaliser: str = "whisper_english"
    """Two phrases that are equal under it are one: one of `text.NORMALISERS`, the one of CONTEXT and of the metrics."""

    def phrases(self) -> Catalogue | None:
        """Reads the catalogue, once per process; None where none is named.

        Raises:
            ValueError: as `load`.
        """
        if not self.catalogue:
            return None
        return load(self.catalogue, format=self.catalogue_format, normaliser=self.normaliser)

    def phrases_fingerprint(self) -> dict[str, str]:
        """The normaliser's version, and the catalogue's digest where one is named.

        Raises:
            ValueError: as `load`, or an unknown normaliser.
        """
        found, phrases = {"normaliser": text.versioned(self.normaliser)}, self.phrases()
        return found if phrases is None else {**found, "catalogue": phrases.digest}


def load(
    path: str, *, format: str | None = None, normaliser: str = "whisper_english", common_words: str = ""
) -> Catalogue:
    """Reads a list once per process; a changed file is read again.

    Args:
        path: Local path or URL.
        format: One of `phrase_files.FORMATS`; None: the extension tells.
        normaliser: One of `text.NORMALISERS`, the one that the text's words are compared under.
        common_words: File with one word per line, to report phrases that equal one; empty: none.

    Raises:
        ValueError: the file is missing or refused, naming line and remedy, or an unknown normaliser.
    """
    data = read_bytes(path)
    common = hashlib.sha256(read_bytes(common_words)).hexdigest() if common_words else ""
    return _load(path, hashlib.sha256(data).hexdigest(), format, normaliser, common_words, common)


@functools.lru_cache(maxsize=8)
def _load(path: str, _: str, format: str | None, normaliser: str, common_words: str, __: str) -> Catalogue:
    common = read_bytes(common_words).decode("utf-8-sig").splitlines() if common_words else ()
    return catalogue(read_entries(read_bytes(path), path, format_of(path, format)), normaliser, common)


def catalogue(
    entries: Iterable[Entry | str], normaliser: str = "whisper_english", common_words: Iterable[str] = ()
) -> Catalogue:
    """Makes a catalogue of entries or plain phrases; the table at the top of the file says what becomes of each.

    Args:
        entries: Finite scores or none.
        normaliser: One of `text.NORMALISERS`.
        common_words: Raw words; phrases that equal one are reported.

    Raises:
        ValueError: an unknown normaliser.
    """
    given = [Entry(0, entry) if isinstance(entry, str) else entry for entry in entries]
    found: dict[str, list[str]] = {}
    kept: dict[str, Entry] = {}
    for entry, normal in zip(given, text.units([e.phrase for e in given], normaliser, "word"), strict=True):
        normal = " ".join(normal.split())
        if not normal:
            _note(found, "blank" if not entry.phrase.strip() else "lost_in_normalising", entry.phrase)
        elif normal in kept:
            _note(found, "duplicate", entry.phrase)
            kept[normal] = _joined(kept[normal], entry, found)
        else:
            kept[normal] = entry
    if not kept:
        _note(found, "no_phrases", "")
    _inspect(kept, frozenset(text.normalise(word, normaliser) for word in common_words), found)
    order = sorted(kept, key=_rank)
    chosen = [kept[normal] for normal in order]
    phrases = tuple(entry.phrase.strip() for entry in chosen)
    scores = np.asarray([np.nan if entry.score is None else entry.score for entry in chosen], dtype=np.float32)
    spellings = tuple(entry.spellings for entry in chosen)
    return Catalogue(
        digest=_digest(normaliser, phrases, order, scores, spellings),
        normaliser=normaliser,
        phrases=phrases,
        normalised=tuple(order),
        scores=scores,
        spellings=spellings,
        ids={normal: place for place, normal in enumerate(order)},
        findings=tuple(
            Finding(kind=kind, count=len(phrases), examples=tuple(phrases[:_EXAMPLES]))
            for kind, phrases in sorted(found.items())
        ),
    )


def _note(found: dict[str, list[str]], kind: str, phrase: str) -> None:
    found.setdefault(kind, []).append(phrase)


def _joined(first: Entry, again: Entry, found: dict[str, list[str]]) -> Entry:
    scores = [score for score in (first.score, again.score) if score is not None]
    if len(set(scores)) == 2:
        _note(found, "conflicting_scores", again.phrase)
    spellings = tuple(dict.fromkeys((*first.spellings, *again.spellings)))
    return first._replace(score=max(scores, default=None), spellings=spellings)


def _inspect(kept: Mapping[str, Entry], common: frozenset[str], found: dict[str, list[str]]) -> None:
    """Reports entries that are carried although they may not do what their owner wants."""
    folded: set[str] = set()
    for normal, entry in kept.items():
        fold = _folded(normal)
        if fold in folded:
            _note(found, "near_duplicate", entry.phrase)
        folded.add(fold)
        if normal in common:
            _note(found, "common_word", entry.phrase)
        if len(normal) == 1:
            _note(found, "one_character", entry.phrase)
        if len(normal) > LONG_CHARACTERS:
            _note(found, "long", entry.phrase)
        if not normal.isascii() and len({_script(c) for c in normal if c.isalpha()}) > 1:
            _note(found, "mixed_scripts", entry.phrase)
        if "_" in entry.phrase:
            _note(found, "looks_like_nemo", entry.phrase)


def _folded(normal: str) -> str:
    if not normal.isascii():
        normal = "".join(c for c in unicodedata.normalize("NFKD", normal) if not unicodedata.combining(c))
    return normal.translate(_SEPARATORS)


@functools.lru_cache(maxsize=1 << 16)
def _script(character: str) -> str:
    """First word of the character's Unicode name; Han, kana and their kin are written together and count as one."""
    name = unicodedata.name(character, "UNKNOWN").split(" ")[0].split("-")[0]
    return "CJK" if name in ("HIRAGANA", "KATAKANA", "BOPOMOFO", "IDEOGRAPHIC") else name


def _rank(normal: str) -> bytes:
    return hashlib.blake2b(normal.encode(), digest_size=16, key=_ORDER).digest()


def _digest(
    normaliser: str,
    phrases: Sequence[str],
    normalised: Sequence[str],
    scores: npt.NDArray[np.float32],
    spellings: Sequence[tuple[str, ...]],
) -> str:
    digest = hashlib.sha256(text.versioned(normaliser).encode())
    for column in (phrases, normalised, ["\x1e".join(ways) for ways in spellings]):
        digest.update(("\x1f".join(column) + "\x1d").encode())
    digest.update(scores.tobytes())
    return digest.hexdigest()
