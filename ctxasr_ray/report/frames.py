"""Tables of a finished run -> typed pandas frames, for notebooks.

`frame.attrs["columns"]` says what each column means. Integers are nullable, maps are dictionaries, lists of structs
are lists of dictionaries; `items` turns such a column into one row per item.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from ctxasr_ray.fusion.weights import WeightsConfig
from ctxasr_ray.report.columns import COLUMNS, GATE_TRACE
from ctxasr_ray.report.tables import Line
from ctxasr_ray.report.tables import lines as gathered
from ctxasr_ray.schema import TABLES, conform
from ctxasr_ray.storage.store import Store

if TYPE_CHECKING:
    import pandas as pd


def frame(table: pa.Table, name: str) -> "pd.DataFrame":
    """A table as a pandas frame with one dtype per column, whatever its rows hold.

    Args:
        table: A table that `schema.conform` accepts.
        name: A key of `schema.TABLES`.

    Raises:
        ContractError: the table breaks its schema.
    """
    import pandas as pd

    types: Mapping[pa.DataType, Any] = {pa.int32(): pd.Int32Dtype(), pa.int64(): pd.Int64Dtype()}
    made: pd.DataFrame = conform(table, name).to_pandas(types_mapper=types.get, maps_as_pydicts="strict")
    made.attrs["columns"] = dict(COLUMNS[name])
    return made


def results(report: Path) -> "pd.DataFrame":
    """RESULTS of a report folder, from its results.json.

    Args:
        report: The folder that `page.write_report` wrote.

    Raises:
        FileNotFoundError: there is no results.json in it.
    """
    records = json.loads((report / "results.json").read_text("utf-8"))
    maps = [field.name for field in TABLES["results"] if pa.types.is_map(field.type)]
    rows = [{**record, **{name: list(record[name].items()) for name in maps}} for record in records]
    return frame(pa.Table.from_pylist(rows, schema=TABLES["results"]), "results")


def lines(results: "pd.DataFrame") -> list[Line]:
    """The rows of `results` as lines, which every figure of the report takes.

    Args:
        results: From `results`, perhaps filtered.
    """
    records = results.astype(object).where(results.notna(), None).to_dict("records")
    return gathered([{str(name): value for name, value in record.items()} for record in records])


def landscape(root: Path | str, step: str, value: str, split: str = "dev") -> "pd.DataFrame":
    """The objective of a fit against one of its weights, the others held: exact, a staircase without a grid.

    Args:
        root: A run folder, local or s3://.
        step: A step of table `fits` from `steps`.
        value: A free value of the fit: a source, or `length_bonus`.
        split: Whose utterances; looking at test is not tuning on it.

    Returns:
        Columns low, high (ends of a stretch of weights; the outer ones may be infinite) and objective.

    Raises:
        ValueError: no such step, it is no fit of weights, or it does not vary the value.
        FileNotFoundError: no run has finished here.
    """
    import pandas as pd

    from ctxasr_ray.fusion.landscape import landscape as exact

    store = Store(root)
    described = {each["name"]: each for each in _provenance(store)["steps"]}
    if step not in described or not described[step]["folder"].startswith("fits/"):
        fits = [name for name, each in described.items() if each["folder"].startswith("fits/")]
        raise ValueError(f"step '{step}' is no fit in {root}; it has {', '.join(fits) or 'none'}.")
    wanted = [name for name in described[step]["inputs"] if _keys(store, name)[1] in _TUNED_ON]
    ids = _arrow(store, "utterances").select(["utterance_id", "split"])
    own = ids.filter(pc.equal(ids["split"], split))["utterance_id"]
    tables = [_arrow(store, name) for name in wanted]
    tables = [table.take(pc.index_in(own, table["utterance_id"]).combine_chunks()) for table in tables]
    seen = exact(_weights_config(described[step]["config"]), _arrow(store, step), value, *tables)
    return pd.DataFrame({"low": seen.edges[:-1], "high": seen.edges[1:], "objective": seen.values})


_TUNED_ON: Final = ("hypotheses", "scores", "nbest_errors")


def _weights_config(described: Mapping[str, Any]) -> WeightsConfig:
    """The config of a fit, from its description in provenance.json."""
    if described.get("type") != WeightsConfig.__name__:
        raise ValueError(f"a fit by {described.get('type')} has no landscape of weights; expected WeightsConfig.")
    fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in described.items()}
    fields["bounds"] = {name: (ends[0], ends[1]) for name, ends in described["bounds"].items()}
    del fields["type"]
    return WeightsConfig(**fields)


def _arrow(store: Store, step: str) -> pa.Table:
    return pa.concat_tables([store.read_key(key) for key in _keys(store, step)[0]]).combine_chunks()


def steps(root: Path | str) -> "pd.DataFrame":
    """The steps of the run that finished last in a run folder: step, stage, table, folder, inputs.

    Args:
        root: A run folder, local or s3://.

    Raises:
        FileNotFoundError: no run has finished in it.
    """
    import pandas as pd

    described = _provenance(Store(root))["steps"]
    rows = [
        [step["name"], step["stage"], step["folder"].partition("/")[0], step["folder"], step["inputs"]]
        for step in described
    ]
    return pd.DataFrame(rows, columns=["step", "stage", "table", "folder", "inputs"])


def table(root: Path | str, step: str) -> "pd.DataFrame":
    """The table that a step wrote in the run that finished last, all shards together.

    Args:
        root: A run folder, local or s3://.
        step: A name from `steps`, or "utterances" for the corpus.

    Raises:
        ValueError: no such step.
        FileNotFoundError: no run has finished here, or not this step.
        StoreError: a file is damaged.
    """
    store = Store(root)
    return frame(_arrow(store, step), _keys(store, step)[1])


def costs(root: Path | str) -> "pd.DataFrame":
    """What each step cost on each shard: one row per committed file of the run that finished last.

    Args:
        root: A run folder, local or s3://.

    Returns:
        Columns step, table, file, rows, failures, device, busy_s, load_s, seconds and counters (dictionaries).

    Raises:
        FileNotFoundError: no run has finished in it.
    """
    import pandas as pd

    store = Store(root)
    rows = []
    for step in _provenance(store)["steps"]:
        if step["folder"].startswith("utterances/"):
            continue
        keys, name = _keys(store, step["name"])
        for key in keys:
            receipt = store.footer(key).receipt
            seconds = dict(receipt["seconds"])
            whole = (seconds.pop("busy"), seconds.get("load", 0.0))
            about = (step["name"], name, key.rpartition("/")[2], receipt["rows"], receipt["failures"])
            rows.append([*about, receipt["device"], *whole, seconds, dict(receipt["counters"])])
    names = ["step", "table", "file", "rows", "failures", "device", "busy_s", "load_s", "seconds", "counters"]
    return pd.DataFrame(rows, columns=names)


def utterance_costs(root: Path | str) -> "pd.DataFrame":
    """What each utterance cost in the steps that count it: one row per step and utterance.

    Args:
        root: A run folder, local or s3://.

    Returns:
        Columns step, utterance_id and every counter, for example llm_calls, nodes, tokens_flat, triggers, kv_bytes;
        a step without such counters has no rows.

    Raises:
        FileNotFoundError: no run has finished in it.
    """
    import pandas as pd

    store, found = Store(root), []
    for step in _provenance(store)["steps"]:
        if step["folder"].startswith("utterances/"):
            continue
        for key in _keys(store, step["name"])[0]:
            if counters := store.footer(key).receipt.get("utterances"):
                ids = store.read_key(key)["utterance_id"].to_pylist()
                found.append(pd.DataFrame({"step": step["name"], "utterance_id": ids, **counters}))
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=["step", "utterance_id"])


def gate_traces(root: Path | str) -> "pd.DataFrame":
    """What the gate did at each token of the 1-best, for the lists that the run traced: one row per token.

    Args:
        root: A run folder, local or s3://.

    Returns:
        The columns of `columns.GATE_TRACE`; no rows where nothing was traced (`ctxasr evaluate RECIPE --traces LIST`).

    Raises:
        FileNotFoundError: no run has finished in it.
    """
    import pandas as pd

    store = Store(root)
    rows = [
        {"step": step["name"], "utterance_id": row["utterance_id"], "index": index, **json.loads(trace)}
        for step in _provenance(store)["steps"]
        if step["folder"].startswith("traces/")
        for row in _arrow(store, step["name"]).to_pylist()
        for index, trace in enumerate(row["traces"])
    ]
    found = pd.DataFrame(rows, columns=list(GATE_TRACE))
    found = found.astype({"word": "Int64", "lm_rank": "Int64", "lm_log_prob": "float64"})
    found.attrs["columns"] = dict(GATE_TRACE)
    return found


def items(rows: "pd.DataFrame", column: str) -> "pd.DataFrame":
    """One row per item of a list column: `utterance_id`, `index` in its list, and the item's fields.

    Args:
        rows: A frame from `table`.
        column: A column of lists of dictionaries (`hypotheses`, `sources`, `counts`, `words`) or of plain values.

    Returns:
        An utterance with an empty list has no row.
    """
    import pandas as pd

    found = [
        {"utterance_id": utterance, "index": index, **(item if isinstance(item, dict) else {column: item})}
        for utterance, row in zip(rows["utterance_id"], rows[column], strict=True)
        for index, item in enumerate(row if row is not None else [])
    ]
    return pd.DataFrame(found)


def _provenance(store: Store) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(store.folder.read("provenance.json"))
    return found


def _keys(store: Store, step: str) -> tuple[list[str], str]:
    """Keys of a step's committed files, and the name of their table."""
    run = _provenance(store)
    if step == "utterances":
        return [shard["uri"] for shard in run["shards"]], "utterances"
    folders = {each["name"]: each["folder"] for each in run["steps"]}
    if step not in folders:
        raise ValueError(f"no step '{step}' in {store.root}; it has {', '.join(folders)}, and utterances.")
    folder = folders[step]
    files = json.loads(store.folder.read(f"{folder}/_SUCCESS"))
    return [f"{folder}/{file}" for file in files], folder.partition("/")[0]
