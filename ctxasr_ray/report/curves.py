"""Lines by condition and reliability rows -> curves: metrics by SNR, list size, N or interval; confidence and truth."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from ctxasr_ray.report.drawing import INK, Chart, legend, new, new_rows, short, style
from ctxasr_ray.report.overview import axis_title, by_number
from ctxasr_ray.report.overview import by_setting as settings
from ctxasr_ray.report.systems import higher_is_better, is_bound, is_percent, label, rank
from ctxasr_ray.report.tables import Line, Record, primary_metric, reported_split

MAX_CURVES: Final = 8
"""Systems in one figure of curves; tables hold all."""
MAX_PANELS: Final = 6
"""Metrics in one figure."""

_WRONG: Final = "confidently_wrong"
CONFIDENT: Final[Mapping[str, str]] = {
    _WRONG: "share of written words that are confidently wrong",
    "confidently_wrong_repaired": "repaired",
    "confidently_wrong_repairable": "repairable from its own list",
    "gate_lockout": "tokens of such words at which the gate keeps the helper out",
}
"""Metrics of words that are confidently wrong, and what they are called in a sentence."""

Points = Mapping[str, Line]
"""Value of the setting -> its line."""


def by_setting(rows: Sequence[Line]) -> list[Chart]:
    """One figure per setting that takes several numbers (a condition, or a number in a system's name).

    Args:
        rows: Lines with and without conditions; those of the reported split are drawn.

    Returns:
        Charts with one panel per metric that changes along the setting, six at most; eight systems at most.
    """
    return [_figure(*each, _panels(each[2])) for each in _by_setting(rows)]


def confident_by_setting(rows: Sequence[Line]) -> list[Chart]:
    """One figure per setting of words that are confidently wrong: how many, what repairs them, what the gate lets in.

    Args:
        rows: As for `by_setting`.

    Returns:
        Charts of the metrics in `CONFIDENT`, with a paragraph; none where no system has confidences.
    """
    charts = []
    for key, split, every in _by_setting(rows):
        curves = {
            name: points for name, points in every.items() if any(_has(line, CONFIDENT) for line in points.values())
        }
        lines = [line for points in curves.values() for line in points.values()]
        metrics = [metric for metric in CONFIDENT if any(_has(line, [metric]) for line in lines)]
        if _WRONG in metrics:
            chart = _figure(key, split, curves, metrics)
            charts.append(replace(chart, name=f"confident_{key}", caption=f"{_told(key, curves)} {chart.caption}"))
    return charts


def _has(line: Line, metrics: Iterable[str]) -> bool:
    return any(line.value(metric) is not None for metric in metrics)


def _told(key: str, curves: Mapping[str, Points]) -> str:
    """What happens to confident mistakes of the first system from one end of the setting to the other, in words."""
    name, points = next((name, p) for name, p in curves.items() if any(v.value(_WRONG) for v in p.values()))
    ends = [level for level in sorted(points, key=by_number) if points[level].value(_WRONG) is not None]
    said = []
    for metric, words in CONFIDENT.items():
        values = [points[level].value(metric) for level in (ends[0], ends[-1])]
        if None not in values:
            said.append(f"{words} {' and '.join(f'{100 * (value or 0.0):.1f} %' for value in values)}")
    others = {
        other: [own[level].value("confidently_wrong_repaired") for level in (ends[0], ends[-1]) if level in own]
        for other, own in curves.items()
        if other != name
    }
    repairs = [
        f"{other} {' and '.join(f'{100 * value:.1f} %' for value in values if value is not None)}"
        for other, values in others.items()
        if len(values) == 2 and None not in values
    ]
    told = f"At {axis_title(key)} {short(ends[0])} and {short(ends[-1])}, {name}: {', '.join(said)}."
    return told + (f" Share of its confident mistakes that others have right: {', '.join(repairs)}." if repairs else "")


def _by_setting(rows: Sequence[Line]) -> list[tuple[str, str, dict[str, dict[str, Line]]]]:
    """Each setting that takes several numbers, with the reported split, and per system its lines by value."""
    found = []
    for key, placed in settings(rows).items():
        split = reported_split([each.line for each in placed])
        curves: dict[str, dict[str, Line]] = {}
        for each in placed:
            if each.line.split == split:
                curves.setdefault(each.name, {})[each.level] = each.line
        curves = {name: points for name, points in curves.items() if len(points) > 1}
        levels = {level for points in curves.values() for level in points}
        if sum(not by_number(level)[0] for level in levels) > 1:
            found.append((key, split, curves))
    return found


def _figure(key: str, split: str, curves: Mapping[str, Points], metrics: Sequence[str]) -> Chart:
    chosen = _few(curves, metrics[0])
    levels = sorted({level for name in chosen for level in curves[name]}, key=by_number)
    lead = label(metrics[0])
    title = f"{lead} by {axis_title(key)}, {split}" if len(metrics) == 1 else f"By {axis_title(key)}, {split}"
    figure, panels = new_rows(6.8, 1.3 + 1.9 * len(metrics), title, len(metrics))
    place, ticks = _places(levels)
    sizes = {level: _size(curves, chosen, level, metrics[0]) for level in levels}
    many = len(set(sizes.values())) > 1
    for axes, metric in zip(panels, metrics, strict=True):
        for index, name in enumerate(chosen):
            _curve(axes, curves[name], metric, place, index, name)
        axes.grid(axis="y", color="#888888", alpha=0.3, linewidth=0.6)
        arrow = "higher is better" if higher_is_better(metric) else "lower is better"
        axes.set_ylabel(f"{label(metric)}{' (%)' if is_percent(metric) else ''}\n{arrow}", fontsize=9)
        if ticks is None:
            axes.set_xscale("log")
        names = [f"{short(level)}\nN = {sizes[level]:,}" if many else short(level) for level in levels]
        axes.set_xticks([place[level] for level in levels], names, color=INK)
        axes.minorticks_off()
        if min(axes.get_ylim()) > 0 and axes.get_ylim()[0] < 0.4 * axes.get_ylim()[1]:
            axes.set_ylim(bottom=0)
    panels[-1].set_xlabel(axis_title(key) + (", logarithmic" if ticks is None else ""))
    legend(panels[0], "system")
    cut = f" {len(chosen)} of {len(curves)} systems are drawn; the table has all." if len(chosen) < len(curves) else ""
    number = "N by value below the axis." if many else f"N = {sizes[levels[0]]:,} utterances ({split})."
    words = ", ".join(label(metric) for metric in metrics)
    caption = f"{words} as {axis_title(key)} changes; bars: 95 % bootstrap intervals. {number}{cut}"
    return Chart("sweep_" + re.sub(r"\W+", "_", key), title, caption, figure)


def _panels(curves: Mapping[str, Points]) -> list[str]:
    """The leading metric, then what changes along the setting, as a reader looks for it."""
    lines = [line for points in curves.values() for line in points.values()]
    lead = primary_metric(lines)
    present = sorted({metric for line in lines for metric in line.metrics} - {lead, "cer"}, key=rank)

    def moves(metric: str) -> bool:
        return any(len({line.value(metric) for line in points.values()} - {None}) > 1 for points in curves.values())

    return [lead, *(metric for metric in present if moves(metric))][:MAX_PANELS]


def _few(curves: Mapping[str, Points], metric: str) -> list[str]:
    """The first system, and those with the best mean; bounds last."""
    if len(curves) <= MAX_CURVES:
        return list(curves)
    first = next(iter(curves))
    sign = -1.0 if higher_is_better(metric) else 1.0

    def mean(name: str) -> tuple[bool, float]:
        values = [value for line in curves[name].values() if (value := line.value(metric)) is not None]
        return (is_bound(name), sign * sum(values) / len(values) if values else float("inf"))

    best = sorted((name for name in curves if name != first), key=mean)[: MAX_CURVES - 1]
    return [name for name in curves if name in (first, *best)]


def _places(levels: Sequence[str]) -> tuple[dict[str, float], bool | None]:
    """Where each value stands, and whether evenly (True), by its number (False), or by its logarithm (None)."""
    numbers = [by_number(level)[1] for level in levels]
    words = any(by_number(level)[0] for level in levels)
    if words or min(numbers) <= 0 or max(numbers) < 10 * min(numbers):
        even = words or len(levels) > 2
        return {level: float(i) if even else n for i, (level, n) in enumerate(zip(levels, numbers, strict=True))}, True
    return dict(zip(levels, numbers, strict=True)), None


def _size(curves: Mapping[str, Points], names: Sequence[str], level: str, metric: str) -> int:
    found = [curves[name][level].metrics.get(metric) for name in names if level in curves[name]]
    return max((record["num_utterances"] for record in found if record), default=0)


def _curve(axes: Any, points: Points, metric: str, place: Mapping[str, float], index: int, name: str) -> None:
    scale = 100 if is_percent(metric) else 1
    levels = [level for level in sorted(points, key=by_number) if points[level].value(metric) is not None]
    if not levels:
        return
    marker, colour = style(index)
    values = [scale * (points[level].value(metric) or 0.0) for level in levels]
    low, high = (
        [scale * (points[level].value(metric, end) or v / scale) for level, v in zip(levels, values, strict=True)]
        for end in ("ci_low", "ci_high")
    )
    spread = [
        [max(0.0, v - end) for v, end in zip(values, low, strict=True)],
        [max(0.0, end - v) for v, end in zip(values, high, strict=True)],
    ]
    xs = [place[level] for level in levels]
    dashes = "--" if is_bound(name) else "-"
    axes.errorbar(
        xs, values, yerr=spread, fmt=marker + dashes, color=colour, label=short(name), capsize=2, elinewidth=0.8
    )


def reliability(records: Sequence[Record]) -> Chart | None:
    """Accuracy against mean confidence of each bin, per system; None without rows of metric `reliability`.

    Args:
        records: RESULTS rows; those of metric `reliability` have conditions `bin` and `mean_confidence`, and the
            share of right words as value.
    """
    rows = [row for row in records if row["metric"] == "reliability" and row["value"] is not None]
    if not rows:
        return None
    split = reported_split([Line(row["corpus"], row["split"], row["system"], {}, {}) for row in rows])
    curves: dict[str, list[Record]] = {}
    for row in rows:
        if row["split"] == split:
            curves.setdefault(row["system"], []).append(row)
    title = f"Reliability of word confidence, {split}"
    figure, axes = new(6.8, 4.2, title)
    axes.plot([0, 100], [0, 100], linestyle=":", color="#888888", label="perfect")
    for index, (name, bins) in enumerate(list(curves.items())[:MAX_CURVES]):
        bins = sorted(bins, key=lambda row: float(row["condition"]["mean_confidence"]))
        xs = [100 * float(row["condition"]["mean_confidence"]) for row in bins]
        ys = [100 * row["value"] for row in bins]
        marker, colour = style(index)
        low = [max(0.0, y - 100 * (row["ci_low"] or row["value"])) for y, row in zip(ys, bins, strict=True)]
        high = [max(0.0, 100 * (row["ci_high"] or row["value"]) - y) for y, row in zip(ys, bins, strict=True)]
        axes.errorbar(xs, ys, yerr=[low, high], fmt=marker + "-", color=colour, label=short(name), capsize=2)
    axes.grid(axis="y", color="#888888", alpha=0.3, linewidth=0.6)
    axes.set_xlabel("mean confidence of the bin (%)")
    axes.set_ylabel("words that are right (%)")
    legend(axes, "system")
    number = max(row["num_utterances"] for bins in curves.values() for row in bins)
    cut = f" The first {MAX_CURVES} of {len(curves)} systems are drawn." if len(curves) > MAX_CURVES else ""
    caption = (
        "Below the dotted line a system is surer than it is right. Each point is one bin of words with about as many "
        f"words as the others. N = {number:,} utterances ({split}).{cut}"
    )
    return Chart("reliability", title, caption, figure)
