"""A language of Common Voice (TSV files beside `clips/`) -> UTTERANCES."""

from pathlib import Path
from typing import Final

import pyarrow as pa

from ctxasr_ray import schema
from ctxasr_ray.corpora import folder
from ctxasr_ray.corpora.lines import ManifestError, corpus_name, read_lines, split_of

SPLIT_FILES: Final = ("train.tsv", "dev.tsv", "test.tsv")
"""The official splits; `validated.tsv`, `other.tsv` and `invalidated.tsv` overlap with them and are read on request."""
_DURATIONS: Final = "clip_durations.tsv"


def read(path: str | Path, corpus: str | None = None) -> pa.Table:
    """Reads the official splits of a language, or one TSV.

    Args:
        path: Folder with `train.tsv`, `dev.tsv` or `test.tsv`, or one TSV file with columns `path` and `sentence`.
        corpus: Name of the corpus; by default the folder's.

    Returns:
        UTTERANCES; `client_id` is the speaker, age, gender, accents and votes are attributes, `clip_durations.tsv`
        saves reading every header.

    Raises:
        ManifestError: no TSV of an official split, or one that is refused as by `corpora.folder`.
    """
    place = Path(path).absolute()
    files = [place] if place.is_file() else [place / name for name in SPLIT_FILES if (place / name).exists()]
    if not files:
        raise ManifestError(path, f"holds none of {', '.join(SPLIT_FILES)}; name one TSV")
    name = corpus or corpus_name(files[0].parent / "manifest")
    seconds = _durations(files[0].parent / _DURATIONS)
    rows, owner = [], dict[str, Path]()
    for file in files:
        for row in folder.read(file, name).to_pylist():
            first = owner.setdefault(row["utterance_id"], file)
            if first != file:
                raise ManifestError(file, f"'{row['utterance_id']}' stands in {first} already; keep it in one split")
            known_s = seconds.get(Path(row["audio_uri"]).name, row["duration_s"])
            rows.append({**row, "split": split_of(file.stem), "duration_s": known_s})
    return schema.conform(pa.Table.from_pylist(rows, schema=schema.UTTERANCES), "utterances")


def _durations(path: Path) -> dict[str, float]:
    """Clip -> seconds; the file has a header and milliseconds."""
    if not path.exists():
        return {}
    found = {}
    for number, line in list(read_lines(path))[1:]:
        clip, _, milliseconds = line.partition("\t")
        if not milliseconds.strip().isdigit():
            raise ManifestError(path, f"got '{milliseconds}', expected whole milliseconds", number, 2)
        found[clip] = int(milliseconds) / 1000
    return {clip: seconds for clip, seconds in found.items() if seconds > 0}
