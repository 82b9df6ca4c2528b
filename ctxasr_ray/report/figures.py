"""RESULTS and COSTS -> matplotlib figures: PNG files, and the same drawings as SVG that follows the page's colours."""

import re
from collections.abc import Sequence
from typing import Final

from ctxasr_ray.report.costs import StepCost
from ctxasr_ray.report.drawing import COLOURS, INK, Chart, legend, new, short, style
from ctxasr_ray.report.tables import Line, is_percent, label, primary_metric

MAX_LINES: Final = 40
"""Rows of one figure; a sweep's further lines stand in the tables."""


def _sizes(rows: Sequence[Line], metric: str) -> str:
    sizes = {row.split: row.metrics[metric]["num_utterances"] for row in rows if metric in row.metrics}
    return ", ".join(f"N = {size:,} utterances ({split})" for split, size in sizes.items())


def _rates(rows: Sequence[Line]) -> tuple[str, list[Line], str]:
    metric = primary_metric(rows)
    scored = [row for row in rows if row.value(metric) is not None]
    cut = f" The first {MAX_LINES} of {len(scored)} lines are drawn." if len(scored) > MAX_LINES else ""
    return metric, scored[:MAX_LINES], cut


def _unit(metric: str) -> str:
    return f"{label(metric)} ({'% of reference ' + ('characters' if metric == 'cer' else 'words')})"


def error_rates(rows: Sequence[Line]) -> Chart | None:
    """Error rate by system and split, with 95 % intervals; None where the run has no error rate."""
    # Lines of a sweep have their own figure.
    metric, shown, cut = _rates([row for row in rows if not row.condition] or rows)
    if not shown:
        return None
    names = list(dict.fromkeys(row.label for row in shown))
    splits = list(dict.fromkeys(row.split for row in shown))
    figure, axes = new(6.8, 1.5 + 0.22 * len(names) * (1 + len(splits)), f"{label(metric)} by system and split")
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
    figure, axes = new(6.8, 1.5 + 0.3 * len(shown), "Where the errors come from")
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
        f"writing tables. N = {max(cost.rows for cost in costs):,} utterances."
    )
    return Chart("seconds_by_step", "Work of each step", caption, figure)


def error_against_cost(rows: Sequence[Line]) -> Chart | None:
    """Error rate against real-time factor on one split; None with fewer than two systems that have both."""
    metric = primary_metric(rows)
    both = [row for row in rows if row.value(metric) is not None and row.value("real_time_factor") is not None]
    shown = [row for row in both if row.split == both[-1].split][:MAX_LINES]
    if len(shown) < 2:
        return None
    figure, axes = new(6.8, 3.6, f"{label(metric)} against work ({shown[0].split})")
    for index, row in enumerate(shown):
        marker, colour = style(index)
        at, rate = row.value("real_time_factor") or 0.0, 100 * (row.value(metric) or 0.0)
        axes.plot([at], [rate], marker, color=colour, label=short(row.label), markersize=8)
    axes.grid(axis="y", color="#888888", alpha=0.3, linewidth=0.6)
    axes.margins(0.15)
    axes.set_xlabel("real-time factor (s of work per s of audio)")
    axes.set_ylabel(_unit(metric))
    legend(axes, "system")
    caption = f"Lower left is better. {_sizes(shown, metric)}."
    return Chart("error_against_cost", f"{label(metric)} against work", caption, figure)


def sweeps(rows: Sequence[Line]) -> list[Chart]:
    """One curve per numeric condition that takes several values: weights, list sizes, beams, noise levels."""
    metric = primary_metric(rows)
    keys = dict.fromkeys(key for row in rows for key in row.condition)
    charts = [chart for key in keys if (chart := _sweep(rows, metric, key)) is not None]
    return charts


def _numeric(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _sweep(rows: Sequence[Line], metric: str, key: str) -> Chart | None:
    curves: dict[str, list[tuple[float, Line]]] = {}
    for row in rows:
        at = _numeric(row.condition.get(key, ""))
        if at is None or row.value(metric) is None:
            continue
        rest = {name: value for name, value in row.condition.items() if name != key}
        name = Line(row.corpus, row.split, row.system, rest, {}).label
        curves.setdefault(f"{row.split}: {name}", []).append((at, row))
    curves = {name: points for name, points in curves.items() if len({at for at, _ in points}) > 1}
    if not curves:
        return None
    figure, axes = new(6.8, 3.8, f"{label(metric)} by {key}")
    for index, (name, points) in enumerate(list(curves.items())[:MAX_LINES]):
        points.sort(key=lambda point: point[0])
        marker, colour = style(index)
        xs = [point for point, _ in points]
        axes.plot(xs, _column(points, metric, "value"), marker=marker, color=colour, label=short(name))
        if all(row.value(metric, "ci_low") is not None for _, row in points):
            low, high = _column(points, metric, "ci_low"), _column(points, metric, "ci_high")
            axes.fill_between(xs, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.grid(axis="y", color="#888888", alpha=0.3, linewidth=0.6)
    axes.set_xlabel(key.replace("_", " "))
    axes.set_ylabel(_unit(metric))
    legend(axes, "split: system")
    drawn = [row for points in curves.values() for _, row in points]
    caption = f"{label(metric)} as {key} changes; bands: 95 % intervals. {_sizes(drawn, metric)}."
    return Chart("sweep_" + re.sub(r"\W+", "_", key), f"{label(metric)} by {key}", caption, figure)


def _column(points: Sequence[tuple[float, Line]], metric: str, field: str) -> list[float]:
    scale = 100 if is_percent(metric) else 1
    return [scale * (row.value(metric, field) or 0.0) for _, row in points]
