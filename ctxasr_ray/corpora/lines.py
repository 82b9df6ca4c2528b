"""Text files of a corpus, line by line, refused with file, line, column and remedy where they are broken."""

import gzip
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Final

from ctxasr_ray.archive import AudioError, is_url, open_binary

MAX_UNPACKED_BYTES: Final = 2**32
"""What a .gz of text may unpack to; more is taken for a bomb."""


class ManifestError(ValueError):
    """A manifest that cannot be taken as it is; raised before any work, so nothing is lost."""

    def __init__(
        self, path: str | Path, problem: str, line: int | None = None, column: int | str | None = None
    ) -> None:
        where = str(path)
        if line is not None:
            where += f", line {line}"
        if column is not None:
            where += f", column {column}" if isinstance(column, int) else f", column '{column}'"
        super().__init__(f"{where}: {problem}")
        self._arguments = (path, problem, line, column)

    def __reduce__(self) -> tuple[type["ManifestError"], tuple[str | Path, str, int | None, int | str | None]]:
        return ManifestError, self._arguments


def read_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """Gives the lines that are not blank, with their numbers; a BOM and CRLF are read over.

    Args:
        path: Local path or URL of a UTF-8 text file; one that ends in .gz is unpacked in memory.

    Returns:
        (line number from 1, line without its end), read and checked as a whole before the first one is given.

    Raises:
        ManifestError: missing, empty, or not UTF-8.
    """
    try:
        with open_binary(str(path)) as stream:
            data = _unpacked(path, stream) if str(path).lower().endswith(".gz") else stream.read()
    except AudioError as error:
        raise ManifestError(error.uri, error.reason) from error
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ManifestError(path, "is UTF-16; save it as UTF-8", line=1, column=1)
    data = data.removeprefix(b"\xef\xbb\xbf")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        column = len(before[before.rfind(b"\n") + 1 :].decode("utf-8")) + 1
        problem = f"byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8"
        raise ManifestError(path, problem, before.count(b"\n") + 1, column) from error
    if not text.strip():
        raise ManifestError(path, "is empty; write one line per utterance")
    return _numbered(text)


def _unpacked(path: str | Path, stream: IO[bytes]) -> bytes:
    try:
        with gzip.GzipFile(fileobj=stream) as unpacked:
            data = unpacked.read(MAX_UNPACKED_BYTES + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ManifestError(path, f"is no whole gzip file: {error}; copy it again from its source") from error
    if len(data) > MAX_UNPACKED_BYTES:
        raise ManifestError(path, f"unpacks to more than {MAX_UNPACKED_BYTES} bytes; split it")
    return data


def _numbered(text: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, line.removesuffix("\r")


def refuse_duplicates(path: str | Path, ids: Iterable[tuple[int, str]]) -> None:
    """Refuses two lines of one id, naming both.

    Args:
        path: The manifest, for the message.
        ids: (line number, utterance_id).
    """
    first: dict[str, int] = {}
    for line, utterance_id in ids:
        if utterance_id in first:
            problem = f"'{utterance_id}' stands in line {first[utterance_id]} already; give every line an id of its own"
            raise ManifestError(path, problem, line, "utterance_id")
        first[utterance_id] = line


def refuse_other_corpus(
    listed: Iterable[str], utterance_ids: Iterable[str], *, path: str, what: str, remedy: str
) -> None:
    """Refuses what a file has for utterances that the corpus does not have, which would be ignored in silence.

    Args:
        listed: Ids in the file.
        utterance_ids: Of the whole corpus, all splits.
        path: The file, for the message.
        what: What it has, in the plural.
        remedy: Ends the message.

    Raises:
        ValueError: names the first few ids.
    """
    known = set(utterance_ids)
    extra = [f"'{utterance_id}'" for utterance_id in listed if utterance_id not in known]
    if extra:
        shown = ", ".join(extra[:5]) + (", ..." if len(extra) > 5 else "")
        raise ValueError(
            f"{path}: {len(extra)} {what} are of utterances that the corpus does not have: {shown}; its own are like "
            f"'{min(known, default='')}'. {remedy}"
        )


def folder_of(path: str | Path) -> str:
    """Gives the folder, or the URL, that relative audio paths of a manifest start from."""
    text = str(path)
    return text.rpartition("/")[0] if is_url(text) else str(Path(text).absolute().parent)


def resolve(folder: str, audio: str) -> str:
    """Makes an audio path of a manifest absolute, so that every worker finds it; URLs stay as they are."""
    if is_url(audio) or audio.startswith("/"):
        return audio
    return f"{folder}/{audio}" if is_url(folder) else str(Path(folder, audio))


def resolve_near(folder: str, audio: str) -> str:
    """As `resolve`; a path that exists from the working directory alone, as Kaldi and Lhotse mean it, is that one."""
    found = resolve(folder, audio)
    return str(Path(audio).absolute()) if not Path(found).exists() and Path(audio).exists() else found


def split_of(name: str) -> str:
    """The split that a folder or file is named after: train-clean-100 is train, validation is dev; else test."""
    word = re.split(r"[^a-z]", name.lower())[0]
    return "train" if word == "train" else "dev" if word in ("dev", "val", "valid", "validation") else "test"


def corpus_name(path: str | Path) -> str:
    """Names a corpus that has no name: after the manifest, or after its folder where it is just called manifest.

    Characters that cannot stand in the name of a shard become dashes.
    """
    name = Path(str(path))
    found = Path(folder_of(path)).name if name.stem == "manifest" else name.stem
    return re.sub(r"[^A-Za-z0-9._-]+", "-", found).strip("-._") or "corpus"


def refuse_corpus_name(path: str | Path, corpus: str, line: int | None = None) -> None:
    """Refuses a name that cannot stand in the name of a shard."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", corpus):
        problem = f"got '{corpus}', expected letters, digits, dots, dashes and underscores: it names files"
        raise ManifestError(path, problem, line, "corpus")
