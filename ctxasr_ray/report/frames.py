"""Tables of a finished run -> typed pandas frames, for notebooks.

`frame.attrs["columns"]` says what each column means. Integers are nullable, maps are dictionaries, lists of structs
are lists of dictionaries; `items` turns such a column into one row per item.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from ctxasr_ray.report.columns import COLUMNS
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
    keys, name = _keys(store, step)
    return frame(pa.concat_tables([store.read_key(key) for key in keys]), name)


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
