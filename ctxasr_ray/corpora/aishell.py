"""AISHELL-1, also with the named entities of AISHELL-NER -> UTTERANCES.

`transcript/*.txt` with lines such as `BAC009S0724W0124 (广州)二手住宅市场表现一直相对稳健`, and
`wav/SPLIT/SPEAKER/ID.wav`.

Reference:
    Bu et al. 2017, arXiv:1709.05522; Chen et al. 2022, arXiv:2202.08533 (entities: [person], (place), <organisation>).
"""

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from ctxasr_ray import schema
from ctxasr_ray.corpora.lines import ManifestError, corpus_name, read_lines, refuse_duplicates, split_of

_SPEAKER: Final = re.compile(r"(S\d+)W\d+$")
_OPEN: Final = {"[": "]", "(": ")", "<": ">"}
_KINDS: Final = {"[": "person", "(": "place", "<": "organisation"}


@dataclass(frozen=True, slots=True)
class _Line:
    text: str
    """Without marks and without the spaces between words, as Chinese is written."""
    entities: tuple[tuple[str, str], ...]
    """(kind, phrase), in the order of their ends."""


def read(path: str | Path, corpus: str | None = None) -> pa.Table:
    """Reads the whole corpus or a part of it.

    Args:
        path: The folder with `transcript/` and `wav/`, or a folder below `wav/`. Transcripts of AISHELL-NER lie beside
            the original one in `transcript/`, or stand for it.
        corpus: Name of the corpus; by default the folder's.

    Returns:
        UTTERANCES sorted by id. `keywords` are the named entities of a line of AISHELL-NER, their kinds are attributes;
        without AISHELL-NER they are unknown. The reference is the original transcript's; `ner_text` among the
        attributes is that of AISHELL-NER where it reads otherwise. A recording without a transcript has no reference,
        a transcript without its recording keeps its row, which fails when it is read.

    Raises:
        ManifestError: no transcript or recording, an id that stands twice or is none of AISHELL, a mark that is not
            closed, or a speaker whose recordings are still packed.
    """
    top = Path(path).absolute()
    home = next((p for p in (top, *top.parents) if any((p / "transcript").glob("*.txt"))), None)
    if home is None:
        raise ManifestError(path, "has no transcript/*.txt in it or above it; name the folder data_aishell")
    recordings = {p.stem: p for p in sorted((home / "wav" if top == home else top).rglob("*.wav"))}
    if not recordings:
        raise ManifestError(path, "holds no recording wav/SPLIT/SPEAKER/ID.wav; unpack wav/*.tar.gz")
    folders = {p.parent.name: p.parent for p in recordings.values()}
    plain, marked = _transcripts(home / "transcript")
    if top == home:
        _refuse_packed(home, folders.keys(), {**marked, **plain})
    name = corpus or corpus_name(top / "manifest")
    spoken = {i for i in {*plain, *marked} if _speaker(i) in folders}
    rows = []
    for utterance_id in sorted({*spoken, *recordings}):
        place = recordings.get(utterance_id) or folders[_speaker(utterance_id)] / f"{utterance_id}.wav"
        rows.append(
            {
                "utterance_id": utterance_id,
                "corpus": name,
                "split": split_of(place.parent.parent.name),
                "speaker_id": place.parent.name,
                "recording_id": utterance_id,
                "audio_uri": str(place),
                "start_s": 0.0,
                "language": "zh",
                **_said(plain.get(utterance_id), marked.get(utterance_id)),
            }
        )
    return schema.conform(pa.Table.from_pylist(rows, schema=schema.UTTERANCES), "utterances")


def _said(plain: _Line | None, marked: _Line | None) -> dict[str, Any]:
    line = plain or marked
    attributes = []
    if marked is not None:
        for kind in _KINDS.values():
            phrases = dict.fromkeys(phrase for of, phrase in marked.entities if of == kind)
            attributes += [(kind, "|".join(phrases))] if phrases else []
        if line is not None and line.text != marked.text:
            attributes.append(("ner_text", marked.text))
    return {
        "reference": line.text if line else None,
        "keywords": list(dict.fromkeys(phrase for _, phrase in marked.entities)) if marked else None,
        "attributes": attributes or None,
    }


def _transcripts(folder: Path) -> tuple[dict[str, _Line], dict[str, _Line]]:
    """Id -> line of the files without entities, and of those with any."""
    plain: dict[str, _Line] = {}
    marked: dict[str, _Line] = {}
    owner: dict[tuple[bool, str], Path] = {}
    for file in sorted(folder.glob("*.txt")):
        lines = list(_lines(file))
        refuse_duplicates(file, ((number, utterance_id) for number, utterance_id, _ in lines))
        is_marked = any(line.entities for _, _, line in lines)
        for number, utterance_id, line in lines:
            first = owner.setdefault((is_marked, utterance_id), file)
            if first != file:
                raise ManifestError(file, f"'{utterance_id}' stands in {first} already; keep one of them", number)
            (marked if is_marked else plain)[utterance_id] = line
    return plain, marked


def _lines(file: Path) -> Iterator[tuple[int, str, _Line]]:
    for number, line in read_lines(file):
        utterance_id, _, said = line.strip().partition(" ")
        if not _SPEAKER.search(utterance_id):
            raise ManifestError(
                file, f"'{utterance_id}' is no id of AISHELL, expected one such as BAC009S0002W0122", number
            )
        yield number, utterance_id, _unmarked(file, number, "".join(said.split()))


def _unmarked(file: Path, number: int, marked: str) -> _Line:
    """A text without its marks, which may be nested, and what they are around."""
    text: list[str] = []
    opened: list[tuple[str, int]] = []
    entities = []
    for character in marked:
        if character in _OPEN:
            opened.append((character, len(text)))
        elif character in _OPEN.values():
            if not opened or _OPEN[opened[-1][0]] != character:
                raise ManifestError(file, f"'{character}' closes nothing in '{marked}'; mend the marks", number)
            mark, start = opened.pop()
            entities.append((_KINDS[mark], "".join(text[start:])))
        else:
            text.append(character)
    if opened:
        raise ManifestError(file, f"'{opened[-1][0]}' is never closed in '{marked}'; mend the marks", number)
    return _Line("".join(text), tuple(entities))


def _speaker(utterance_id: str) -> str:
    found = _SPEAKER.search(utterance_id)
    return found.group(1) if found else ""


def _refuse_packed(home: Path, unpacked: Collection[str], said: dict[str, _Line]) -> None:
    missing = sorted({_speaker(utterance_id) for utterance_id in said} - set(unpacked))
    if missing:
        raise ManifestError(
            home / "wav",
            f"has no folder of {len(missing)} speakers of the transcript ({', '.join(missing[:3])}, ...); unpack "
            f"wav/{missing[0]}.tar.gz, or name the part that you have, such as {home / 'wav' / 'test'}",
        )
