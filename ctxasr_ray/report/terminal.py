"""RESULTS -> what a terminal shows at the end of a run: error rates, and below them keywords where a list was given."""

from collections.abc import Sequence
from itertools import groupby
from typing import Final

import pyarrow as pa
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from ctxasr_ray.report.systems import is_percent, label
from ctxasr_ray.report.tables import (
    Line,
    cells,
    columns,
    interval,
    legend,
    lines,
    main_lines,
    number,
    results_records,
    troubles,
)

MAX_LINES: Final = 60
"""Longer tables leave lines by condition to the page, then the oracles of all lists but the first pass's."""
FIRST_ORACLES: Final = ("oracle", "oracle/compositional")
"""Bounds of the first pass's own lists."""
KEYWORDS: Final = ("biased_wer", "keyword_recall", "keyword_precision", "keyword_f1", "distractor_false_alarms")
"""Columns of the second table, shown where a run counts phrases of a catalogue..."""
BOUNDED: Final = KEYWORDS[:3]
"""...and those with their intervals; the page has all."""


def terminal_tables(results: pa.Table) -> Group:
    """The results as rich tables: a row per system under its split, with a legend below.

    Args:
        results: A table that `schema.conform` accepts as "results".

    Returns:
        A renderable for `rich.print`; rates and intervals share a line from 95 columns. Systems whose keywords were
        counted stand in a second table.

    Raises:
        ContractError: the table breaks the RESULTS schema.
    """
    rows = every = lines(results_records(results))
    if len(rows) > MAX_LINES:
        rows = main_lines(rows)
    if len(rows) > MAX_LINES:
        rows = [row for row in rows if row.system in FIRST_ORACLES or not row.system.startswith("oracle/")]
    cut = [f"{len(every) - len(rows):,} lines more stand on the page."] if len(rows) < len(every) else []
    shown = [_error_rates(rows, [*legend(rows), *cut])]
    counted = [row for row in rows if row.value("keyword_f1") is not None]
    return Group(*shown, *([_keywords(counted)] if counted else []))


def _error_rates(rows: Sequence[Line], said: Sequence[str]) -> Table:
    metric, *others = columns(rows)
    shown = [other for other in others if other in ("cer", "real_time_factor")]
    table = _table(said)
    table.add_column(f"{label(metric)} %", min_width=13)
    table.add_column("change", min_width=14)
    table.add_column("p", justify="right", no_wrap=True)
    for head in ("S/D/I", *map(_head, shown)):
        table.add_column(head, justify="right", no_wrap=True)
    # A system that was counted on other utterances stands under a number of its own.
    for title, group in groupby(rows, lambda row: _title(row, rows, cells(row, metric)[-1])):
        table.add_section()
        table.add_row(Text(title, style="bold"))
        for row in group:
            rate, bounds, delta, delta_bounds, p, counts, _ = cells(row, metric)
            trouble = troubles(row.metrics[metric]) if metric in row.metrics else ""
            name = f" {row.label} ({trouble})" if trouble else f" {row.label}"
            body = [_joined(rate, bounds), _joined(delta, delta_bounds)]
            rest = [p, counts, *(number(other, row.value(other)) for other in shown)]
            table.add_row(*(Text(cell) for cell in (name, *body, *rest)))
    return table


def _keywords(rows: Sequence[Line]) -> Table:
    shown = [metric for metric in KEYWORDS if any(metric in row.metrics for row in rows)]
    said = [
        "B-WER: words of the spoken phrases, common words apart.",
        "recall, precision, F1: of the catalogue's phrases; false alarms: phrases written though not spoken.",
        "Without a catalogue only phrases that were spoken count, so precision is 100.",
    ]
    table = _table(said)
    for metric in shown:
        wide = 13 if metric in BOUNDED else None
        table.add_column(_head(metric).removeprefix("keyword "), justify="right", min_width=wide)
    size = {id(row): f"{row.metrics['keyword_f1']['num_utterances']:,}" for row in rows}
    for title, group in groupby(rows, lambda row: _title(row, rows, size[id(row)])):
        table.add_section()
        table.add_row(Text(title, style="bold"))
        for row in group:
            found = [_joined(number(m, row.value(m)), _bounds(row, m) if m in BOUNDED else "") for m in shown]
            table.add_row(*(Text(cell) for cell in (f" {row.label}", *found)))
    return table


def _table(said: Sequence[str]) -> Table:
    # Text, not str: names from outside may hold square brackets, which rich would read as markup.
    caption = Text("\n".join(said))
    table = Table(box=box.SIMPLE_HEAD, caption=caption, caption_justify="left", pad_edge=False, padding=0)
    table.add_column("split, system", overflow="fold", min_width=14)
    return table


def _title(row: Line, rows: Sequence[Line], size: str) -> str:
    several = len({each.corpus for each in rows}) > 1
    return f"{row.corpus}, {row.split}, N={size}" if several else f"{row.split}, N={size}"


def _head(metric: str) -> str:
    return f"{label(metric)} %" if is_percent(metric) else label(metric)


def _bounds(row: Line, metric: str) -> str:
    return interval(metric, row.value(metric, "ci_low"), row.value(metric, "ci_high"))


def _joined(value: str, bounds: str) -> str:
    """Without its space an interval stays in one piece where the cell wraps."""
    return f"{value} {bounds.replace(' ', '')}".strip()
