"""Lines and slices -> the tables that set systems beside each other: every metric at a glance, and one by condition."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ctxasr_ray.report.cells import MAX_ROWS, best_lines, head, mark, number_cell, system_cell, text_cell
from ctxasr_ray.report.systems import higher_is_better, is_percent, label, meaning, rank, setting
from ctxasr_ray.report.tables import Line, Record, columns, interval, number

MAX_LEVELS: Final = 12
"""Values of a condition that still make columns; curves show more."""


def overview(rows: Sequence[Line]) -> dict[str, Any]:
    """One row per system and split, one column per metric, each value with its interval as a small mark.

    Args:
        rows: From `tables.main_lines`.

    Returns:
        `heads`, `rows` (`cells`, `split`), `metrics` (name and meaning of each column).
    """
    metrics = columns(rows)
    several = len({row.corpus for row in rows}) > 1
    heads = [*([head("corpus")] if several else []), head("split"), head("system") | {"key": True}]
    heads += [head(_title(metric), meaning(metric), number=True) for metric in metrics]
    ends = {metric: _scale([row.metrics[metric] for row in rows if metric in row.metrics]) for metric in metrics}
    best = {metric: best_lines(rows, metric) for metric in metrics}
    body = []
    for row in rows[:MAX_ROWS]:
        start = ([text_cell(row.corpus)] if several else []) + [text_cell(row.split), system_cell(row)]
        values = []
        for metric in metrics:
            found = value_cell(row.metrics.get(metric), metric, ends[metric])
            is_best = best[metric].get((row.corpus, row.split)) is row
            values.append(found | {"best": is_best and len(rows) > 2})
        body.append({"cells": [*start, *values], "split": row.split, "best": False})
    return {"heads": heads, "rows": body, "metrics": [(label(metric), meaning(metric)) for metric in metrics]}


def _title(metric: str) -> str:
    return f"{label(metric)} %" if is_percent(metric) else label(metric)


def _scale(records: Sequence[Record]) -> tuple[float, float]:
    """From the lowest to the highest end of any interval: marks are there to be told apart."""
    ends = [record[name] for record in records for name in ("value", "ci_low", "ci_high") if record[name] is not None]
    return min(ends, default=0.0), max(ends, default=1.0)


def value_cell(record: Record | None, metric: str, scale: tuple[float, float], width: int = 72) -> dict[str, Any]:
    """A value with its mark; its tone says whether the paired interval against the baseline leaves out zero."""
    if record is None or record["value"] is None:
        return number_cell("-", None)
    value, low, high = record["value"], record["ci_low"], record["ci_high"]
    compared = record["delta"] is not None and record["baseline"] not in (None, record["system"])
    base = value - record["delta"] if compared else None
    said = [f"{number(metric, value)} {interval(metric, low, high)}".strip()]
    if compared:
        paired = interval(metric, record["delta_ci_low"], record["delta_ci_high"], signed=True)
        said.append(f"{number(metric, record['delta'], signed=True)} {paired} against {record['baseline']}")
    cell = number_cell(number(metric, value), value) | {"help": "; ".join(said), "tone": _tone(record, metric)}
    return cell | {"mark": mark(value, low, high, *scale, base, width)}


def _tone(record: Record, metric: str) -> str:
    low, high = record["delta_ci_low"], record["delta_ci_high"]
    if low is None or high is None or low <= 0 <= high:
        return ""
    return "good" if (low > 0) == higher_is_better(metric) else "bad"


# -- by condition


@dataclass(frozen=True, kw_only=True, slots=True)
class ConditionTable:
    """One setting that takes several values: systems down, values across."""

    title: str
    heads: Sequence[Mapping[str, Any]]
    rows: Sequence[Mapping[str, Any]]
    note: str


@dataclass(frozen=True, slots=True)
class Placed:
    """A line at one value of a setting."""

    line: Line
    name: str
    """The system without the setting, with its other conditions."""
    level: str
    """The value, as it is written."""


def by_setting(rows: Sequence[Line]) -> dict[str, list[Placed]]:
    """Setting -> lines that have it: as a condition, or as a number in the system's name (`lm_rescoring/n16`)."""
    found: dict[str, list[Placed]] = {}
    for row in rows:
        named = setting(row.system)
        for key, level in row.condition.items():
            rest = {name: value for name, value in row.condition.items() if name != key}
            system = named[0] if named and named[1] == key else row.system
            found.setdefault(key, []).append(Placed(row, Line(row.corpus, row.split, system, rest, {}).label, level))
        if named and not row.condition:
            found.setdefault(named[1], []).append(Placed(row, named[0], named[2]))
    return found


def corpora_as_settings(rows: Sequence[Line]) -> list[Line]:
    """Lines of corpora that differ in a number with a unit, under that condition: `synthetic_snr_db_20` is snr_db 20.

    Args:
        rows: Lines without conditions are read, others are left out.
    """
    found = []
    for row in rows:
        named = _CORPUS.fullmatch(row.corpus)
        if named and not row.condition:
            found.append(Line(named[1], row.split, row.system, {named[2]: named[3]}, row.metrics))
    return found


def condition_tables(rows: Sequence[Line]) -> list[ConditionTable]:
    """One table per setting with 2 to 12 values (SNR, list size, N, interval, ...), all metrics one below the other."""
    tables = []
    for key, placed in by_setting(rows).items():
        levels = sorted({each.level for each in placed}, key=by_number)
        if 2 <= len(levels) <= MAX_LEVELS:
            tables.append(_condition_table(key, levels, placed))
    return [table for table in tables if table.rows]


def by_number(level: str) -> tuple[bool, float, str]:
    """Sorts values of a setting: numbers in their order, words after them."""
    try:
        return (False, float(level), "")
    except ValueError:
        return (True, 0.0, level)


def _condition_table(key: str, levels: Sequence[str], placed: Sequence[Placed]) -> ConditionTable:
    groups: dict[tuple[str, str, str], dict[str, Record]] = {}
    for each in placed:
        for metric, record in each.line.metrics.items():
            groups.setdefault((metric, each.line.split, each.name), {})[each.level] = record
    metrics = dict.fromkeys(metric for metric, _, _ in groups)
    scales = {
        metric: _scale([record for group, found in groups.items() if group[0] == metric for record in found.values()])
        for metric in metrics
    }
    body = []
    for metric, split, name in sorted(groups, key=lambda group: rank(group[0])):
        found = groups[metric, split, name]
        if len(found) < 2:
            continue
        values = [value_cell(found.get(level), metric, scales[metric]) for level in levels]
        start = [text_cell(_title(metric)), text_cell(split), text_cell(name) | {"key": True}]
        body.append({"cells": [*start, *values], "split": split, "best": False})
    heads = [head("metric"), head("split"), head("system") | {"key": True}]
    heads += [head(level, f"{axis_title(key)} {level}", number=True) for level in levels]
    left_out = f"; {len(body) - MAX_ROWS:,} further rows stand in results.json" if len(body) > MAX_ROWS else ""
    note = f"Columns: {axis_title(key)}. Marks: 95 % intervals, one scale per metric{left_out}."
    return ConditionTable(title=f"By {axis_title(key)}", heads=heads, rows=body[:MAX_ROWS], note=note)


_UNITS: Final = {"db": "dB", "s": "s", "hz": "Hz"}
_CORPUS: Final = re.compile(rf"(.+?)_([a-z]+_(?:{'|'.join(_UNITS)}))_(\d+(?:\.\d+)?)")


def axis_title(key: str) -> str:
    """A setting's name with its unit, which stands behind the last underscore where there is one."""
    name, _, unit = key.rpartition("_")
    if not name or unit not in _UNITS:
        return key.replace("_", " ")
    return f"{name.upper() if name == 'snr' else name.replace('_', ' ')} ({_UNITS[unit]})"
