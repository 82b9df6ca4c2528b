"""RESULTS and COSTS -> matplotlib figures: PNG files, and the same drawings as SVG that follows the page's colours."""

from collections.abc import Sequence
from typing import Final

from ctxasr_ray.report.costs import StepCost
from ctxasr_ray.report.drawing import COLOURS, INK, Chart, legend, new, short, style
from ctxasr_ray.report.systems import label
from ctxasr_ray.report.tables import Line, main_lines, primary_metric, reported_split

MAX_LINES: Final = 40
"""Rows of one figure; a sweep's further lines stand in the tables."""
_MANY: Final = 24
"""Above so many lines only the reported split is drawn."""


def _sizes(rows: Sequence[Line], metric: str) -> str:
    sizes = {row.split: row.metrics[metric]["num_utterances"] for row in rows if metric in row.metrics}
    return ", ".join(f"N = {size:,} utterances ({split})" for split, size in sizes.items())


def _rates(rows: Sequence[Line]) -> tuple[str, list[Line], str]:
    metric = primary_metric(rows)
    scored = [row for row in main_lines(rows) if row.value(metric) is not None]
    if len(scored) > _MANY:
        split = reported_split(scored)
        scored = [row for row in scored if row.split == split]
    cut = f" The first {MAX_LINES} of {len(scored)} lines are drawn." if len(scored) > MAX_LINES else ""
    return metric, scored[:MAX_LINES], cut


def _unit(metric: str) -> str:
    return f"{label(metric)} ({'% of reference ' + ('characters' if metric == 'cer' else 'words')})"


def error_rates(rows: Sequence[Line]) -> Chart | None:
    """Error rate by system and split, with 95 % intervals; None where the run has no error rate."""
    metric, shown, cut = _rates(rows)
    if not shown:
        return None
    names = list(dict.fromkeys(row.label for row in shown))
    splits = list(dict.fromkeys(row.split for row in shown))
    figure, axes = new(
        6.8,
        1.5 + (0.22 if len(names) <= 12 else 0.13) * len(names) * (1 + len(splits)),
        f"{label(metric)} by system and split",
    )
    for index, split in enumerate(splits):
        here = [row for row in shown if row.split == split]
        at = [names.index(row.label) + 0.26 * (index - (len(splits) - 1) / 2) for row in here]
        values = [100 * (row.value(metric) or 0.0) for row in here]
        low = [v - 100 * (row.metrics[metric]["ci_low"] or v / 100) for row, v in zip(here, values, strict=True)]
        high = [100 * (row.metrics[metric]["ci_high"] or v / 100) - v for row, v in zip(here, values, strict=True)]
        spread = [[max(0.0, v) for v in low], [max(0.0, v) for v in high]]
        marker, colour = style(index)
        axes.errorbar(values, at, xerr=spread, label=split, fmt=marker, color=colour, markersize=6, capsize=3)
        for value, y, top in zip(values, at, spread[1], strict=True):
            at_end, beside = (value + top, y), (5, 0)
            axes.annotate(
                f"{value:.2f}", at_end, beside, textcoords="offset points", va="center", fontsize=8, color=INK
            )
    axes.set_yticks(range(len(names)), [short(name) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, 1.15 * axes.get_xlim()[1])  # room for the numbers behind the bars
    axes.set_xlabel(_unit(metric) + ", bars: 95 % interval")
    axes.set_ylabel("system")
    legend(axes, "split")
    caption = f"{label(metric)} with 95 % bootstrap intervals, lower is better. {_sizes(shown, metric)}.{cut}"
    return Chart("error_rates", f"{label(metric)} by system and split", caption, figure)


def error_kinds(rows: Sequence[Line]) -> Chart | None:
    """Substitutions, deletions and insertions by system and split; None where no line has counts."""
    metric, scored, cut = _rates(rows)
    kinds = ("substitutions", "deletions", "insertions")
    shown = [row for row in scored if {*kinds, "reference_length"} <= row.metrics[metric]["counts"].keys()]
    shown = [row for row in shown if row.metrics[metric]["counts"]["reference_length"]]
    if not shown:
        return None
    figure, axes = new(6.8, 1.5 + (0.3 if len(shown) <= 12 else 0.22) * len(shown), "Where the errors come from")
    left = [0.0] * len(shown)
    for index, kind in enumerate(kinds):
        counts = [row.metrics[metric]["counts"] for row in shown]
        widths = [100 * c[kind] / c["reference_length"] for c in counts]
        axes.barh(range(len(shown)), widths, left=left, height=0.66, color=COLOURS[index], label=kind)
        for y, (start, width, count) in enumerate(zip(left, widths, counts, strict=True)):
            if width > 0.06 * max(100 * (row.value(metric) or 0) for row in shown):
                centre = (start + width / 2, y)
                axes.annotate(f"{count[kind]:,}", centre, ha="center", va="center", fontsize=8, color="white")
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.set_yticks(range(len(shown)), [short(f"{row.split}: {row.label}") for row in shown])
    axes.invert_yaxis()
    axes.set_xlabel(_unit(metric) + "; numbers in the bars are counts")
    axes.set_ylabel("split: system")
    legend(axes, "error")
    caption = f"Errors by kind; their sum is the {label(metric)}. {_sizes(shown, metric)}.{cut}"
    return Chart("error_kinds", "Where the errors come from", caption, figure)


def seconds_by_step(costs: Sequence[StepCost]) -> Chart | None:
    """Busy seconds of each step by kind; None without costs."""
    if not costs:
        return None
    shown = sorted(costs, key=lambda cost: -cost.wall_s)[:_MANY]
    cut = f" The {len(shown)} costliest of {len(costs)} steps are drawn." if len(shown) < len(costs) else ""
    costs = [cost for cost in costs if cost in shown]
    kinds = sorted(dict.fromkeys(kind for cost in costs for kind in cost.seconds), key=lambda kind: kind != "load")
    figure, axes = new(6.8, max(2.6, 1.5 + 0.32 * len(costs)), "Work of each step")
    left = [0.0] * len(costs)
    for index, kind in enumerate([*kinds, "other"]):
        widths = [cost.other_s if kind == "other" else cost.seconds.get(kind, 0.0) for cost in costs]
        colour = "#8a8f98" if kind == "other" else COLOURS[index % len(COLOURS)]
        axes.barh(range(len(costs)), widths, left=left, height=0.66, color=colour, label=kind)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.set_yticks(range(len(costs)), [short(cost.step) for cost in costs])
    axes.invert_yaxis()
    axes.set_xlabel("busy time, summed over shards (s)")
    axes.set_ylabel("step")
    legend(axes, "seconds in")
    caption = (
        "Busy wall seconds of each step over all its shards; 'other' is what no timer names, such as reading and "
        f"writing tables. N = {max(cost.rows for cost in costs):,} utterances.{cut}"
    )
    return Chart("seconds_by_step", "Work of each step", caption, figure)
