"""Finds the utterance that kills its worker: work that died again and again is halved, down to one row.

What a half gave is kept in `.run/parts` until the shard is committed, so that it outlives the next death. A stage that
looks across the rows of a shard (history) sees only its half of them; that happens to shards with a killer alone.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

import pyarrow as pa

from ctxasr_ray import schema
from ctxasr_ray.execution.stage_calls import RunError, some_rows, utterance_ids
from ctxasr_ray.stage import SpentProcessError
from ctxasr_ray.storage.attempts import Attempts
from ctxasr_ray.storage.store import Store

MAX_DEATHS: Final = 2
"""Workers that a shard, and later the single utterance, may kill before it is halved or quarantined."""
MAX_QUARANTINED: Final = 8
"""Rows of one shard that may be quarantined; more, and the stage or the machine is at fault and not the data."""

Work = Callable[[Sequence[pa.Table]], pa.Table]


class Quarantine:
    """The careful way through the shards of one step."""

    def __init__(self, store: Store, attempts: Attempts, table: str) -> None:
        """Remembers where to write.

        Args:
            store: The run folder.
            attempts: Markers of this worker.
            table: Name of the table that the step writes.
        """
        self._store, self._attempts, self._table = store, attempts, table
        self._parts: list[str] = []

    def run(self, base: str, tables: Sequence[pa.Table], work: Work) -> pa.Table:
        """Does the work on all rows at once, or in pieces where that has killed its worker before.

        Args:
            base: Name of the shard's table, without attempt and ending.
            tables: Inputs; those with utterances are cut alike, a fit is handed in whole.
            work: From inputs to the table, any number of rows.

        Returns:
            All rows in order, those of killers with error_type "quarantined" and the reason.

        Raises:
            RunError: a killer in a table that has no error columns, or too many killers in one shard.
        """
        return self._piece(base, tables, work, 0, len(utterance_ids(tables)))

    def committed(self) -> None:
        """Removes the parts; the shard's own table stands now."""
        for part in self._parts:
            self._store.folder.delete(part)
        self._parts.clear()

    def _piece(self, base: str, tables: Sequence[pa.Table], work: Work, start: int, stop: int) -> pa.Table:
        place = f".run/attempts/{base}.{start}-{stop}"
        part = f".run/parts/{base}.{start}-{stop}.parquet"
        whole = stop - start == len(utterance_ids(tables))
        if not whole:
            self._parts.append(part)
            if self._store.folder.exists(part):
                return self._store.read_key(part)
        deaths = self._attempts.begin(place)
        limit = MAX_DEATHS if whole or stop - start == 1 else 1
        killers = 0
        if deaths >= limit and stop - start > 1:
            middle = (start + stop) // 2
            halves = [self._piece(base, tables, work, *span) for span in ((start, middle), (middle, stop))]
            table = pa.concat_tables(halves).combine_chunks()
        else:
            try:
                pieces = [some_rows(table, range(start, stop)) for table in tables]
                if deaths < limit:
                    table = work(pieces)
                else:
                    killers = 1
                    self._refuse_too_many(base)
                    table = quarantined(self._table, utterance_ids(pieces)[0].as_py(), deaths)
            except SpentProcessError:  # a death of this worker: its marker stays, to be counted
                raise
            except Exception:
                self._attempts.end(place)
                raise
        if not whole:
            self._store.commit(part, table, self._table, "part", {"failures": 0, "killers": killers})
        self._attempts.end(place)
        return table

    def _refuse_too_many(self, base: str) -> None:
        folder, _, name = f".run/parts/{base}".rpartition("/")
        parts = [f"{folder}/{each}" for each in self._store.folder.names(folder) if each.startswith(f"{name}.")]
        if sum(self._store.footer(part).receipt["killers"] for part in parts) < MAX_QUARANTINED:
            return
        for part in parts:  # the next run, with the cause mended, must not find rows quarantined by mistake
            self._store.folder.delete(part)
        self._attempts.forget(f".run/attempts/{base}.")
        raise RunError(
            f"more than {MAX_QUARANTINED} utterances of this shard have each killed their worker {MAX_DEATHS} times: "
            "the stage or the machine (memory) is at fault rather than the data. None was quarantined."
        )


def quarantined(name: str, utterance_id: str, deaths: int) -> pa.Table:
    """The row of an utterance that kills its worker.

    Raises:
        RunError: the table has no error columns, so that the reason would be lost: the run stops instead.
    """
    reason = f"the worker died {deaths} times on this utterance alone (a crash, or memory); not tried again"
    table_schema = schema.TABLES[name]
    if "error_type" not in table_schema.names:
        raise RunError(
            f"utterance '{utterance_id}': {reason}, and {name} has no column for an error, so it cannot be set aside. "
            "Mend the stage or remove the utterance from the corpus."
        )
    row: dict[str, Any] = {"utterance_id": utterance_id, "error_type": "quarantined", "error": reason}
    for column in table_schema:
        if column.name not in row:
            row[column.name] = None if column.nullable else _empty(column.type)
    return schema.conform(pa.Table.from_pylist([row], schema=table_schema), name)


def _empty(kind: pa.DataType) -> Any:
    if pa.types.is_string(kind):
        return ""
    return [] if pa.types.is_list(kind) or pa.types.is_map(kind) else 0
