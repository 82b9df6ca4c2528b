"""Phrases -> the tokens by which a recogniser may write them, and which of them it cannot write at all."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ctxasr_ray.keywords.automaton import Spellings, spellings
from ctxasr_ray.keywords.automaton_kernels import Int32s
from ctxasr_ray.text import normalise

Labels = Callable[[Sequence[str]], Sequence[Int32s | None]]
"""Texts -> tokens of each, None where the recogniser cannot write it: `models.ctc_spelling.Spelling.labels`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokenised:
    """P phrases as token sequences."""

    spellings: Spellings
    lost: npt.NDArray[np.int64]
    """Phrases without any sequence: letters that the recogniser does not have, a list of another language."""

    def unwritable(self, phrases: Sequence[str]) -> list[str]:
        """Gives the phrases without any sequence by name."""
        return [phrases[p] for p in self.lost]


def tokenised(phrases: Sequence[str], others: Sequence[Sequence[str]], labels: Labels) -> Tokenised:
    """Spells each phrase as it stands, else without its punctuation, and in its other ways.

    Args:
        phrases: (P,) raw.
        others: (P,) other ways to write each, raw.
        labels: Of the recogniser.
    """
    found: list[list[Int32s]] = [[] for _ in phrases]

    def spell(owners: Sequence[int], texts: Sequence[str]) -> None:
        for p, ids in zip(owners, labels(texts), strict=True):
            if ids is not None and len(ids) and not any(np.array_equal(ids, known) for known in found[p]):
                found[p].append(ids)

    spell(range(len(phrases)), phrases)
    missing = [p for p, ways in enumerate(found) if not ways]
    spell(missing, [normalise(phrases[p], "librispeech").replace("'", "") for p in missing])
    spell(*zip(*[(p, way) for p, ways in enumerate(others) for way in ways], strict=True) if any(others) else ((), ()))
    lost = np.asarray([p for p, ways in enumerate(found) if not ways], dtype=np.int64)
    return Tokenised(spellings=spellings(found), lost=lost)
