"""RESULTS and COSTS -> one markdown page that also reads well as plain text."""

import re
from collections.abc import Sequence

import pyarrow as pa

from ctxasr_ray.report.costs import StepCost
from ctxasr_ray.report.systems import is_percent, label
from ctxasr_ray.report.tables import (
    cells,
    columns,
    headlines,
    legend,
    lines,
    number,
    results_records,
)


def results_markdown(results: pa.Table, *, title: str, costs: Sequence[StepCost] = ()) -> str:
    """The results as one markdown page: sentences, table, legend, cost of each step, signatures.

    Args:
        results: A table that `schema.conform` accepts as "results".
        title: First heading.
        costs: What each step cost; without any the section is left out.

    Raises:
        ContractError: the table breaks the RESULTS schema.
    """
    records = results_records(results)
    rows = lines(records)
    metric, *others = columns(rows)
    heads = ["corpus", "split", "system", f"{label(metric)} %", "95 % interval", "change", "95 % interval", "p"]
    heads += ["S/D/I", "N", *(f"{label(m)} %" if is_percent(m) else label(m) for m in others)]
    body = [
        [row.corpus, row.split, row.label, *cells(row, metric), *(number(m, row.value(m)) for m in others)]
        for row in rows
    ]
    out = [f"# {escape(title)}", "", *(f"- {escape(sentence)}" for sentence in headlines(records)), ""]
    out += _table(heads, body, left=3)
    out += ["", *(f"- {escape(said)}" for said in legend(rows)), ""]
    if costs:
        out += ["## Cost of each step", "", *_costs(costs), ""]
    out += ["## Signatures", ""]
    out += [f"- `{s.replace('`', ' ')}`" for s in dict.fromkeys(record["signature"] for record in records)]
    return "\n".join(out) + "\n"


def _costs(costs: Sequence[StepCost]) -> list[str]:
    body = [
        [
            cost.step,
            cost.device,
            f"{cost.num_shards:,}",
            f"{cost.rows:,}",
            f"{cost.wall_s:,.1f}",
            ", ".join(f"{name} {value:,.1f}" for name, value in cost.seconds.items()),
            ", ".join(f"{name} {value:,}" for name, value in cost.counters.items()),
        ]
        for cost in costs
    ]
    heads = ["step", "device", "shards", "rows", "seconds of work", "of these", "counters"]
    return _table(heads, body, left=2)


def _table(heads: Sequence[str], body: Sequence[Sequence[str]], *, left: int) -> list[str]:
    rule = "|" + "---|" * left + "---:|" * (len(heads) - left)
    return (
        [f"| {' | '.join(escape(c) for c in row)} |" for row in [heads]]
        + [rule]
        + [f"| {' | '.join(escape(c) for c in row)} |" for row in body]
    )


def escape(cell: str) -> str:
    """Text that breaks neither a table nor, rendered to HTML, the page around it."""
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", re.sub(r"\s+", " ", cell))
