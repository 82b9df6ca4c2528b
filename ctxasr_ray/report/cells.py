"""Lines, costs and fits -> the cells of the page's tables: what is read, what is sorted by, and marks."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from ctxasr_ray.report.costs import StepCost
from ctxasr_ray.report.fits import FittedValue
from ctxasr_ray.report.systems import higher_is_better, is_bound, is_percent, label
from ctxasr_ray.report.tables import Line, Record, edits, interval, number, p_value, primary_metric, troubles
from ctxasr_ray.stage import GATHERED

MAX_ROWS: Final = 500
"""Lines of one table on the page; results.json holds all."""
MAX_RECORDS: Final = 1500
"""Rows of RESULTS on the page."""

Cell = Mapping[str, Any]
"""`text`, `sort` (what the column is sorted by), and where they apply `number`, `small`, `mark`, `pairs`, `key`,
`help` (shown on hovering) and `tone` (good, bad)."""


def results(rows: Sequence[Line], records: Sequence[Record]) -> dict[str, Any]:
    """The template's variables for the leading metric in detail and for the table of every figure."""
    metric = primary_metric(rows)
    high = top(rows, metric)
    lowest = best_lines(rows, metric)
    several = len({row.corpus for row in rows}) > 1
    heads = [*([head("corpus")] if several else []), head("split"), head("system") | {"key": True}]
    heads += [
        head(f"{label(metric)} %", "error rate, lower is better", number=True),
        head("95 % interval", "sorted by its lower end"),
        head("change", "points against the baseline, minus is better", number=True),
        head("its 95 % interval", "paired over the same utterances"),
        head(
            "p", "probability of such a change if there were none; adj.: corrected for all that was tried", number=True
        ),
        head("S/D/I", "substitutions/deletions/insertions, sorted by their sum", number=True),
        head("N", "utterances", number=True),
        head("tried", "configurations that were compared before this one was chosen", number=True),
    ]
    body = []
    for row in rows[:MAX_ROWS]:
        start = ([text_cell(row.corpus)] if several else []) + [text_cell(row.split), system_cell(row)]
        rate = _rate_cells(row, metric, rows, high)
        best = lowest.get((row.corpus, row.split)) is row
        body.append({"cells": [*start, *rate], "best": best, "split": row.split})
    return {
        "metric": label(metric),
        "heads": heads,
        "rows": body,
        "hidden_rows": max(0, len(rows) - MAX_ROWS),
        "scale": f"{number(metric, high)} %" if is_percent(metric) else number(metric, high),
        "num_records": f"{len(records):,}",
        "hidden_records": f"{max(0, len(records) - MAX_RECORDS):,}" if len(records) > MAX_RECORDS else "",
        "all_heads": _ALL_HEADS,
        "all_rows": [_all_row(record) for record in records[:MAX_RECORDS]],
    }


def top(rows: Sequence[Line], metric: str) -> float:
    """The end of the scale on which all lines of a metric are drawn."""
    return max((row.value(metric, "ci_high") or row.value(metric) or 0.0 for row in rows), default=0.0) or 1.0


def best_lines(rows: Sequence[Line], metric: str) -> dict[tuple[str, str], Line]:
    """The best line of each corpus and split, bounds apart."""
    best: dict[tuple[str, str], Line] = {}
    sign = -1 if higher_is_better(metric) else 1
    for row in rows:
        value, group = row.value(metric), (row.corpus, row.split)
        if value is not None and not is_bound(row.system):
            found = best.get(group)
            if found is None or sign * value < sign * (found.value(metric) or 0.0):
                best[group] = row
    return best


def head(text: str, help_: str = "", *, number: bool = False) -> dict[str, Any]:
    """A column's head with what it means."""
    return {"text": text, "help": help_, "number": number, "key": False}


def text_cell(value: str) -> dict[str, Any]:
    """A cell of words."""
    return {"text": value, "sort": value}


def system_cell(row: Line) -> dict[str, Any]:
    """The cell that stays in view on a narrow screen; a bound says so."""
    return {"text": row.label, "sort": row.label, "key": True, "small": "bound" if is_bound(row.system) else ""}


def number_cell(shown: str, value: float | None, small: str = "") -> dict[str, Any]:
    """A cell that is sorted by its number; missing ones stay last."""
    return {"text": shown, "sort": "" if value is None else repr(value), "number": True, "small": small}


def _rate_cells(row: Line, metric: str, rows: Sequence[Line], high: float) -> list[Cell]:
    record = row.metrics.get(metric)
    if record is None:
        return [number_cell("-", None)] * 8
    value, low, top = record["value"], record["ci_low"], record["ci_high"]
    compared = record["delta"] is not None and record["baseline"] != row.system
    baseline = value - record["delta"] if compared and value is not None else None
    strip = mark(value, low, top, 0.0, high, baseline) if value is not None else ""
    bounds = {"text": "", "sort": "" if low is None else repr(low), "small": interval(metric, low, top), "mark": strip}
    delta = record["delta"] if compared else None
    paired = interval(metric, record["delta_ci_low"], record["delta_ci_high"], signed=True) if compared else ""
    counts = record["counts"]
    wrong = sum(counts.get(name, 0) for name in ("substitutions", "deletions", "insertions"))
    return [
        number_cell(number(metric, value), value),
        bounds,
        number_cell(number(metric, delta, signed=True) if compared else "", delta),
        {"text": paired, "sort": "" if not paired else repr(record["delta_ci_low"])},
        _p_cell(record) if compared else number_cell("", None),
        number_cell(edits(record), wrong if counts else None),
        number_cell(f"{record['num_utterances']:,}", record["num_utterances"], troubles(record)),
        number_cell(f"{record['num_configurations']:,}", record["num_configurations"]),
    ]


def _p_cell(record: Record) -> dict[str, Any]:
    adjusted, chance = record.get("p_value_adjusted"), record.get("probability_of_improvement")
    said = "" if chance is None else f"better in {100 * chance:.1f} % of the resamples"
    small = "" if adjusted is None else f"adj. {p_value(adjusted)}"
    return number_cell(p_value(record["p_value"]), record["p_value"], small) | {"help": said}


def mark(
    value: float, low: float | None, high: float | None, start: float, end: float, base: float | None, width: int = 120
) -> Any:
    """A strip 16 pixels high: the interval as a line, the value as a dot, the baseline as a thin upright line."""
    from markupsafe import Markup

    def x(number: float) -> str:
        share = (number - start) / ((end - start) or 1.0)
        return f"{4 + (width - 8) * min(1.0, max(0.0, share)):.1f}"

    parts = [f'<line class="axis" x1="4" y1="8" x2="{x(end)}" y2="8"/>']
    if base is not None:
        parts.append(f'<line class="base" x1="{x(base)}" y1="1" x2="{x(base)}" y2="15"/>')
    if low is not None and high is not None:
        parts.append(f'<line class="range" x1="{x(low)}" y1="8" x2="{x(high)}" y2="8"/>')
    parts.append(f'<circle class="dot" cx="{x(value)}" cy="8" r="{3.2 if width > 100 else 2.6}"/>')
    return Markup(f'<svg class="mark" width="{width}" height="16" aria-hidden="true">{"".join(parts)}</svg>')


_ALL_HEADS: Final = (
    "corpus", "split", "system", "condition", "metric", "unit", "value", "interval", "baseline", "change", "p",
    "utterances", "failed", "unscored", "blocks", "tried",
)  # fmt: skip


def _all_row(record: Record) -> list[tuple[str, str]]:
    metric, condition = record["metric"], ", ".join(f"{k}={v}" for k, v in record["condition"].items())
    texts = [record["corpus"], record["split"], record["system"], condition, metric, record["unit"]]
    value, delta, p = record["value"], record["delta"], record["p_value"]
    numbers = [record[f"num_{n}"] for n in ("utterances", "failed", "unscored", "blocks", "configurations")]
    return [
        *((text, text) for text in texts),
        ("" if value is None else repr(value), "-" if value is None else f"{value:.5f}"),
        ("", "" if record["ci_low"] is None else f"[{record['ci_low']:.5f}, {record['ci_high']:.5f}]"),
        (record["baseline"] or "", record["baseline"] or ""),
        ("" if delta is None else repr(delta), "" if delta is None else f"{delta:+.5f}"),
        ("" if p is None else repr(p), "" if p is None else p_value(p)),
        *(("" if n is None else str(n), "-" if n is None else f"{n:,}") for n in numbers),
    ]


COST_HEADS: Final = (
    head("step"),
    head("device"),
    head("shards", number=True),
    head("rows", "rows written: utterances, or lines of a gathered table", number=True),
    head("work (s)", "busy wall seconds, summed over shards", number=True),
    head("ms / utterance", "work without model loading", number=True),
    head("s / audio s", "work without model loading", number=True),
    head("seconds in"),
    head("counters"),
)


def costs(steps: Sequence[StepCost], audio_s: float | None) -> list[list[Cell]]:
    """One row per step for the cost table.

    Args:
        steps: From `costs.by_step`.
        audio_s: Seconds of audio of the whole run, None where unknown.
    """
    return [_cost_row(step, audio_s) for step in steps]


def _cost_row(step: StepCost, audio_s: float | None) -> list[Cell]:
    per_utterance = step.rows and step.table not in GATHERED
    each = 1000 * step.warm_s / step.rows if per_utterance else None
    rate = step.warm_s / audio_s if audio_s else None
    kinds = {**step.seconds, "other": step.other_s}
    return [
        text_cell(step.step),
        text_cell(step.device),
        number_cell(f"{step.num_shards:,}", step.num_shards),
        number_cell(f"{step.rows:,}", step.rows),
        number_cell(f"{step.wall_s:,.2f}", step.wall_s),
        number_cell("-" if each is None else f"{each:,.2f}", each),
        number_cell("-" if rate is None else f"{rate:.4f}", rate),
        {"sort": repr(step.wall_s), "pairs": [(k, f"{v:,.2f}") for k, v in kinds.items() if v >= 0.005]},
        {"sort": "", "pairs": [_counter(name, value) for name, value in step.counters.items() if value]},
    ]


UTTERANCE_HEADS: Final = (
    head("step"),
    head("per utterance"),
    head("utterances", number=True),
    head("mean", number=True),
    head("median", number=True),
    head("95 %", "nineteen of twenty utterances have no more", number=True),
    head("most", number=True),
)


def utterance_costs(steps: Sequence[StepCost]) -> list[list[Cell]]:
    """One row per step and counter that utterances have of their own: calls of a language model, nodes, memory."""
    rows: list[list[Cell]] = []
    for step in steps:
        for name, values in step.utterances.items():
            drawn = (np.mean(values), np.median(values), np.percentile(values, 95), np.max(values))
            scale, unit = (1e6, " (MB)") if name.endswith("_bytes") else (1.0, "")
            cells = [number_cell(f"{value / scale:,.{2 if unit else 1}f}", float(value)) for value in drawn]
            what = text_cell(name.removesuffix("_bytes").replace("_", " ") + unit)
            rows.append([text_cell(step.step), what, number_cell(f"{len(values):,}", len(values)), *cells])
    return rows


def _counter(name: str, value: int) -> tuple[str, str]:
    """Bytes in megabytes, everything else as it was counted."""
    if name.endswith("_bytes") and value >= 100_000:
        return name.removesuffix("_bytes").replace("_", " "), f"{value / 1e6:,.1f} MB"
    return name.replace("_", " "), f"{value:,}"


def fits(values: Sequence[FittedValue]) -> list[dict[str, Any]]:
    """One row per fitted value; its intervals as numbers, the widest of them and the value as a strip."""
    rows = []
    for value in values:
        spans = [span for span in (value.optimal, value.flat, value.bootstrap) if span]
        ends = [value.value, 0.0, *(end for span in spans for end in span)]
        low, high = (min(e[0] for e in spans), max(e[1] for e in spans)) if spans else (None, None)
        score = f" = {value.objective_value:.6g}" if value.objective_value is not None else ""
        rows.append(
            {
                "fit": value.fit,
                "name": value.name,
                "value": f"{value.value:.4g}",
                "mark": mark(value.value, low, high, min(ends), max(ends), None),
                "optimal": _span(value.optimal),
                "flat": _span(value.flat),
                "bootstrap": _span(value.bootstrap),
                "optima": "-" if value.num_optima is None else str(value.num_optima),
                "objective": value.objective + score,
                "split": value.split,
                "tried": f"{value.num_configurations:,}",
            }
        )
    return rows


def _span(ends: tuple[float, float] | None) -> str:
    return "-" if ends is None else f"[{ends[0]:.4g}, {ends[1]:.4g}]"
