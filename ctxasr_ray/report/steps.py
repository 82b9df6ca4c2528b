"""Rows of `execution.plan` and `execution.status` -> a terminal table."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

_LEGEND = "done: committed and safe; to do: would run now; waits: known only when what it reads is done."


def steps_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """One line per step: what is committed, what would run, and either what it asks for or how far it is.

    Args:
        rows: As `execution.plan` (with `resources`) or `execution.status` (with `busy_s`) returns them.
    """
    planned = bool(rows) and "resources" in rows[0]
    table = Table(box=box.SIMPLE_HEAD, caption=_LEGEND, caption_justify="left", padding=(0, 1, 0, 0))
    table.add_column("step", overflow="fold")
    for name in ("done", "to do", "waits", "errors"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("actors",) if planned else ("rows", "busy s", "left s", "last", "writer"):
        table.add_column(name, justify="left" if planned else "right", no_wrap=name != "writer")
    for row in rows:
        done = f"{row['num_committed']}/{row['num_shards']}"
        rest = (row["num_pending"], row["num_unknown"], row["num_failures"])
        tail = [_actors(row)] if planned else _progress(row)
        table.add_row(row["step"], done, *map(str, rest), *tail)
    return table


def _actors(row: Mapping[str, Any]) -> str:
    """What a step asks for, and what the pool of its language model asks for beside it."""
    own, pool = _asks(row["resources"]), row["lm_pool"]
    return own if pool is None else f"{own}; LM: {_asks(pool)}"


def _asks(resources: Mapping[str, Any]) -> str:
    parts = [f"{resources['num_actors']} x {resources['num_cpus']:g} CPU"]
    if resources["num_gpus"]:
        parts.append(f"{resources['num_gpus']:g} GPU")
    if resources["memory_bytes"]:
        parts.append(f"{resources['memory_bytes'] / 2**30:.1f} GiB")
    parts += [f"{key}={value}" for key, value in resources["label_selector"].items()]
    return ", ".join(parts)


def _progress(row: Mapping[str, Any]) -> list[str]:
    last = row["last_commit"]
    when = "-" if last is None else time.strftime("%H:%M:%S", time.localtime(last))
    left = "-" if row["left_s"] is None or not row["writer"] else f"{row['left_s']:.0f}"
    return [str(row["rows"]), f"{row['busy_s']:.1f}", left, when, str(row["writer"] or "-")]
