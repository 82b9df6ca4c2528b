"""Phrases of whole words in a text: leftmost-longest, non-overlapping matches of one or several sets of phrases."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

_END: Final = ""  # no word is empty, so the key of a node's own phrase can be
Phrase = tuple[str, ...]


class PhraseTrie:
    """Phrases by their words; a walk over a text costs one look-up per word and no more than the longest phrase."""

    def __init__(self, phrases: Iterable[Phrase] = ()) -> None:
        self._root: dict[str, Any] = {}
        for phrase in phrases:
            self.add(phrase)

    def add(self, phrase: Phrase) -> None:
        """Adds a phrase of at least one word; a phrase that is there already stays."""
        node = self._root
        for word in phrase:
            node = node.setdefault(word, {})
        node[_END] = phrase

    def longest(self, words: Sequence[str], start: int, is_allowed: Callable[[Phrase], bool] | None = None) -> int:
        """Words of the longest allowed phrase that begins at a position; 0 for none."""
        node, longest = self._root, 0
        for at in range(start, len(words)):
            child = node.get(words[at])
            if child is None:
                break
            node = child
            if _END in node and (is_allowed is None or is_allowed(node[_END])):
                longest = at + 1 - start
        return longest


def find_phrases(
    words: Sequence[str], tries: Sequence[PhraseTrie], is_allowed: Callable[[Phrase], bool] | None = None
) -> Counter[Phrase]:
    """Leftmost-longest, non-overlapping matches of phrases in a text, counted.

    Args:
        words: Normalised.
        tries: Together they hold the catalogue; the first one is asked with `is_allowed`.
        is_allowed: Which phrases of the first one count; None: all.
    """
    found: Counter[Phrase] = Counter()
    at = 0
    while at < len(words):
        length = max(trie.longest(words, at, None if i else is_allowed) for i, trie in enumerate(tries))
        if length:
            found[tuple(words[at : at + length])] += 1
        at += length or 1
    return found
