"""HYPOTHESES, UTTERANCES -> ERRORS: the best transcript that can be put together from a list, word slot by word slot.

Every hypothesis is aligned with the first one at unit costs. Each word of the first hypothesis is a slot; the words
that others put between two of them are slots of their own, the k-th word of a gap in its k-th slot. A path takes one
word of each slot, or none where some hypothesis has none there. The compositional oracle is the path with fewest word
errors against the reference. Every hypothesis is a path, so it is never worse than the N-best oracle; no rescoring of
whole hypotheses can reach it, a combination of them might.

Reference:
    The definition is ours. Chen et al. 2023 (HyPoradise, arXiv:2309.15701) ask only whether the reference's words occur
    anywhere in the list, in any order and number, which is a lower bound that no path needs to reach.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ctxasr_ray import align, text
from ctxasr_ray.metrics.counts import MetricCounts, errors_table, same_rows
from ctxasr_ray.metrics.joined_windows import references_of_whole_rows
from ctxasr_ray.nbest import flatten
from ctxasr_ray.stage import Costs, Resources, Stage, light

Slot = tuple[set[str], bool]
"""The words of a slot, and whether a path may pass without one."""


def slots(hypotheses: Sequence[str]) -> list[Slot]:
    """The slots of one list.

    Args:
        hypotheses: Strings of one code point per word, best first, of one `align.encode` call.
    """
    from rapidfuzz.distance import Levenshtein

    if not hypotheses:
        return []
    first = hypotheses[0]
    at_word: list[tuple[set[str], list[bool]]] = [({word}, [False]) for word in first]
    gaps: list[list[set[str]]] = [[] for _ in range(len(first) + 1)]
    for other in dict.fromkeys(hypotheses[1:]):
        place, k = -1, 0
        for edit in Levenshtein.editops(first, other):
            i, j = edit.src_pos, edit.dest_pos
            if edit.tag == "replace":
                at_word[i][0].add(other[j])
            elif edit.tag == "delete":
                at_word[i][1][0] = True
            else:
                place, k = (place, k + 1) if place == i else (i, 0)
                if k == len(gaps[i]):
                    gaps[i].append(set())
                gaps[i][k].add(other[j])
    line: list[Slot] = []
    for i, gap in enumerate(gaps):
        line += [(words, True) for words in gap]
        if i < len(first):
            words, may_be_empty = at_word[i]
            line.append((words, may_be_empty[0]))
    return line


@dataclass(frozen=True, kw_only=True, slots=True)
class CompositionalOracleConfig:
    """Counts the word errors of the best path through each list; an empty list is all deletions.

    A row without reference, or with that of a recording in several windows, is left out.
    """

    NAME: ClassVar[str] = "compositional_oracle"
    STAGE_VERSION: ClassVar[int] = 1
    READS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "hypotheses": ("hypotheses",),
        "utterances": ("reference", "recording_id", "window_index", "channel"),
    }
    WRITES: ClassVar[str] = "errors"

    normaliser: str = "whisper_english"
    """One of `text.NORMALISERS`, for both sides."""
    resources: Resources = field(default_factory=light)
    """Actors of the pool."""

    def fingerprint(self) -> Mapping[str, str]:
        """The normaliser's version.

        Raises:
            ValueError: an unknown normaliser.
        """
        return {"normaliser": text.versioned(self.normaliser)}

    def build(self) -> Stage:
        """Returns the counting function; numba compiles on its first call."""
        self.fingerprint()
        return self._count

    def _count(self, *tables: pa.Table, costs: Costs) -> pa.Table:
        hypotheses, utterances = tables
        same_rows("hypotheses", hypotheses, "utterances", utterances)
        flat = flatten(hypotheses)
        known = references_of_whole_rows(utterances)
        counted = np.array([reference is not None for reference in known], bool)
        sides = (["" if r is None else r for r in known], flat.texts)
        references, heard = align.encode("word", *(text.units(s, self.normaliser, "word") for s in sides))
        with costs.timed("align"):
            lines = [
                slots(heard[start:end].strings()) if ok else []
                for (start, end), ok in zip(flat.bounds(), counted, strict=True)
            ]
            counts = _counts(references, lines)
        costs.count("pairs_aligned", len(flat.texts))
        metric = MetricCounts(
            metric="wer",
            unit="word",
            normaliser=self.normaliser,
            word_class="all",
            alignment="unit",
            counted=counted,
            counts=counts,
        )
        return errors_table(flat.utterance_ids, [metric])


def _counts(references: align.Encoded, lines: Sequence[Sequence[Slot]]) -> align.Counts:
    from ctxasr_ray.metrics.slot_alignment import best_paths  # numba compiles it; nobody else waits for that

    every = [slot for line in lines for slot in line]
    found = best_paths(
        _codes("".join(references.strings())),
        np.cumsum(references.lengths),
        _codes("".join("".join(sorted(words)) for words, _ in every)),
        np.cumsum([len(words) for words, _ in every], dtype=np.int64),
        np.array([may_be_empty for _, may_be_empty in every], bool),
        np.cumsum([len(line) for line in lines], dtype=np.int64),
    )
    substitutions, deletions, insertions = found.T
    return align.Counts(references.lengths - substitutions - deletions, substitutions, deletions, insertions)


def _codes(line: str) -> npt.NDArray[np.uint32]:
    return np.frombuffer(line.encode("utf-32-le", "surrogatepass"), np.uint32)
