"""A comparison of systems -> error rates by noise level, accent and what else a corpus knows of its utterances."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ctxasr_ray.report.comparison import Comparison
from ctxasr_ray.report.drawing import INK, Chart, legend, new, short, style
from ctxasr_ray.schema import SPLITS

MAX_SLICES: Final = 12
"""Values of an attribute that still make a figure: more of them are names, not conditions."""

_UNITS: Final = {"db": "dB", "s": "s", "hz": "Hz"}
_MIN_COVERAGE: Final = 0.9
"""Share of utterances that must have the attribute."""


def slices(comparison: Comparison) -> list[Chart]:
    """One figure per attribute of UTTERANCES with 2 to 12 values: errors over words of each slice, per system.

    Args:
        comparison: From `comparison.compare`; the last of train, dev and test that it holds is drawn.

    Returns:
        Empty without systems, or where no attribute slices the utterances.
    """
    splits = [row["split"] for row in comparison.utterances]
    split = next((name for name in reversed(SPLITS) if name in splits), None)
    members = np.array([name == split for name in splits], bool)
    if not comparison.systems or not members.any():
        return []
    facts = [dict(row["attributes"] or []) for row in comparison.utterances]
    keys = dict.fromkeys(key for fact, member in zip(facts, members, strict=True) if member for key in fact)
    charts = (_slice(comparison, key, facts, members, str(split)) for key in keys)
    return [chart for chart in charts if chart is not None]


def _slice(
    comparison: Comparison, key: str, facts: Sequence[Mapping[str, Any]], members: npt.NDArray[np.bool_], split: str
) -> Chart | None:
    values = np.array([fact.get(key) or "" for fact in facts], dtype=object)
    counted = members & (values != "") & (comparison.num_words > 0)
    levels = sorted(set(values[counted].tolist()), key=_rank)
    if not 2 <= len(levels) <= MAX_SLICES or counted.sum() < _MIN_COVERAGE * members.sum():
        return None
    title = f"WER by {_axis(key)}, {split}"
    figure, axes = new(6.8, 3.6, title)
    inside = [counted & (values == level) for level in levels]
    for index, system in enumerate(comparison.systems):
        rates = [100 * comparison.errors[index, i].sum() / comparison.num_words[i].sum() for i in inside]
        marker, colour = style(index)
        axes.plot(range(len(levels)), rates, marker=marker, color=colour, label=short(system))
    names = [f"{short(level)}\nN = {int(i.sum()):,}" for level, i in zip(levels, inside, strict=True)]
    axes.set_xticks(range(len(levels)), names, color=INK)
    axes.grid(axis="y", color="#888888", alpha=0.3, linewidth=0.6)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(_axis(key))
    axes.set_ylabel("WER (% of reference words)")
    legend(axes, "system")
    caption = (
        f"Errors over reference words of each slice, N = {int(counted.sum()):,} utterances ({split}). Slices have no "
        "intervals here: read differences as a hint."
    )
    return Chart("slice_" + re.sub(r"\W+", "_", key), title, caption, figure)


def _axis(key: str) -> str:
    """An attribute's name with its unit, which stands behind the last underscore where there is one."""
    name, _, unit = key.rpartition("_")
    if not name or unit not in _UNITS:
        return key.replace("_", " ")
    return f"{name.upper() if name == 'snr' else name.replace('_', ' ')} ({_UNITS[unit]})"


def _rank(level: str) -> tuple[bool, float, str]:
    """Numbers first, in their order; words after them."""
    try:
        return (False, float(level), "")
    except ValueError:
        return (True, 0.0, level)
