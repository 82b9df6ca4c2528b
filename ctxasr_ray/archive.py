"""Opens the bytes behind a uri: a path, a URL, or a member of a tar archive, which is read in place.

Nothing is ever unpacked; an archive that would be unsafe to unpack is refused all the same, with its reason.
"""

import contextlib
import io
import os
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any, Final

MAX_MEMBERS: Final = 1_000_000
"""Members that an archive may have."""

_MEMBER: Final = re.compile(r"^(.*\.tar)#(.+)$", re.IGNORECASE | re.DOTALL)
_COMPRESSED: Final = re.compile(r"\.(tar\.\w+|tgz|tbz2?|txz|tzst)#", re.IGNORECASE)
_URL: Final = re.compile(r"^[a-z][a-z0-9+.-]+://", re.IGNORECASE)


class AudioError(ValueError):
    """A recording that cannot be read as asked: names it and says why and what helps."""

    def __init__(self, uri: str, reason: str) -> None:
        super().__init__(f"{uri}: {reason}")
        self.uri = uri
        self.reason = reason

    def __reduce__(self) -> tuple[type["AudioError"], tuple[str, str]]:
        return AudioError, (self.uri, self.reason)


def is_url(path: str) -> bool:
    """Says whether a path is a URL (s3://, https://, ...) rather than a local one."""
    return _URL.match(path) is not None


def is_missing(uri: str) -> bool:
    """Says whether a local file, or the archive that holds it, is not there; URLs are not asked."""
    member = _MEMBER.match(uri)
    place = member[1] if member else uri
    return not is_url(place) and not os.path.exists(place)


@contextlib.contextmanager
def open_binary(uri: str) -> Iterator[IO[bytes]]:
    """Opens a file, a URL or `archive.tar#member` of either, for reading from any place in it.

    Raises:
        AudioError: it does not exist, is no file, or its archive is refused.
        OSError: the disk or the network failed.
    """
    if _COMPRESSED.search(uri):
        raise AudioError(uri, "a compressed archive cannot be read member by member; decompress it to a plain .tar")
    member = _MEMBER.match(uri)
    if member is None:
        with _open_file(uri) as stream:
            yield stream
        return
    with _open_file(member[1]) as stream:
        index = _index(member[1], stream)
        place = index.members.get(_plain(member[2]))
        if place is None:
            have = "the archive is truncated" if index.cut else f"it has {len(index.members)} members"
            raise AudioError(uri, f"no member '{member[2]}' in the archive; {have}")
        yield io.BufferedReader(_Slice(stream, *place), 65536)


def check_archive(path: str) -> None:
    """Refuses a tar archive that nobody should unpack, reading its headers alone.

    Args:
        path: Local path or URL of a plain tar archive.

    Raises:
        AudioError: a member that is absolute, climbs out by `..`, is a link, a device or sparse; too many
            members; or no plain tar archive.
    """
    with _open_file(path) as stream:
        _index(path, stream)


def list_members(path: str) -> dict[str, int]:
    """Names and sizes in bytes of the files in a tar archive, in its order.

    Args:
        path: Local path or URL of a plain tar archive.

    Raises:
        AudioError: as `check_archive`, or the archive is truncated.
    """
    with _open_file(path) as stream:
        index = _index(path, stream)
    if index.cut:
        raise AudioError(path, "is truncated; copy it again from its source")
    return {name: size for name, (_, size) in index.members.items()}


@contextlib.contextmanager
def _open_file(path: str) -> Iterator[IO[bytes]]:
    try:
        stream = _open_url(path) if is_url(path) else open(path, "rb")  # noqa: SIM115  # closed below
    except FileNotFoundError as error:
        cause = error.__cause__
        if cause is not None and getattr(cause, "status", None) not in (404, 410):
            # fsspec says "not found" of a web server that is down as well, and keeps the truth as the cause
            raise OSError(f"{path}: {error.__cause__}") from error
        raise AudioError(path, "does not exist") from error
    except (IsADirectoryError, NotADirectoryError) as error:
        raise AudioError(path, "is a folder, or stands in what is not one") from error
    except ValueError as error:  # a null byte in the path, an unknown protocol
        raise AudioError(path, f"is no path or URL that can be opened: {error}") from error
    with stream:
        yield stream


def _open_url(url: str) -> IO[bytes]:
    import fsspec

    try:
        stream: IO[bytes] = fsspec.open(url, "rb").open()
    except (OSError, ValueError):
        raise
    except Exception as error:  # aiohttp and botocore have error families of their own
        raise OSError(f"{url}: {type(error).__name__}: {error}") from error
    return stream


class _Slice(io.RawIOBase):
    """A member of an archive as a file of its own."""

    def __init__(self, stream: IO[bytes], offset: int, size: int) -> None:
        self._stream, self._offset, self._size, self._position = stream, offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._stream.seek(self._offset + self._position)
        data = self._stream.read(max(0, min(len(buffer), self._size - self._position)))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        if position < 0:
            raise ValueError(f"position {position} lies before the member")
        self._position = position
        return position

    def tell(self) -> int:
        return self._position


@dataclass(frozen=True, slots=True)
class _Index:
    """Where the members of an archive lie: name -> offset and size in bytes."""

    members: Mapping[str, tuple[int, int]]
    cut: bool


_MAX_INDICES: Final = 16
_INDICES: Final[dict[tuple[str, int, int], _Index]] = {}


def _index(archive: str, stream: IO[bytes]) -> _Index:
    """Gives the index of an archive, made once for as long as neither its size nor its time of change move."""
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    key = (archive, size, 0 if is_url(archive) else os.fstat(stream.fileno()).st_mtime_ns)
    if key not in _INDICES:
        while len(_INDICES) >= _MAX_INDICES:
            _INDICES.pop(next(iter(_INDICES)), None)
        _INDICES[key] = _read_index(archive, stream, size)
    return _INDICES[key]


def _read_index(archive: str, stream: IO[bytes], size: int) -> _Index:
    members: dict[str, tuple[int, int]] = {}
    cut = False
    try:
        with tarfile.open(fileobj=stream, mode="r:") as tar:
            while (member := tar.next()) is not None:
                _refuse_unsafe(archive, member)
                if member.offset_data + member.size > size:
                    cut = True
                elif member.isreg():
                    members[_plain(member.name)] = (member.offset_data, member.size)
                if len(members) > MAX_MEMBERS:
                    raise AudioError(archive, f"has more than {MAX_MEMBERS} members; split it")
                tar.members.clear()  # type: ignore[attr-defined]  # or tarfile keeps every header
    except tarfile.ReadError as error:
        if not members:
            raise AudioError(archive, f"is no plain tar archive, or a truncated one: {error}") from error
        cut = True
    return _Index(members, cut)


def _refuse_unsafe(archive: str, member: tarfile.TarInfo) -> None:
    parts = re.split(r"[/\\]", member.name)
    if not parts[0] or ".." in parts or re.match(r"^[A-Za-z]:", member.name):
        reason = "would lie outside the folder that it is unpacked in"
    elif member.issym() or member.islnk():
        reason = f"is a link to '{member.linkname}'"
    elif member.issparse():
        reason = "is sparse, so that it may claim any size"
    elif not (member.isreg() or member.isdir()):
        reason = "is a device or another special file"
    else:
        return
    raise AudioError(archive, f"refused unread: member '{member.name}' {reason}; pack plain files only")


def _plain(name: str) -> str:
    return name.removeprefix("./")
