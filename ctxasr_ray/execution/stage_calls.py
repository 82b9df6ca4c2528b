"""How a stage is built, fed, called and checked, and what a receipt says of it; the same in every executor."""

import importlib.metadata
import os
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from ctxasr_ray import schema
from ctxasr_ray.schema import ContractError
from ctxasr_ray.stage import GATHERED, Costs, Stage, Step
from ctxasr_ray.storage.store import Store

NAMED: Final = 5
"""Things of a kind that a receipt names; all are counted."""
PACKAGES: Final = ("ctxasr-ray", "numpy", "pyarrow", "torch", "transformers", "ray")


class RunError(RuntimeError):
    """A run stopped: says at which step and shard, why, what is committed, and how to go on."""


def read_inputs(store: Store, step: Step, keys: Sequence[Sequence[str]]) -> list[pa.Table]:
    """The tables that a stage is called with: per input the columns that it reads, files concatenated.

    Raises:
        ContractError: inputs of a per-shard step that do not have the same utterances.
    """
    tables = []
    for parent, files in zip(step.inputs, keys, strict=True):
        columns = store.columns_read(step, parent)
        pieces = [store.read_key(key, columns) for key in files]
        empty = pa.schema([schema.TABLES[parent.config.WRITES].field(column) for column in columns]).empty_table()
        tables.append(pa.concat_tables(pieces).combine_chunks() if pieces else empty)
    if step.config.WRITES not in GATHERED:
        for parent, table in zip(step.inputs, tables, strict=True):
            if "utterance_id" in table.column_names and not table["utterance_id"].equals(utterance_ids(tables)):
                raise ContractError(
                    f"step '{step.name}': the utterances of its input '{parent.name}' are not those of "
                    f"'{step.inputs[0].name}', in the same order. Fix the stage that wrote them."
                )
    return tables


def build(step: Step) -> tuple[Stage, float]:
    """Builds a stage with the number of threads that its resources ask for; returns it and the seconds taken."""
    threads = max(1, int(step.config.resources.num_cpus))
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(threads)  # read by torch when the stage imports it
    start = time.perf_counter()
    stage = step.config.build()
    if "torch" in sys.modules:  # an executor may have had torch from an earlier step, with other threads
        sys.modules["torch"].set_num_threads(threads)
    return stage, time.perf_counter() - start


def call(step: Step, stage: Stage, tables: Sequence[pa.Table], costs: Costs) -> pa.Table:
    """Calls a stage and checks its contract; adds to `busy` of the costs' seconds: all but loading.

    Raises:
        ContractError: the table breaks its schema or has other rows than the first input.
    """
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(max(1, int(step.config.resources.num_cpus)))
    clocks = (costs.seconds, costs.cpu_seconds)
    loaded = [seconds.get("load", 0.0) for seconds in clocks]
    with costs.timed("busy"):
        table = schema.conform(stage(*tables, costs=costs), step.config.WRITES)
    for seconds, before in zip(clocks, loaded, strict=True):
        seconds["busy"] -= seconds.get("load", 0.0) - before
    if step.config.WRITES not in GATHERED and not table["utterance_id"].equals(ids := utterance_ids(tables)):
        raise ContractError(
            f"step '{step.name}' ({step.config.NAME}): got {table.num_rows} rows for {len(ids)} utterances, or "
            "other ids or another order; expected exactly the rows of the shard. Fix the stage."
        )
    return table


def make_receipt(table: pa.Table, costs: Costs, load_s: float, attempt: int) -> dict[str, Any]:
    """What a commit cost, as plain JSON values."""
    failures = pc.sum(pc.is_valid(table["error_type"])).as_py() if "error_type" in table.column_names else 0
    seconds = dict(costs.seconds)
    if load_s:
        seconds["load"] = seconds.get("load", 0.0) + load_s
    torch = sys.modules.get("torch")
    on_gpu = torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized()
    scale = 1 if sys.platform == "darwin" else 1024
    return {
        "rows": table.num_rows,
        "failures": int(failures or 0),
        "attempt": attempt,
        "seconds": {"busy": 0.0, **seconds},
        "cpu_seconds": {"busy": 0.0, **costs.cpu_seconds},
        "counters": dict(costs.counters),
        "utterances": _by_counter(table, costs.utterances),
        "named": {
            kind: {"count": len(things), "examples": list(things)[:NAMED]} for kind, things in costs.named.items()
        },
        "device": torch.cuda.get_device_name() if torch is not None and on_gpu else "cpu",
        "peak_host_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale,
        "peak_device_bytes": torch.cuda.max_memory_allocated() if torch is not None and on_gpu else 0,
        "committed_at": time.time(),
        "versions": package_versions(),
    }


def _by_counter(table: pa.Table, utterances: Mapping[str, Mapping[str, int]]) -> dict[str, list[int | None]]:
    """Counter -> one value per row, null where the utterance has none."""
    names = dict.fromkeys(name for counters in utterances.values() for name in counters)
    ids = table["utterance_id"].to_pylist() if names else []
    return {name: [utterances.get(one, {}).get(name) for one in ids] for name in names}


_VERSIONS: dict[str, str] = {}


def package_versions() -> dict[str, str]:
    """Installed versions of what changes numbers; looked up once per process."""
    if not _VERSIONS:
        for name in PACKAGES:
            try:
                _VERSIONS[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                continue
    return dict(_VERSIONS)


def utterance_ids(tables: Sequence[pa.Table]) -> pa.ChunkedArray:
    """Ids of a per-shard step: of its first input that has any."""
    return next(table["utterance_id"] for table in tables if "utterance_id" in table.column_names)


def some_rows(table: pa.Table, rows: Sequence[int]) -> pa.Table:
    """Some rows of a per-utterance table; a fit is handed in whole."""
    if "utterance_id" not in table.column_names or len(rows) == table.num_rows:
        return table
    return table.take(list(rows))
