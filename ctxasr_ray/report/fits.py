"""FITS -> fitted values with the intervals that say how firmly they stand, as cells and as a figure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from ctxasr_ray.report.drawing import COLOURS, INK, Chart, new_rows, short

Interval = tuple[float, float]
_MAX_DRAWN = 12
_PARTS = ("flat", "bootstrap", "ties")
"""Companion rows of a fit."""
_COMPANIONS = ("flat", "bootstrap", "ties")


@dataclass(frozen=True, kw_only=True, slots=True)
class FittedValue:
    """One fitted value; companion rows (`<fit>/flat`, `<fit>/bootstrap`, `<fit>/ties`) are gathered into it."""

    fit: str
    name: str
    value: float
    optimal: Interval | None
    """All values with the same objective, the others held."""
    flat: Interval | None
    """All values that cost next to nothing of the objective."""
    bootstrap: Interval | None
    """95 % of the values that resampled utterances choose."""
    num_optima: int | None
    """Separate stretches that reach the best objective: more than one is a warning."""
    objective: str
    objective_value: float | None
    split: str
    num_configurations: int


def fitted_values(fits: pa.Table | Mapping[str, pa.Table] | None) -> list[FittedValue]:
    """The values of all fits, in the order of the table.

    Args:
        fits: FITS; or system -> its FITS, whose values are named by the system then; None where nothing was fitted.
    """
    if isinstance(fits, Mapping):
        return [replace(value, fit=system) for system, table in fits.items() for value in fitted_values(table)]
    rows = {row["name"]: row for row in (fits.to_pylist() if fits is not None else [])}
    found = []
    for name, row in rows.items():
        base, _, part = name.rpartition("/")
        if part in _COMPANIONS and base in rows:
            continue
        flat, bootstrap = (_intervals(rows.get(f"{name}/{part}")) for part in ("flat", "bootstrap"))
        optimal, optima = _intervals(row), dict(rows.get(f"{name}/ties", {}).get("values", ()))
        for value_name, value in row["values"]:
            found.append(
                FittedValue(
                    fit=name,
                    name=value_name,
                    value=value,
                    optimal=optimal.get(value_name),
                    flat=flat.get(value_name),
                    bootstrap=bootstrap.get(value_name),
                    num_optima=int(optima[value_name]) if value_name in optima else None,
                    objective=row["objective"],
                    objective_value=row["objective_value"],
                    split=row["split"],
                    num_configurations=row["num_configurations"],
                )
            )
    return found


def _intervals(row: Mapping[str, Any] | None) -> dict[str, Interval]:
    return {name: (ends[0], ends[1]) for name, ends in (row["interval"] if row else ()) if len(ends) == 2}


def _spans(value: FittedValue) -> list[Interval]:
    return [span for span in (value.optimal, value.flat, value.bootstrap) if span]


def fitted_chart(values: Sequence[FittedValue], num_utterances: Mapping[str, int]) -> Chart | None:
    """Every free value with its intervals, each on its own scale; None where nothing was free.

    Args:
        values: From `fitted_values`.
        num_utterances: Split -> its number of utterances.
    """
    free = [value for value in values if any(low < high for low, high in _spans(value))]
    shown, several = free[:_MAX_DRAWN], len({value.fit for value in free}) > 1
    if not shown:
        return None
    title = "Fitted values: how firmly they stand"
    figure, rows = new_rows(6.8, 1.4 + 0.7 * len(shown), title, len(shown))
    # The resamplings' line lies below the others, which would hide it where they are longer.
    kinds = (
        ("bootstrap", -0.5, 3.0, COLOURS[1], "95 % of resamplings"),
        ("flat", 0.0, 6.0, COLOURS[0], "nearly as good"),
        ("optimal", 0.0, 10.0, COLOURS[2], "the best"),
    )
    for axes, value in zip(rows, shown, strict=True):
        for kind, height, width, colour, name in kinds:
            ends = getattr(value, kind)
            if ends:
                axes.plot(ends, [height] * 2, linewidth=width, color=colour, label=name, solid_capstyle="butt")
        axes.plot([value.value], [0], "|", markersize=16, markeredgewidth=2, color=INK, label="chosen")
        axes.set_yticks([0], [short(f"{value.fit}: {value.name}" if several else value.name)])
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(-1, 1)
        axes.margins(x=0.08)
        for side, spine in axes.spines.items():
            spine.set_visible(side == "bottom")
    rows[-1].set_xlabel("weight, relative to the recogniser's 1 (each on its own scale)")
    figure.supylabel("value of", fontsize=10, color=INK)
    handles, names = rows[0].get_legend_handles_labels()
    key = figure.legend(handles, names, title="values that are", loc="outside right upper", frameon=False)
    for text in (key.get_title(), *key.get_texts()):
        text.set_color(INK)
    sizes = {value.split: num_utterances.get(value.split) for value in shown}
    counted = ", ".join(f"N = {size:,} utterances ({split})" for split, size in sizes.items() if size)
    cut = f" {len(shown)} of {len(free)} values are drawn." if len(shown) < len(free) else ""
    caption = (
        "For each fitted value: the stretch with the best objective, the stretch that costs next to nothing, and where "
        f"95 % of bootstrap resamplings put it. {counted}.{cut}"
    )
    return Chart("fitted_values", title, caption, figure)
