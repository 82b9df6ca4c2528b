"""A fit and what it was tuned on -> the objective against each weight, exactly, on every split."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ctxasr_ray.fusion.landscape import landscape
from ctxasr_ray.fusion.line_search import Landscape
from ctxasr_ray.fusion.weights import WeightsConfig
from ctxasr_ray.report.drawing import INK, Chart, legend, new_rows, style
from ctxasr_ray.report.fits import FittedValue, fitted_values
from ctxasr_ray.stage import Step
from ctxasr_ray.storage.store import Shard, Store

_MAX_VALUES = 4
"""Weights in one figure."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tuned:
    """A fit with its config and the tables behind it."""

    system: str
    """The system that uses the weights."""
    config: WeightsConfig
    """The fit's own."""
    fits: pa.Table
    """FITS that hold the fit."""
    tables: Mapping[str, Sequence[pa.Table]]
    """Split -> what the fit read, or would read there: HYPOTHESES, SCORES tables, NBEST_ERRORS. Looking at test is not
    tuning on it."""


def read_tuned(store: Store, fits: Mapping[str, Step], shards: Sequence[Shard], limit: int = 4) -> list[Tuned]:
    """What a finished run has fitted, with the tables behind it.

    Args:
        store: The run folder.
        fits: System -> the step that fits its weights.
        shards: All shards of the run; train is left out.
        limit: Systems that are read: N-best lists of many of them fill the memory.

    Raises:
        StoreError: a step is not committed.
    """
    found = []
    for system, step in list(fits.items())[:limit]:
        if not isinstance(step.config, WeightsConfig):
            continue
        parents = [parent for parent in step.inputs if parent.config.WRITES in ("hypotheses", "scores", "nbest_errors")]
        made = store.gather(step, shards)
        tables = {}
        for split in ("dev", "test"):
            own = [shard for shard in shards if shard.split == split]
            if own:
                tables[split] = tuple(store.gather(parent, own) for parent in parents)
        found.append(Tuned(system=system, config=step.config, fits=made, tables=tables))
    return found


def weight_landscapes(tuned: Tuned) -> Chart | None:
    """The objective against each free weight, the others held; None where nothing was free.

    Args:
        tuned: At least the split of the fit; further splits are drawn beside it.

    Raises:
        ValueError, ContractError: as `fusion.landscape.landscape`: tables that are not those of the fit.
    """
    values = [value for value in fitted_values(tuned.fits) if value.fit == tuned.config.fit_name and _free(value)]
    values = values[:_MAX_VALUES]
    if not values:
        return None
    title = f"Weight landscape of {tuned.system}"
    figure, panels = new_rows(6.8, 1.0 + 2.4 * len(values), title, len(values))
    for axes, value in zip(panels, values, strict=True):
        low, high = _window(value)
        for index, (split, tables) in enumerate(tuned.tables.items()):
            whole = landscape(tuned.config, tuned.fits, value.name, *tables)
            seen = _within(whole, low, high, tuned.config.bounds.get(value.name, (None, None)))
            best = 100 * whole.values.min()
            name = f"{split}, best {best:.2f} %"
            above = 100 * seen.values - best
            axes.stairs(above, seen.edges, baseline=None, color=style(index)[1], label=name, linewidth=1.4)
        if value.flat:
            axes.axvspan(*np.clip(value.flat, low, high), color="#888888", alpha=0.15, label="nearly as good (dev)")
        axes.axvline(value.value, color=INK, linewidth=1.2, linestyle="--", label="chosen")
        axes.grid(axis="y", color="#888888", alpha=0.3, linewidth=0.6)
        axes.set_xlim(low, high)
        axes.set_xlabel(f"weight of {value.name}, relative to the recogniser's 1")
        axes.set_ylabel(f"{value.objective.partition('|')[0]} above its best (points)")
        axes.margins(y=0.08)
    legend(panels[0], "split")
    sizes = {split: tables[0].num_rows for split, tables in tuned.tables.items()}
    counted = ", ".join(f"N = {size:,} utterances ({split})" for split, size in sizes.items())
    caption = (
        "How much worse than its best each split is for every value of one weight, the others held at their fit; "
        f"exact, no grid. Only {values[0].split} chose the weight. {counted}."
    )
    return Chart("landscape_" + "".join(c if c.isalnum() else "_" for c in tuned.system), title, caption, figure)


def _free(value: FittedValue) -> bool:
    spans = [span for span in (value.optimal, value.flat, value.bootstrap) if span]
    return any(low < high for low, high in spans)


def _window(value: FittedValue) -> tuple[float, float]:
    """Where the objective changes most: what is best and nearly as good, as far as eight times the weight itself."""
    best = value.optimal or (value.value, value.value)
    reach = 8 * max(abs(value.value), 0.1, best[1] - best[0] if best[1] - best[0] < 1e6 else 0.0)
    spans = [best, value.flat or best]
    ends = [value.value, 0.0, *(min(reach, max(-reach, end)) for span in spans for end in span)]
    margin = 0.4 * (max(ends) - min(ends))
    return min(ends) - (margin if min(ends) < 0 else 0.0), max(ends) + margin


def _within(whole: Landscape, low: float, high: float, bounds: tuple[float | None, float | None]) -> Landscape:
    """The cells between two positions; the outer ones go on to where the weight may go."""
    edges = whole.edges.copy()
    edges[0] = min(edges[0], low) if bounds[0] is None else edges[0]
    edges[-1] = max(edges[-1], high) if bounds[1] is None else edges[-1]
    edges = np.clip(edges, low, high)
    kept = np.diff(edges) > 0
    return Landscape(np.append(edges[:-1][kept], edges[1:][kept][-1]), whole.values[kept])
