"""Committed Parquet files: written once, whole, never overwritten, with their digests and receipt in the footer."""

import functools
import hashlib
import io
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from ctxasr_ray import schema
from ctxasr_ray.storage.identity import column_digest, column_digests, digest
from ctxasr_ray.storage.object_store import Folder, StoreError, check_writable, open_folder

FORMAT: Final = 1
"""Raised when names or footers change; a folder of another format is refused."""
FOOTER_BYTES: Final = 65536
"""Read at once to learn a footer; longer ones cost a second read."""
FOOTERS_AT_ONCE: Final = 16


@dataclass(frozen=True, slots=True)
class Footer:
    """What a committed file says about itself; read without its rows."""

    table: str
    identity: str
    columns: Mapping[str, str]
    """Column name -> digest of its values."""
    num_rows: int
    digest: str
    """Of all columns: equal digests are equal tables."""
    receipt: Mapping[str, Any]
    """failures, seconds, counters, named, device, peak_host_bytes, attempt, versions: outside equality and hashes."""


@dataclass(frozen=True, slots=True)
class Committed:
    """The end of a commit."""

    key: str
    """The file that counts: the first writer's."""
    outcome: str
    """"committed", "equal" (another writer had committed the same table) or "different" (it had committed
    another one, which stays; this one is kept beside it for a person to look at)."""


class TableFiles:
    """The files of one run folder; knows nothing of steps and shards (see `store.Store`)."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        """Opens a run folder without touching it.

        Args:
            root: A path, or s3://bucket/prefix; need not exist yet.

        Raises:
            ValueError: the folder was written in another format or schema version.
        """
        self.folder: Folder = open_folder(os.fspath(root))
        self.root = self.folder.root
        self._footers: dict[str, Footer] = {}
        self._listings: dict[str, frozenset[str]] | None = None
        self._check_version()

    def prepare(self) -> None:
        """Makes the folder ready for writing: version stamp and a probe of create-only writes.

        Raises:
            StoreError: it cannot be written, or overwrites what exists.
            ValueError: another version was here first.
        """
        check_writable(self.folder)
        self.folder.create("store.json", json.dumps(_version()).encode())
        self._check_version()

    def _check_version(self) -> None:
        try:
            found = json.loads(self.folder.read("store.json"))
        except (FileNotFoundError, NotADirectoryError):
            return
        except ValueError as error:
            raise ValueError(f"{self.root}/store.json is not JSON: {error}. Choose another --root.") from error
        if found != _version():
            raise ValueError(
                f"run folder '{self.root}' was written by another version: got {found}, expected {_version()}. "
                "Nothing was changed. Choose another --root, or use the version that wrote it."
            )

    def snapshot(self) -> None:
        """From now on lists each folder once and remembers it: for planning over thousands of shards."""
        self._listings = {}

    def forget_listings(self) -> None:
        """Ends `snapshot`: from now on what other writers commit is seen."""
        self._listings = None

    def names(self, folder: str) -> frozenset[str]:
        """Names of the files in a folder, remembered within a `snapshot`."""
        if self._listings is None:
            return frozenset(self.folder.names(folder))
        if folder not in self._listings:
            self._listings[folder] = frozenset(self.folder.names(folder))
        return self._listings[folder]

    def _exists(self, key: str) -> bool:
        if self._listings is None:
            return self.folder.exists(key)
        folder, _, name = key.rpartition("/")
        return name in self.names(folder)

    @staticmethod
    def attempt(key: str) -> int:
        """The number of the attempt that a key names; the first one has none in its name."""
        number = key.removesuffix(".parquet").rpartition(".")[2]
        return int(number) if number.isdigit() else 1

    def highest(self, base: str) -> str | None:
        """Key of the highest committed attempt under a name."""
        key, attempt = f"{base}.parquet", 1
        if not self._exists(key):
            return None
        while self._exists(following := f"{base}.{attempt + 1}.parquet"):
            key, attempt = following, attempt + 1
        return key

    def footer(self, key: str) -> Footer:
        """The footer of a committed file, checked against its own digest.

        Raises:
            StoreError: the file is missing, truncated or altered.
        """
        if key not in self._footers:
            try:
                tail = self.folder.read(key, last=FOOTER_BYTES)
                length = int.from_bytes(tail[-8:-4], "little") + 8
                if length > len(tail):
                    tail = self.folder.read(key, last=length)
                found = pq.read_metadata(pa.BufferReader(tail)).metadata
            except (OSError, ValueError, pa.ArrowException) as error:
                raise self._broken(key, str(error)) from error
            self._footers[key] = self._parse(key, found)
        return self._footers[key]

    def prefetch(self, keys: Iterable[str | None]) -> None:
        """Reads many footers at a time: on S3 one alone takes tens of milliseconds."""
        missing = sorted({key for key in keys if key is not None} - set(self._footers))
        with ThreadPoolExecutor(FOOTERS_AT_ONCE, thread_name_prefix="footers") as pool:
            list(pool.map(self.footer, missing))

    def _parse(self, key: str, metadata: Mapping[bytes, bytes] | None) -> Footer:
        text = (metadata or {}).get(b"ctxasr", b"")
        if not text or (metadata or {}).get(b"ctxasr.sha256") != hashlib.sha256(text).hexdigest().encode():
            raise self._broken(key, "its footer does not match its own sha256")
        footer = Footer(**json.loads(text))
        # names of columns, and digests of those that hold one value, are the same in thousands of footers
        return replace(footer, columns={sys.intern(name): sys.intern(of) for name, of in footer.columns.items()})

    def _broken(self, key: str, reason: str) -> StoreError:
        return StoreError(
            f"{self.root}/{key}: {reason}. The file was committed whole and has been changed since. "
            "Remove it and run the same command again: it will be made anew, and nothing else."
        )

    def read_key(self, key: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Reads a committed file, checking what was read against the footer.

        Raises:
            StoreError: the file is missing, truncated or altered.
        """
        footer = self.footer(key)
        columns = list(footer.columns) if columns is None else list(columns)
        try:
            data = pa.BufferReader(self.folder.read(key))
            table = pq.read_table(data, columns=columns, use_threads=False, page_checksum_verification=True)
            # Parquet renames the item fields of lists. A damaged name of a field breaks the cast.
            expected = pa.schema([schema.TABLES[footer.table].field(column) for column in columns])
            table = table.cast(expected).combine_chunks()
        except (OSError, ValueError, pa.ArrowException) as error:
            raise self._broken(key, str(error)) from error
        if table.num_rows != footer.num_rows:
            raise self._broken(key, f"{table.num_rows} rows; its footer says {footer.num_rows}")
        for column in columns:
            if column_digest(table.column(column)) != footer.columns[column]:
                raise self._broken(key, f"the values of column '{column}' do not match the sha256 in the footer")
        return table

    def commit(self, key: str, table: pa.Table, name: str, identity: str, receipt: Mapping[str, Any]) -> Committed:
        """Publishes a table under a key, once.

        Args:
            key: From `base`, with attempt and ending.
            table: Conforms to `schema.TABLES[name]`.
            name: The table's name.
            identity: From `base`.
            receipt: Plain JSON values.

        Returns:
            What counts from now on; the first writer wins.

        Raises:
            StoreError: disk full, read-only, unreachable. Nothing half-written is ever visible.
        """
        columns = column_digests(table)
        content = digest(columns)
        footer = {
            "table": name,
            "identity": identity,
            "columns": columns,
            "num_rows": table.num_rows,
            "digest": content,
        }
        data = _encode(table, json.dumps({**footer, "receipt": {"rows": table.num_rows, **receipt}}))
        try:
            if self.folder.create(key, data):
                return Committed(key, "committed")
            if self.footer(key).digest == content:
                return Committed(key, "equal")
            self.folder.create(key.removesuffix(".parquet") + f".different-{content[:16]}.parquet", data)
        except OSError as error:
            raise StoreError(
                f"{self.root}/{key} cannot be written: {error}. What is committed is intact. "
                "Free space or mend permissions, then run the same command again."
            ) from error
        return Committed(key, "different")


@functools.cache
def _version() -> dict[str, int]:
    return {"format": FORMAT, "schema_version": schema.SCHEMA_VERSION}


def _encode(table: pa.Table, footer: str) -> bytes:
    metadata = {b"ctxasr": footer.encode(), b"ctxasr.sha256": hashlib.sha256(footer.encode()).hexdigest().encode()}
    sink = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(metadata), sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue()
