"""Error rates and costs of systems -> what accuracy costs: a figure per cost with the frontier drawn in."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from ctxasr_ray.report.costs import by_step
from ctxasr_ray.report.drawing import COLOURS, INK, MARKERS, Chart, legend, new, short
from ctxasr_ray.report.systems import family, is_bound, label
from ctxasr_ray.report.tables import Line, main_lines, primary_metric, reported_split

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_NAMED: Final = 12
"""Systems that the legend can name one by one; above it names families, and the caption the frontier."""
MAX_ON_FRONTIER: Final = 8
"""Points of it that may be numbered; their names stand in the caption."""

CALLS: Final = "llm_calls"
"""The counter of a receipt that says how often a language model was asked: forward passes."""


@dataclass(frozen=True, slots=True)
class Point:
    """One system: what it costs and how often it errs."""

    line: Line
    cost: float
    rate: float


def frontier(points: Sequence[Point]) -> list[Point]:
    """The points that no other one beats: as cheap and better, or as good and cheaper; cheapest first."""
    found: list[Point] = []
    for point in sorted(points, key=lambda point: (point.cost, point.rate)):
        if not found or point.rate < found[-1].rate:
            found.append(point)
    return found


def against_real_time_factor(rows: Sequence[Line]) -> Chart | None:
    """Error rate against real-time factor on the reported split; None with fewer than two systems that have both."""
    costs = {(row.corpus, row.label): row.value("real_time_factor") for row in _reported(rows)}
    return against(rows, costs, "error_against_cost", "work", "real-time factor (s of work per s of audio)")


def against_calls(rows: Sequence[Line], system_costs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Chart | None:
    """Error rate against language-model calls per utterance on the reported split.

    Args:
        rows: Lines of the run.
        system_costs: System -> receipts of all steps that it needs, as `Store.costs` gives them.

    Returns:
        None with fewer than two systems, or where none asks a language model.
    """
    reported = _reported(rows)
    split = reported_split(reported)
    costs: dict[tuple[str, str], float | None] = {}
    for row in reported:
        own = [cost for cost in system_costs.get(row.system, ()) if cost.get("split", split) == split]
        metric = row.metrics.get(primary_metric(rows))
        if own and metric and metric["num_utterances"]:
            calls = sum(step.counters.get(CALLS, 0) for step in by_step(own))
            costs[row.corpus, row.label] = calls / metric["num_utterances"]
    if not any(costs.values()):
        return None
    return against(
        rows, costs, "error_against_calls", "language-model calls", "language-model forward passes / utterance"
    )


def _reported(rows: Sequence[Line]) -> list[Line]:
    main = main_lines(rows)
    split = reported_split(main)
    return [row for row in main if row.split == split and not is_bound(row.system)]


def against(
    rows: Sequence[Line], costs: Mapping[tuple[str, str], float | None], name: str, what: str, axis: str
) -> Chart | None:
    """Error rate against a cost on the reported split.

    Args:
        rows: Lines of the run.
        costs: Corpus and label of a line -> what it costs; without a cost it is left out.
        name: Of the file.
        what: The cost, as the title calls it.
        axis: The same with its unit.

    Returns:
        None with fewer than two systems that have both.
    """
    metric = primary_metric(rows)
    points = []
    for row in _reported(rows):
        cost, rate = costs.get((row.corpus, row.label)), row.value(metric)
        if cost is not None and rate is not None:
            points.append(Point(row, cost, 100 * rate))
    if len(points) < 2:
        return None
    split = points[0].line.split
    title = f"{label(metric)} against {what}, {split}"
    best = frontier(points)
    figure, axes = new(6.8, 4.2, title)
    axes.step(
        [p.cost for p in best], [p.rate for p in best], where="post", color="#888888", linestyle="--", label="frontier"
    )
    groups: dict[str, list[Point]] = {}
    for point in points:
        groups.setdefault(point.line.label if len(points) <= MAX_NAMED else family(point.line.system), []).append(point)
    for index, (group, members) in enumerate(groups.items()):
        # Twelve and more series share eight colours and shapes; the shape moves on with every round of colours.
        marker, colour = MARKERS[(index + index // len(COLOURS)) % len(MARKERS)], COLOURS[index % len(COLOURS)]
        xs, ys = [p.cost for p in members], [p.rate for p in members]
        low = [max(0.0, p.rate - 100 * (p.line.value(metric, "ci_low") or p.rate / 100)) for p in members]
        high = [max(0.0, 100 * (p.line.value(metric, "ci_high") or p.rate / 100) - p.rate) for p in members]
        axes.errorbar(xs, ys, yerr=[low, high], fmt="none", ecolor=colour, elinewidth=0.7, alpha=0.5)
        axes.plot(xs, ys, marker, color=colour, label=short(group), markersize=7)
    axes.grid(axis="y", color="#888888", alpha=0.3, linewidth=0.6)
    positive = [p.cost for p in points if p.cost > 0]
    if positive and max(positive) > 20 * min(positive):
        axes.set_xscale("log" if len(positive) == len(points) else "symlog", **_linear(positive, len(points)))
        ticks = _ticks(min(positive), max(positive))
        axes.set_xticks(ticks if len(positive) == len(points) else [0.0, *ticks])
        axes.xaxis.set_major_formatter("{x:g}")  # mathematics is not set: a name from outside may hold its signs
        axis += ", logarithmic"
    axes.margins(0.1)
    axes.set_xlabel(axis)
    axes.set_ylabel(f"{label(metric)} (% of reference {'characters' if metric == 'cer' else 'words'})")
    legend(axes, "system" if len(points) <= MAX_NAMED else "family")
    number = max(p.line.metrics[metric]["num_utterances"] for p in points)
    caption = (
        f"Lower left is better; no system beats those on the dashed frontier in both. {len(points)} systems, "
        f"N = {number:,} utterances ({split}); bars: 95 % intervals."
    )
    if len(points) > MAX_NAMED:
        named = _apart(axes, best)
        for place, point in enumerate(named, 1):  # names would stand on each other
            at = (point.cost, point.rate)
            axes.annotate(str(place), at, (4, 4), textcoords="offset points", fontsize=8, weight="bold", color=INK)
        others = "" if len(named) == len(best) else ", among others"
        caption += f" On the frontier{others}: {', '.join(f'{n} {p.line.label}' for n, p in enumerate(named, 1))}."
    return Chart(name, title, caption, figure)


def _apart(axes: "Axes", best: Sequence[Point]) -> list[Point]:
    """Points of a frontier with room for a number each, cheapest first; of two that have none, the better one."""
    axes.autoscale_view()
    to_fractions = axes.transScale + axes.transLimits
    named: list[Point] = []
    taken: list[tuple[float, float]] = []
    for point in reversed(best):
        x, y = to_fractions.transform((point.cost, point.rate))
        if len(named) < MAX_ON_FRONTIER and all(abs(x - a) > 0.03 or abs(y - b) > 0.04 for a, b in taken):
            named.append(point)
            taken.append((x, y))
    return named[::-1]


def _ticks(low: float, high: float) -> list[float]:
    """Powers of ten between two costs; with a single one or none also their doubles and fivefolds."""
    exponents = range(math.floor(math.log10(low)), math.floor(math.log10(high)) + 1)
    ticks = [m * 10.0**n for n in exponents for m in (1, 2, 5) if low <= m * 10.0**n <= high]
    powers = [10.0**n for n in exponents if 10.0**n >= low]
    return ticks if len(powers) < 2 else powers


def _linear(positive: Sequence[float], number: int) -> dict[str, float]:
    """A logarithmic axis has no zero; between zero and the smallest cost it is linear."""
    return {} if len(positive) == number else {"linthresh": min(positive)}
