"""Two systems on the same utterances -> which words pay for what the second one wins."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from ctxasr_ray import align
from ctxasr_ray.report.comparison import Comparison

MOST_WORDS: Final = 15
"""Words that are named; the others are counted."""
_EXAMPLES: Final = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class LostWord:
    """A word that the second system makes more errors on than the first."""

    word: str
    lost: int
    """Times that it was said, and the first system had it right and the second wrong."""
    won: int
    """The other way round."""
    inserted: int
    """Times that the second system writes it where nothing was said, less those of the first."""
    instead: tuple[tuple[str, int], ...]
    """What the second system wrote where it was lost, most frequent first; empty where it wrote nothing."""
    utterances: tuple[str, ...]
    """Some utterances where it was lost or inserted."""

    @property
    def more_errors(self) -> int:
        """Errors of the second system on it less those of the first; over all words, the change of all errors."""
        return self.lost - self.won + self.inserted


def changed_words(comparison: Comparison, first: str, second: str, chosen: Sequence[int]) -> list[LostWord]:
    """Every word on which two systems make unequal errors, those that lose most first.

    Args:
        comparison: From `comparison.compare`.
        first: The system that the change is counted from.
        second: The other one.
        chosen: Rows of its utterances that count.
    """
    names = [comparison.utterances[i]["utterance_id"] for i in chosen]
    references = [comparison.references[i].split() for i in chosen]
    before, after = (_wrong(comparison, system, chosen) for system in (first, second))
    lost, won = Counter[str](), Counter[str]()
    instead: defaultdict[str, Counter[str]] = defaultdict(Counter)
    where: defaultdict[str, dict[str, None]] = defaultdict(dict)
    for (row, place), heard in after.words.items():
        if (row, place) not in before.words:
            word = references[row][place]
            lost[word] += 1
            instead[word][heard] += 1
            where[word][names[row]] = None
    for row, place in before.words.keys() - after.words.keys():
        won[references[row][place]] += 1
    inserted = Counter[str]()
    for (row, word), count in after.insertions.items():
        inserted[word] += count
        if count > before.insertions[row, word]:
            where[word][names[row]] = None
    for (_, word), count in before.insertions.items():
        inserted[word] -= count
    made = [
        LostWord(
            word=word,
            lost=lost[word],
            won=won[word],
            inserted=inserted[word],
            instead=tuple(instead[word].most_common(_EXAMPLES)),
            utterances=tuple(list(where[word])[:_EXAMPLES]),
        )
        for word in dict.fromkeys([*lost, *won, *inserted])
    ]
    changed = [one for one in made if one.more_errors]
    return sorted(changed, key=lambda one: (-one.more_errors, -one.lost, one.word))


@dataclass(frozen=True, slots=True)
class _Wrong:
    """What a system has wrong: (row, place of the reference word) -> what it wrote there; insertions by row, word."""

    words: dict[tuple[int, int], str]
    insertions: Counter[tuple[int, str]]


def _wrong(comparison: Comparison, system: str, chosen: Sequence[int]) -> _Wrong:
    said = comparison.said[comparison.systems.index(system)]
    heard = [said[i] for i in chosen]
    references, hypotheses = align.encode("word", [comparison.references[i] for i in chosen], heard)
    found = align.edits(references, hypotheses, comparison.alignment)
    wrong = _Wrong({}, Counter())
    columns = (found.pair, found.op, found.reference_index, found.hypothesis_index)
    words = [one.split() for one in heard]
    for row, op, place, column in zip(*(c.tolist() for c in columns), strict=True):
        if op == align.INSERTION:
            wrong.insertions[row, words[row][column]] += 1
        else:
            wrong.words[row, place] = "" if op == align.DELETION else words[row][column]
    return wrong
