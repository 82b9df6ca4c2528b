"""Lines, costs and fits -> the cells of the page's tables: what is read, what is sorted by, and marks."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from ctxasr_ray.report.costs import StepCost
from ctxasr_ray.report.fits import FittedValue
from ctxasr_ray.report.tables import (
    Line,
    Record,
    columns,
    edits,
    interval,
    is_percent,
    label,
    number,
    p_value,
    troubles,
)
from ctxasr_ray.stage import GATHERED

MAX_ROWS: Final = 500
"""Rows of one table on the page; results.json holds all."""

Cell = Mapping[str, Any]
"""`text`, `sort` (what the column is sorted by), and where they apply `number`, `small`, `mark`, `pairs`, `key`."""


def results(rows: Sequence[Line], records: Sequence[Record]) -> dict[str, Any]:
    """The template's variables for both results tables: heads, rows, scale of the marks, every figure."""
    metric, *others = columns(rows)
    high = max((row.value(metric, "ci_high") or row.value(metric) or 0.0 for row in rows), default=0.0) or 1.0
    lowest = _lowest(rows, metric)
    several = len({row.corpus for row in rows}) > 1
    heads = [*([_head("corpus")] if several else []), _head("split"), _head("system") | {"key": True}]
    heads += [
        _head(f"{label(metric)} %", "error rate, lower is better", number=True),
        _head("95 % interval", "sorted by its lower end"),
        _head("change", "points against the baseline, minus is better", number=True),
        _head("its 95 % interval", "paired over the same utterances"),
        _head("p", "probability of such a change if there were none", number=True),
        _head("S/D/I", "substitutions/deletions/insertions, sorted by their sum", number=True),
        _head("N", "utterances", number=True),
        *(_head(f"{label(m)} %" if is_percent(m) else label(m), m, number=True) for m in others),
    ]
    body = []
    for row in rows[:MAX_ROWS]:
        start = ([_text(row.corpus)] if several else []) + [_text(row.split), _text(row.label) | {"key": True}]
        rest = [_number(number(m, row.value(m)), row.value(m)) for m in others]
        rate = _rate_cells(row, metric, rows, high)
        body.append({"cells": [*start, *rate, *rest], "best": lowest.get((row.corpus, row.split)) is row})
    return {
        "heads": heads,
        "rows": body,
        "hidden_rows": max(0, len(rows) - MAX_ROWS),
        "scale": f"{number(metric, high)} %" if is_percent(metric) else number(metric, high),
        "num_records": f"{len(records):,}",
        "all_heads": _ALL_HEADS,
        "all_rows": [_all_row(record) for record in records[:MAX_ROWS]],
    }


def _lowest(rows: Sequence[Line], metric: str) -> dict[tuple[str, str], Line]:
    best: dict[tuple[str, str], Line] = {}
    for row in rows:
        value, group = row.value(metric), (row.corpus, row.split)
        if value is not None and row.system != "oracle":
            found = best.get(group)
            if found is None or value < (found.value(metric) or 0.0):
                best[group] = row
    return best


def _head(text: str, help_: str = "", *, number: bool = False) -> dict[str, Any]:
    return {"text": text, "help": help_, "number": number, "key": False}


def _text(value: str) -> dict[str, Any]:
    return {"text": value, "sort": value}


def _number(shown: str, value: float | None, small: str = "") -> dict[str, Any]:
    return {"text": shown, "sort": "" if value is None else repr(value), "number": True, "small": small}


def _rate_cells(row: Line, metric: str, rows: Sequence[Line], high: float) -> list[Cell]:
    record = row.metrics.get(metric)
    if record is None:
        return [_number("-", None)] * 7
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
        _number(number(metric, value), value),
        bounds,
        _number(number(metric, delta, signed=True) if compared else "", delta),
        {"text": paired, "sort": "" if not paired else repr(record["delta_ci_low"])},
        _number(p_value(record["p_value"]) if compared else "", record["p_value"] if compared else None),
        _number(edits(record), wrong if counts else None),
        _number(f"{record['num_utterances']:,}", record["num_utterances"], troubles(record)),
    ]


def mark(value: float, low: float | None, high: float | None, start: float, end: float, base: float | None) -> Any:
    """A strip of 120 x 16 pixels: the interval as a line, the value as a dot, the baseline as a thin upright line."""
    from markupsafe import Markup

    def x(number: float) -> str:
        return f"{4 + 112 * (number - start) / ((end - start) or 1.0):.1f}"

    parts = [f'<line class="axis" x1="4" y1="8" x2="{x(end)}" y2="8"/>']
    if base is not None:
        parts.append(f'<line class="base" x1="{x(base)}" y1="1" x2="{x(base)}" y2="15"/>')
    if low is not None and high is not None:
        parts.append(f'<line class="range" x1="{x(low)}" y1="8" x2="{x(high)}" y2="8"/>')
    parts.append(f'<circle class="dot" cx="{x(value)}" cy="8" r="3.2"/>')
    return Markup(f'<svg class="mark" width="120" height="16" aria-hidden="true">{"".join(parts)}</svg>')


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
    _head("step"),
    _head("device"),
    _head("shards", number=True),
    _head("rows", "rows written: utterances, or lines of a gathered table", number=True),
    _head("work (s)", "busy wall seconds, summed over shards", number=True),
    _head("ms / utterance", "work without model loading", number=True),
    _head("s / audio s", "work without model loading", number=True),
    _head("seconds in"),
    _head("counters"),
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
        _text(step.step),
        _text(step.device),
        _number(f"{step.num_shards:,}", step.num_shards),
        _number(f"{step.rows:,}", step.rows),
        _number(f"{step.wall_s:,.2f}", step.wall_s),
        _number("-" if each is None else f"{each:,.2f}", each),
        _number("-" if rate is None else f"{rate:.4f}", rate),
        {"sort": repr(step.wall_s), "pairs": [(k, f"{v:,.2f}") for k, v in kinds.items() if v >= 0.005]},
        {"sort": "", "pairs": [_counter(name, value) for name, value in step.counters.items() if value]},
    ]


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
