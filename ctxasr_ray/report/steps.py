"""Rows of `execution.plan` and `execution.status` -> a terminal table."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table


def steps_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """One line per step: what is committed, what would run, and either what it asks for or how far it is.

    Args:
        rows: As `execution.plan` (with `resources`) or `execution.status` (with `busy_s`) returns them.
    """
    planned = bool(rows) and "resources" in rows[0]
    table = Table(
        box=box.SIMPLE_HEAD,
        caption="committed: done and safe; to do: would run now; waiting: known only when a parent is committed",
        caption_justify="left",
    )
    table.add_column("step", overflow="fold")
    table.add_column("writes")
    for name in ("shards", "committed", "to do", "waiting", "rows with errors"):
        table.add_column(name, justify="right")
    for name in (
        ("actors", "CPUs each", "GPUs each", "labels") if planned else ("rows", "busy s", "last commit", "writer")
    ):
        table.add_column(name, justify="right")
    for row in rows:
        numbers = ("num_shards", "num_committed", "num_pending", "num_unknown", "num_failures")
        tail = _asks(row["resources"]) if planned else _progress(row)
        table.add_row(row["step"], row["table"], *(str(row[name]) for name in numbers), *tail)
    return table


def _asks(resources: Mapping[str, Any]) -> list[str]:
    labels = ", ".join(f"{key}={value}" for key, value in resources["label_selector"].items())
    return [
        str(resources["num_actors"]),
        f"{resources['num_cpus']:g}",
        f"{resources['num_gpus']:g}",
        labels or "-",
    ]


def _progress(row: Mapping[str, Any]) -> list[str]:
    last = row["last_commit"]
    when = "-" if last is None else time.strftime("%H:%M:%S", time.localtime(last))
    return [str(row["rows"]), f"{row['busy_s']:.1f}", when, str(row["writer"] or "-")]
