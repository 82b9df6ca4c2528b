"""The LibriSpeech tree (also Multilingual LibriSpeech's kin of that layout) -> UTTERANCES.

`SUBSET/SPEAKER/CHAPTER/SPEAKER-CHAPTER-NUMBER.flac` with `SPEAKER-CHAPTER.trans.txt` beside them.
"""

from pathlib import Path
from typing import Any

import pyarrow as pa

from ctxasr_ray import schema
from ctxasr_ray.corpora.folder import EXTENSIONS
from ctxasr_ray.corpora.lines import ManifestError, corpus_name, read_lines, refuse_duplicates, split_of


def read(path: str | Path, corpus: str | None = None) -> pa.Table:
    """Reads all subsets, speakers and chapters below a folder.

    Args:
        path: The whole tree, a subset or anything below one.
        corpus: Name of the corpus; by default the folder's.

    Returns:
        UTTERANCES sorted by path; a session is a chapter, `attributes` hold the subset, after which the split is
        named. A transcript without its recording keeps its row, which fails when it is read; a recording without
        a transcript has no reference.

    Raises:
        ManifestError: no transcript below the folder, or an id that stands twice.
    """
    top = Path(path).absolute()
    chapters = sorted(top.rglob("*.trans.txt"))
    if not chapters:
        raise ManifestError(path, "holds no SPEAKER-CHAPTER.trans.txt; name a folder of the LibriSpeech tree")
    name = corpus or corpus_name(top / "manifest")
    rows: list[dict[str, Any]] = []
    owner: dict[str, Path] = {}
    for chapter in chapters:
        for row in _chapter(chapter):
            first = owner.setdefault(row["utterance_id"], chapter)
            if first != chapter:
                raise ManifestError(chapter, f"'{row['utterance_id']}' stands in {first} already; name one of them")
            rows.append({**row, "corpus": name})
    return schema.conform(pa.Table.from_pylist(rows, schema=schema.UTTERANCES), "utterances")


def _chapter(transcripts: Path) -> list[dict[str, Any]]:
    lines = [(number, line.split(maxsplit=1)) for number, line in read_lines(transcripts)]
    refuse_duplicates(transcripts, ((number, cells[0]) for number, cells in lines))
    texts: dict[str, str | None] = {cells[0]: "".join(cells[1:]).strip() for _, cells in lines}
    recordings = {p.stem: p for p in sorted(transcripts.parent.iterdir()) if p.suffix.lower() in EXTENSIONS}
    speaker, session = transcripts.name.split("-")[0], transcripts.name.removesuffix(".trans.txt")
    subset = transcripts.parts[-4] if len(transcripts.parts) > 4 else ""
    return [
        {
            "utterance_id": utterance_id,
            "split": split_of(subset),
            "speaker_id": speaker,
            "session_id": session,
            "recording_id": utterance_id,
            "audio_uri": str(recordings.get(utterance_id, transcripts.parent / f"{utterance_id}.flac")),
            "start_s": 0.0,
            "reference": texts.get(utterance_id),
            "attributes": [("subset", subset)],
        }
        for utterance_id in sorted({*texts, *recordings})
    ]
