"""UTTERANCES, TRANSCRIPTS of several systems -> the utterances whose words differ most, aligned and ready to embed.

All utterances are counted; only the most changed ones are aligned and kept, so a page stays quick at any size.
"""

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, unquote, urlsplit

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ctxasr_ray import align, text

MAX_UTTERANCES: Final = 200
"""Utterances that a page embeds; the others are counted in its sums."""

_NBEST_SHOWN: Final = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Changes:
    """What a page needs to compare any two systems, as plain JSON values."""

    systems: Sequence[str]
    normaliser: str
    pairs: Sequence[Sequence[int]]
    """Per pair of systems `[a, b, fewer errors in b, more errors in b, as many but other words, equal words]`."""
    utterances: Sequence[Mapping[str, Any]]
    """The most changed first; per system the hypothesis word of each reference word and what was inserted before it."""
    num_scored: int
    notes: Sequence[str]
    """What is left out, in words."""

    def as_json(self) -> dict[str, Any]:
        """Plain values for the page's script."""
        names = ("systems", "normaliser", "pairs", "utterances", "num_scored")
        return {name: getattr(self, name) for name in names}


def most_changed(
    utterances: pa.Table,
    transcripts: Mapping[str, pa.Table],
    *,
    directory: Path,
    normaliser: str,
    alignment: str = "unit",
    hypotheses: pa.Table | None = None,
    max_utterances: int = MAX_UTTERANCES,
) -> Changes:
    """Compares every two systems on every utterance with a reference and keeps the largest changes.

    Args:
        utterances: UTTERANCES; rows without a reference are left out and counted in a note.
        transcripts: System name -> TRANSCRIPTS; rows are matched by `utterance_id`, a missing one counts as empty.
        directory: Where the page will lie; paths to audio are written relative to it.
        normaliser: One of `text.NORMALISERS`; words are compared after it.
        alignment: One of `align.ALIGNMENTS`.
        hypotheses: N-best lists of the first pass, shown beside the transcripts.
        max_utterances: How many utterances are kept, >= 1, shared evenly by the pairs of systems.
    """
    scored = [row for row in utterances.to_pylist() if row["reference"] is not None]
    systems = list(transcripts)
    rows = [_by_id(table, scored) for table in transcripts.values()]
    raw = [[row["text"] if row else "" for row in column] for column in rows]
    references = text.units([row["reference"] for row in scored], normaliser, "word")
    said = [text.units(column, normaliser, "word") for column in raw]
    encoded = align.encode("word", references, *said)
    errors = np.array([align.count(encoded[0], side, alignment).errors for side in encoded[1:]]).reshape(
        len(systems), len(scored)
    )
    pairs, order = _compare(errors, said)
    failed = [i for i in range(len(scored)) if any(row is None or row["error"] for row in (c[i] for c in rows))]
    kept = list(dict.fromkeys([*order[: max_utterances - len(failed[:20])], *failed[:20]])) if systems else []
    nbests = _nbests(hypotheses, [scored[i]["utterance_id"] for i in kept], normaliser, [references[i] for i in kept])
    shown = []
    for index in kept:
        words = references[index].split()
        heard = [_aligned(words, side[index].split(), alignment) for side in said]
        for place, aligned in enumerate(heard):
            row = rows[place][index]
            aligned["text"] = raw[place][index]
            aligned["rank"] = row["hypothesis_index"] if row else None
            aligned["error"] = (row["error"] or "") if row else "this system has no row for the utterance"
        utterance = scored[index]
        shown.append({**_facts(utterance, directory), "words": words, "systems": heard})
        if utterance["utterance_id"] in nbests:
            shown[-1]["nbest"] = nbests[utterance["utterance_id"]]
    return Changes(
        systems=systems,
        normaliser=text.versioned(normaliser),
        pairs=pairs,
        utterances=shown,
        num_scored=len(scored),
        notes=_notes(utterances.num_rows, len(scored), len(shown), rows),
    )


def _by_id(table: pa.Table, scored: Sequence[Mapping[str, Any]]) -> list[dict[str, Any] | None]:
    columns = table.select(["utterance_id", "text", "hypothesis_index", "error"])
    found = {row["utterance_id"]: row for row in columns.to_pylist()}
    return [found.get(row["utterance_id"]) for row in scored]


def _compare(errors: npt.NDArray[np.int64], said: Sequence[Sequence[str]]) -> tuple[list[list[int]], list[int]]:
    """Sums per pair of systems, and all utterances in the order in which a page should take them."""
    words = np.array(said, dtype=object)
    pairs, orders = [], []
    for a, b in itertools.combinations(range(len(errors)), 2):
        gain = errors[a] - errors[b]
        moved = np.asarray(words[a] != words[b], bool)
        sums = (gain > 0, gain < 0, (gain == 0) & moved, ~moved)
        pairs.append([a, b, *(int(np.count_nonzero(s)) for s in sums)])
        orders.append(np.lexsort((-errors[b], ~moved, -np.abs(gain))))
    if not orders and len(errors):
        orders = [np.argsort(-errors[0], kind="stable")]
    # Pairs take turns, so that each of them finds its own largest changes on the page.
    turns = (int(index) for turn in zip(*orders, strict=True) for index in turn)
    return pairs, list(dict.fromkeys(turns))


def _aligned(reference: Sequence[str], hypothesis: Sequence[str], alignment: str) -> dict[str, Any]:
    """`heard[i]`: what stands for reference word i, None where deleted; `inserted`: [position, word], ...; `errors`."""
    heard: list[str | None] = [None] * len(reference)
    inserted: list[tuple[int, str]] = []
    position = errors = 0
    for op, row, column in align.align(reference, hypothesis, alignment):
        errors += op != "hit"
        if row is None and column is not None:
            inserted.append((position, hypothesis[column]))
        elif row is not None:
            heard[row] = None if column is None else hypothesis[column]
            position = int(row) + 1
    return {"heard": heard, "inserted": inserted, "errors": errors}


def _facts(utterance: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    source, why_not = audio_source(utterance["audio_uri"], directory)
    start, duration = utterance["start_s"], utterance["duration_s"]
    if source and (start or duration is not None):
        source += f"#t={start:.3f}" + (f",{start + duration:.3f}" if duration is not None else "")
    return {
        "id": utterance["utterance_id"],
        "split": utterance["split"],
        "speaker": utterance["speaker_id"] or "",
        "tags": [f"{name}: {value}" for name, value in (utterance["attributes"] or [])],
        "reference": utterance["reference"],
        "audio": source,
        "no_audio": why_not,
    }


def audio_source(uri: str, directory: Path) -> tuple[str | None, str | None]:
    """A source that a browser can play from `directory`, or None and the reason why there is none.

    Args:
        uri: `audio_uri` of UTTERANCES: a path, a URL or `archive.tar#member`.
        directory: Where the page lies.
    """
    parts = urlsplit(uri)
    if parts.scheme in ("http", "https"):
        return uri, None
    path = Path(unquote(parts.path)) if parts.scheme == "file" else Path(uri)
    if path.is_file():
        return quote(os.path.relpath(path.resolve(), directory.resolve())), None
    if ".tar" in uri and "#" in uri:
        return None, f"The audio lies inside an archive ({uri}); a browser cannot reach it."
    return None, f"The audio cannot be reached from here: {uri}"


def _nbests(
    hypotheses: pa.Table | None, ids: Sequence[str], normaliser: str, references: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Per utterance the head of its N-best list and its best hypothesis, each as [rank, text, errors]."""
    if hypotheses is None or not ids:
        return {}
    wanted = pa.compute.is_in(hypotheses["utterance_id"], pa.array(ids, pa.string()))
    found = hypotheses.select(["utterance_id", "hypotheses"]).filter(wanted)
    reference_of = dict(zip(ids, references, strict=True))
    lists: dict[str, dict[str, Any]] = {}
    for row in found.to_pylist():
        texts = [h["text"] for h in row["hypotheses"]]
        if not texts:
            continue
        units = text.units(texts, normaliser, "word")
        sides = align.encode("word", [reference_of[row["utterance_id"]]] * len(units), units)
        errors = align.distances(*sides).tolist()
        best = min(range(len(texts)), key=lambda rank: errors[rank])
        ranks = sorted({*range(min(_NBEST_SHOWN, len(texts))), best})
        lists[row["utterance_id"]] = {
            "size": len(texts),
            "best": best,
            "rows": [[rank, texts[rank], errors[rank]] for rank in ranks],
        }
    return lists


def _notes(
    num_rows: int, num_scored: int, num_shown: int, rows: Sequence[Sequence[Mapping[str, Any] | None]]
) -> list[str]:
    notes = [f"This page holds the {num_shown:,} most changed of {num_scored:,} utterances with a reference."]
    if num_rows > num_scored:
        notes.append(f"{num_rows - num_scored:,} utterances without a reference are left out here.")
    missing = sum(row is None for column in rows for row in column)
    if missing:
        notes.append(f"{missing:,} transcripts are missing (an utterance that a system has no row for).")
    return notes
