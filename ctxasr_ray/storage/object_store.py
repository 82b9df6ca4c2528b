"""A run folder on a local disk or on S3, with one promise: what is published is whole and is never overwritten.

Local files are published by `os.link`, which fails where the name exists; objects on S3 by a PUT with
`If-None-Match: *`. A store that can do neither is refused before any work.
"""

import contextlib
import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from ctxasr_ray.storage import processes

T = TypeVar("T")
FOREIGN_TEMPORARY_AGE_S: Final = 3600.0
"""A temporary of a process on another host is swept at this age; one of a dead process on this host at once."""
S3_WAITS_S: Final = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Pauses between tries of one S3 request, on top of botocore's own: rides out half a minute of refusals."""


class StoreError(RuntimeError):
    """The run folder cannot be read or written: says where, why, and how to go on. What is committed is intact."""


class Folder(Protocol):
    """Keys are paths relative to `root`, with forward slashes."""

    root: str

    def names(self, folder: str) -> list[str]:
        """Names of the files right inside a folder, sorted; empty where there is no such folder."""
        ...

    def exists(self, key: str) -> bool:
        """Whether a file of that name is published."""
        ...

    def read(self, key: str, *, last: int | None = None) -> bytes:
        """The bytes of a file, or its last `last` bytes.

        Raises:
            FileNotFoundError: nothing is published under that key.
        """
        ...

    def create(self, key: str, data: bytes) -> bool:
        """Publishes a file whole, durably, unless the name exists.

        Returns:
            False if something stands there already; it is left as it is.
        """
        ...

    def note(self, key: str, data: bytes) -> bool:
        """As `create`, for a small file that need not outlive the machine."""
        ...

    def replace(self, key: str, data: bytes) -> None:
        """Writes a small file that may change (a heartbeat, a summary), whole or not at all."""
        ...

    def delete(self, key: str) -> None:
        """Removes a file; nothing happens where there is none."""
        ...

    def sweep(self, folder: str) -> int:
        """Removes temporaries of dead writers in a folder; returns how many."""
        ...


def open_folder(root: str) -> Folder:
    """The folder behind a path or an s3:// URL; touches nothing yet.

    Raises:
        ValueError: a URL of another kind.
    """
    if root.startswith("s3://"):
        return S3Folder(root)
    if "://" in root:
        raise ValueError(
            f"run folder '{root}': got a URL that is not s3://; expected a local path or s3://bucket/prefix."
        )
    return LocalFolder(root)


def check_writable(folder: Folder) -> None:
    """Makes sure that a file can be created once and only once.

    Raises:
        StoreError: the folder is read-only, full, unreachable, or overwrites what exists.
    """
    key = f".probe-{uuid.uuid4().hex}"
    try:
        folder.create(key, b"1")  # false where its answer was lost and it was sent again: the name is nobody else's
        overwritten = folder.create(key, b"2")
        kept = folder.read(key)
    except OSError as error:
        raise StoreError(
            f"run folder '{folder.root}' cannot be written: {error}. "
            "Free space, mend its permissions or choose another --root; then run the same command again."
        ) from error
    finally:
        with contextlib.suppress(OSError, StoreError):
            folder.delete(key)
    if overwritten or kept != b"1":
        raise StoreError(
            f"run folder '{folder.root}' overwrites files that exist: it has no create-only writes "
            "(hard links on a disk, If-None-Match on S3), so two writers could mix results. Choose another --root."
        )


class LocalFolder:
    """A folder on a disk of this host, or on a disk that all hosts mount."""

    def __init__(self, root: str) -> None:
        self.root = str(Path(root).absolute())

    def path(self, key: str) -> Path:
        """Where a key lies on the disk."""
        return Path(self.root, key)

    def names(self, folder: str) -> list[str]:
        """See `Folder`."""
        try:
            return sorted(entry.name for entry in os.scandir(self.path(folder)) if entry.is_file())
        except FileNotFoundError:
            return []

    def exists(self, key: str) -> bool:
        """See `Folder`."""
        return self.path(key).exists()

    def read(self, key: str, *, last: int | None = None) -> bytes:
        """See `Folder`."""
        with self.path(key).open("rb") as file:
            if last is not None:
                file.seek(max(0, os.fstat(file.fileno()).st_size - last))
            return file.read()

    def create(self, key: str, data: bytes) -> bool:
        """See `Folder`."""
        temporary = self.write_temporary(key, data)
        try:
            return self.publish(temporary, key)
        finally:
            self.discard(temporary)

    def note(self, key: str, data: bytes) -> bool:
        """See `Folder`."""
        path = self.path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{processes.this_process()}.{uuid.uuid4().hex[:8]}.tmp")
        temporary.write_bytes(data)
        try:
            return self.publish(temporary, key)
        finally:
            self.discard(temporary)

    def replace(self, key: str, data: bytes) -> None:
        """See `Folder`."""
        os.replace(self.write_temporary(key, data), self.path(key))

    def delete(self, key: str) -> None:
        """See `Folder`."""
        self.path(key).unlink(missing_ok=True)

    def write_temporary(self, key: str, data: bytes) -> Path:
        """First step of a commit: the bytes, synced, under a name that no reader looks at."""
        final = self.path(key)
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = final.with_name(f".{final.name}.{processes.this_process()}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            self.discard(temporary)
            raise
        return temporary

    def publish(self, temporary: Path, key: str) -> bool:
        """Second step: the file gets its name, unless another writer was first.

        The folder is not synced: a power cut right after may lose the name, and with it work, never a part of a file.
        """
        try:
            os.link(temporary, self.path(key))
        except FileExistsError:
            return False
        return True

    def discard(self, temporary: Path) -> None:
        """Third step: the temporary name goes."""
        temporary.unlink(missing_ok=True)

    def sweep(self, folder: str) -> int:
        """See `Folder`."""
        swept = 0
        for name in self.names(folder):
            if not name.endswith(".tmp"):
                continue
            path = self.path(f"{folder}/{name}")
            writer = name.split(".")[-3]
            try:
                age_s = time.time() - path.stat().st_mtime
            except FileNotFoundError:
                continue
            old = age_s > FOREIGN_TEMPORARY_AGE_S and not writer.startswith(processes.host())
            if old or processes.is_dead(writer):
                self.discard(path)
                swept += 1
        return swept


class S3Folder:
    """A prefix in a bucket; credentials, region and endpoint come from the usual AWS_* variables."""

    def __init__(self, root: str) -> None:
        import s3fs  # seconds to import, and only here

        self.root = root.rstrip("/")
        self._prefix = self.root.removeprefix("s3://")
        self._files: Any = s3fs.S3FileSystem(
            use_listings_cache=False,
            config_kwargs={
                "retries": {"max_attempts": 2, "mode": "standard"},
                "connect_timeout": 5,
                "read_timeout": 60,
            },
        )

    def names(self, folder: str) -> list[str]:
        """See `Folder`."""
        try:
            entries = self._patiently(lambda: self._files.ls(self._path(folder), detail=True, refresh=True))
        except FileNotFoundError:
            return []
        return sorted(entry["name"].rpartition("/")[2] for entry in entries if entry["type"] == "file")

    def exists(self, key: str) -> bool:
        """See `Folder`."""
        return bool(self._patiently(lambda: self._files.exists(self._path(key))))

    def read(self, key: str, *, last: int | None = None) -> bytes:
        """See `Folder`."""
        start = None if last is None else -last
        return bytes(self._patiently(lambda: self._files.cat_file(self._path(key), start=start)))

    def create(self, key: str, data: bytes) -> bool:
        """See `Folder`."""
        try:
            self._patiently(lambda: self._files.pipe_file(self._path(key), data, mode="create"))
        except FileExistsError:
            return False
        return True

    def note(self, key: str, data: bytes) -> bool:
        """See `Folder`."""
        return self.create(key, data)

    def replace(self, key: str, data: bytes) -> None:
        """See `Folder`."""
        self._patiently(lambda: self._files.pipe_file(self._path(key), data))

    def delete(self, key: str) -> None:
        """See `Folder`."""
        with contextlib.suppress(FileNotFoundError):
            self._patiently(lambda: self._files.rm_file(self._path(key)))

    def sweep(self, folder: str) -> int:
        """Nothing to do: an unfinished PUT leaves no object."""
        return 0

    def _path(self, key: str) -> str:
        return f"{self._prefix}/{key}"

    def _patiently(self, request: Callable[[], T]) -> T:
        from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError

        for wait_s in (*S3_WAITS_S, None):
            try:
                return request()
            except (FileNotFoundError, FileExistsError):
                raise
            except (NoCredentialsError, PartialCredentialsError) as error:
                raise StoreError(
                    f"run folder '{self.root}' asks for credentials, and this process has none: {error}. Set "
                    "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, here and where the workers run. What "
                    "is committed is intact; then run the same command again."
                ) from error
            except (OSError, BotoCoreError, ClientError) as error:
                if wait_s is None or isinstance(error, PermissionError):
                    raise StoreError(
                        f"run folder '{self.root}' refuses: {type(error).__name__}: {error}. "
                        "What is committed is intact; mend the connection or the credentials, then run the same "
                        "command again."
                    ) from error
                time.sleep(wait_s)
        raise AssertionError("unreachable")
