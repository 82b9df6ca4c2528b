"""WebDataset tars (also WeNet's shards) -> UTTERANCES; members are read in place, nothing is unpacked.

Files of one key are one utterance: `a/b.flac`, `a/b.txt`, `a/b.json` have key `a/b`; a key ends at the first dot.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from ctxasr_ray import schema
from ctxasr_ray.archive import AudioError, list_members, open_binary
from ctxasr_ray.corpora import nemo
from ctxasr_ray.corpora.folder import EXTENSIONS
from ctxasr_ray.corpora.lines import ManifestError, corpus_name, split_of

MAX_TEXT_BYTES: Final = 2**22
"""What a .txt or .json member may have; more is no transcript."""
_OF_THE_ORIGINAL: Final = ("audio_filepath", "audio_uri", "offset", "start_s", "shard_id")
"""Keys of a .json that tell where the audio was before it was packed."""


def read(path: str | Path, corpus: str | None = None) -> pa.Table:
    """Reads one tar, or all tars of a folder in the order of their names.

    Args:
        path: Plain .tar file or a folder of them; compressed ones cannot be read in place.
        corpus: Name of the corpus; by default that of the file or folder.

    Returns:
        UTTERANCES in the order of the members. The reference is the .txt, else `text` of the .json, whose keys are
        read as those of a NeMo manifest; its places in original files become attributes `original_*`.

    Raises:
        ManifestError: no recording, an unsafe or truncated archive, a key twice, two recordings of one key, a text
            without recording, or a .txt or .json that cannot be read, naming archive and member.
    """
    top = Path(path).absolute()
    archives = sorted(top.glob("*.tar")) if top.is_dir() else [top]
    if not archives:
        raise ManifestError(path, "holds no .tar file")
    name = corpus or corpus_name(top / "manifest" if top.is_dir() else top)
    rows: list[dict[str, Any]] = []
    owner: dict[str, Path] = {}
    for archive in archives:
        for row in _utterances(archive, name):
            first = owner.setdefault(row["utterance_id"], archive)
            if first != archive:
                raise ManifestError(archive, f"key '{row['utterance_id']}' stands in {first} already; rename one")
            rows.append(row)
    if not rows:
        raise ManifestError(path, f"holds no recording ({', '.join(sorted(EXTENSIONS))})")
    return schema.conform(pa.Table.from_pylist(rows, schema=schema.UTTERANCES), "utterances")


def _utterances(archive: Path, corpus: str) -> Iterator[dict[str, Any]]:
    try:
        members = list_members(str(archive))
    except AudioError as error:
        raise ManifestError(archive, error.reason) from error
    seen = set()
    for key, files in _by_key(archive, members).items():
        if "audio" not in files:
            continue
        fields = _fields(archive, key, files, members)
        row = nemo.utterance(f"{archive}#{key}", None, fields, str(archive.parent), corpus)
        if row["utterance_id"] in seen:
            raise ManifestError(archive, f"utterance_id '{row['utterance_id']}' stands twice; rename one")
        seen.add(row["utterance_id"])
        yield row


def _by_key(archive: Path, members: Mapping[str, int]) -> dict[str, dict[str, str]]:
    """Key -> its audio, txt and json members; other files are not read."""
    found: dict[str, dict[str, str]] = {}
    for member in members:
        folder, slash, name = member.rpartition("/")
        stem, _, suffix = name.partition(".")
        role = "audio" if f".{suffix.lower()}" in EXTENSIONS else suffix.lower()
        if not stem or role not in ("audio", "txt", "json"):
            continue
        files = found.setdefault(folder + slash + stem, {})
        if role in files:
            raise ManifestError(archive, f"'{files[role]}' and '{member}' have one key; rename one")
        files[role] = member
    orphan = next((key for key, files in found.items() if "audio" not in files and "txt" in files), None)
    if orphan is not None and any("audio" in files for files in found.values()):
        raise ManifestError(archive, f"'{found[orphan]['txt']}' has no recording of its key; pack them together")
    return found


def _fields(archive: Path, key: str, files: Mapping[str, str], members: Mapping[str, int]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if "json" in files:
        fields = nemo.parse(f"{archive}#{files['json']}", 1, _text(archive, files["json"], members))
    attributes = fields.pop("attributes", {})
    for name in _OF_THE_ORIGINAL:
        if name in fields:
            attributes = {**attributes, f"original_{name}": fields.pop(name)}
    if "txt" in files:
        fields = {k: v for k, v in fields.items() if k not in ("text", "reference")}
        fields["text"] = _text(archive, files["txt"], members).strip()
    fields.setdefault("utterance_id", fields.pop("key", None) or key)
    fields.setdefault("split", split_of(archive.stem))
    fields.setdefault("recording_id", key)
    return {**fields, "attributes": attributes, "audio_filepath": f"{archive}#{files['audio']}"}


def _text(archive: Path, member: str, members: Mapping[str, int]) -> str:
    where = f"{archive}#{member}"
    if members[member] > MAX_TEXT_BYTES:
        raise ManifestError(where, f"has {members[member]} bytes; a transcript has at most {MAX_TEXT_BYTES}")
    with open_binary(where) as stream:
        data = stream.read()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ManifestError(where, f"is not UTF-8: {error.reason}; save it as UTF-8") from error
