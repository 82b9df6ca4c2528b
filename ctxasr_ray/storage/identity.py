"""What makes two results the same: digests of Arrow columns by content, and the hash of a stage with its parents."""

import hashlib
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from ctxasr_ray import schema, stage


def digest(value: Any) -> str:
    """SHA-256 of plain JSON values, keys sorted, in hex."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def column_digest(column: pa.ChunkedArray | pa.Array) -> str:
    """SHA-256 of an Arrow column's type and values, in hex.

    Chunks, slices, buffers behind nulls and a trip through Parquet do not change it; the sign of a zero does.
    """
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    hasher = hashlib.sha256(str(array.type).encode())
    _feed(hasher, array)
    return hasher.hexdigest()


def _feed(hasher: "hashlib._Hash", array: pa.Array) -> None:
    valid = np.asarray(array.is_valid())
    hasher.update(len(array).to_bytes(8, "little") + np.packbits(valid).tobytes())
    array = array.take(pa.array(np.flatnonzero(valid)))  # nulls hide arbitrary bytes; a copy also starts at offset 0
    kind = array.type
    if pa.types.is_struct(kind):
        for child in array.flatten():
            _feed(hasher, child)
    elif pa.types.is_map(kind):
        hasher.update(np.diff(np.asarray(array.offsets)).tobytes())
        _feed(hasher, array.keys)
        _feed(hasher, array.items)
    elif pa.types.is_list(kind):
        hasher.update(np.diff(np.asarray(array.offsets)).tobytes())
        _feed(hasher, array.flatten())
    elif pa.types.is_string(kind):
        _, offsets, data = array.buffers()
        if len(array):
            ends = np.frombuffer(offsets, np.int32)[: len(array) + 1].astype(np.int64)
            hasher.update(np.diff(ends).tobytes())
            hasher.update(memoryview(data)[ends[0] : ends[-1]] if data is not None else b"")
    elif pa.types.is_null(kind):
        pass
    else:
        hasher.update(array.to_numpy(zero_copy_only=False).tobytes())


def column_digests(table: pa.Table) -> dict[str, str]:
    """Column name -> `column_digest`."""
    return {name: column_digest(table.column(name)) for name in table.column_names}


def stage_hash(step: stage.Step, hash_of: Callable[[stage.Step], str] | None = None) -> str:
    """SHA-256 in hex of everything that changes a stage's numbers, parents included; names of steps do not count.

    Args:
        step: A step whose config's files are in reach.
        hash_of: Gives the hashes of its parents; this function by default.

    Raises:
        ValueError: a file that a config names is missing or refused.
    """
    if step.config.WRITES == "utterances":  # a corpus: its rows are its identity, so that new corpora share stages
        return digest(["utterances", schema.SCHEMA_VERSION])
    config = step.config
    return digest(
        {
            "stage": config.NAME,
            "version": config.STAGE_VERSION,
            "schema": schema.SCHEMA_VERSION,
            "writes": config.WRITES,
            "config": stage.identity(config),
            "fingerprint": dict(config.fingerprint()),
            "parents": [(hash_of or stage_hash)(parent) for parent in step.inputs],
        }
    )
