"""A comparison of systems -> their error rates by noise level, accent and what else a corpus knows of its rows."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ctxasr_ray.metrics.significance import choose_blocks, compare
from ctxasr_ray.report.comparison import Comparison
from ctxasr_ray.report.overview import MAX_LEVELS, by_number
from ctxasr_ray.report.tables import Line
from ctxasr_ray.schema import SPLITS

NUM_REPLICATES: Final = 2000
"""Bootstrap replicates behind the interval of a slice."""

_MIN_COVERAGE: Final = 0.9
"""Share of utterances that must have the attribute."""


def slices(comparison: Comparison, baseline: str | None = None) -> list[Line]:
    """One line per system and value of an attribute of UTTERANCES, with bootstrap intervals of its own.

    Args:
        comparison: From `comparison.compare`; the last of train, dev and test that it holds is sliced.
        baseline: The system that the others are compared with in pairs; None: the first one.

    Returns:
        Lines whose condition names the slice. Attributes with one value or more than 12, and those that more than
        a tenth of the utterances lack, make none. Empty without systems.
    """
    splits = [row["split"] for row in comparison.utterances]
    split = next((name for name in reversed(SPLITS) if name in splits), None)
    members = np.array([name == split for name in splits], bool)
    if not comparison.systems or not members.any():
        return []
    base = next((place for place, name in enumerate(comparison.systems) if name == baseline), 0)
    facts = [dict(row["attributes"] or []) for row in comparison.utterances]
    keys = dict.fromkeys(key for fact, member in zip(facts, members, strict=True) if member for key in fact)
    found: list[Line] = []
    for key in keys:
        values = np.array([fact.get(key) or "" for fact in facts], dtype=object)
        counted = members & (values != "") & (comparison.num_words > 0)
        levels = sorted(set(values[counted].tolist()), key=by_number)
        if 2 <= len(levels) <= MAX_LEVELS and counted.sum() >= _MIN_COVERAGE * members.sum():
            for level in levels:
                found += _slice(comparison, counted & (values == level), {key: level}, str(split), base)
    return found


def _slice(
    comparison: Comparison, inside: npt.NDArray[np.bool_], condition: Mapping[str, str], split: str, base: int
) -> Sequence[Line]:
    rows = [row for row, member in zip(comparison.utterances, inside, strict=True) if member]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # few speakers in a slice: the whole split has said so already
        blocks = choose_blocks([row["speaker_id"] for row in rows], [row["session_id"] for row in rows])
    errors = comparison.errors[:, inside].T
    lengths = np.repeat(comparison.num_words[inside, None], len(comparison.systems), axis=1)
    counted = compare(errors, lengths, blocks, baseline=base, num_replicates=NUM_REPLICATES, seed=7)
    lines = []
    for index, system in enumerate(comparison.systems):
        names = ("value", "ci_low", "ci_high", "delta", "delta_ci_low", "delta_ci_high", "p_value")
        numbers: dict[str, Any] = {}
        for name in names:
            value = float(getattr(counted, name)[index])
            own = name in ("value", "ci_low", "ci_high")
            numbers[name] = None if np.isnan(value) or (index == base and not own) else value
        record = {
            "system": system,
            "metric": "wer",
            "unit": "word",
            "baseline": None if index == base else comparison.systems[base],
            "counts": {"errors": int(errors[:, index].sum()), "reference_length": int(lengths[:, index].sum())},
            "num_utterances": len(rows),
            "num_blocks": blocks.num_blocks,
            **numbers,
        }
        lines.append(Line(str(rows[0]["corpus"]), split, system, condition, {"wer": record}))
    return lines
