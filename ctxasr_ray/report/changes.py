"""A comparison of several systems -> the utterances whose words differ most, aligned and ready to embed.

All utterances are counted; only the most changed ones are aligned and kept, so a page stays quick at any size.
"""

import itertools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, unquote, urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ctxasr_ray import align, text
from ctxasr_ray.report.comparison import Comparison, confusions

MAX_UTTERANCES: Final = 200
"""Utterances that a page embeds, twice as many for more than six systems; the others are counted in its sums."""
MAX_BYTES: Final = 1_500_000
"""Size of all embedded utterances: forty systems on long recordings reach it before the number above."""

_NBEST_SHOWN: Final = 5
_NBEST_UTTERANCES: Final = 100
_FAILED_SHOWN: Final = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Changes:
    """What a page needs to compare any two systems, as plain JSON values."""

    systems: Sequence[str]
    normaliser: str
    start: Sequence[int]
    """The two systems that are shown first: the first one, and the other one with the fewest errors."""
    pairs: Sequence[Sequence[int]]
    """Per pair of systems `[a, b, fewer errors in b, more errors in b, as many but other words, equal words]`."""
    confusions: Sequence[Sequence[Any]]
    """See `comparison.confusions`."""
    utterances: Sequence[Mapping[str, Any]]
    """The most changed first. `variants`: the distinct transcripts, aligned; `of`: the variant of each system."""
    num_scored: int
    notes: Sequence[str]
    """What is left out, in words."""

    def as_json(self) -> dict[str, Any]:
        """Plain values for the page's script."""
        names = ("systems", "start", "normaliser", "pairs", "confusions", "utterances", "num_scored")
        return {name: getattr(self, name) for name in names}


def most_changed(
    comparison: Comparison,
    *,
    directory: Path,
    hypotheses: pa.Table | None = None,
    max_utterances: int | None = None,
) -> Changes:
    """Keeps the largest changes between any two systems, and counts all of them.

    Args:
        comparison: From `comparison.compare`.
        directory: Where the page will lie; paths to audio are written relative to it.
        hypotheses: N-best lists of the first pass, shown beside the transcripts.
        max_utterances: How many utterances are kept, >= 1, shared evenly by the pairs of systems; fewer where they
            take more than `MAX_BYTES`. None: `MAX_UTTERANCES`.
    """
    if max_utterances is None:
        max_utterances = MAX_UTTERANCES * (2 if len(comparison.systems) > 6 else 1)
    pairs, order = _order(comparison, max_utterances)
    wrong = (i for i in range(len(comparison.utterances)) if any(_error(column[i]) for column in comparison.rows))
    failed = list(itertools.islice(wrong, min(_FAILED_SHOWN, max_utterances)))
    kept = list(dict.fromkeys([*order[: max_utterances - len(failed)], *failed]))
    nbests = _nbests(comparison, hypotheses, kept[:_NBEST_UTTERANCES])
    shown: list[dict[str, Any]] = []
    size = 0
    for index in kept:
        entry = _entry(comparison, index, directory)
        nbest = nbests.get(entry["id"])
        entry |= {} if nbest is None else {"nbest": nbest}
        size += len(json.dumps(entry, ensure_ascii=False))
        if shown and size > MAX_BYTES:
            break
        shown.append(entry)
    return Changes(
        systems=comparison.systems,
        start=_start(comparison),
        normaliser=text.versioned(comparison.normaliser),
        pairs=pairs,
        confusions=confusions(comparison, limit=15 if len(comparison.systems) <= 10 else 6),
        utterances=shown,
        num_scored=len(comparison.utterances),
        notes=_notes(comparison, len(shown), hypotheses is not None),
    )


def _start(comparison: Comparison) -> list[int]:
    others = comparison.errors.sum(axis=1)[1:]
    return [0, 1 + int(np.argmin(others)) if len(others) else 0]


def _entry(comparison: Comparison, index: int, directory: Path) -> dict[str, Any]:
    """One utterance: systems that say the same share one alignment."""
    utterance, words = comparison.utterances[index], comparison.references[index].split()
    variants: dict[str, int] = {}
    of, ranks, failures = [], [], {}
    for system, (said, rows) in enumerate(zip(comparison.said, comparison.rows, strict=True)):
        row = rows[index]
        of.append(variants.setdefault(said[index], len(variants)))
        ranks.append(row["hypothesis_index"] if row else None)
        if reason := _error(row):
            failures[str(system)] = reason
    return {
        **_facts(utterance, directory),
        "words": words,
        "keywords": _keyword_words(words, utterance["keywords"] or [], comparison.normaliser),
        "variants": [_aligned(words, said.split(), comparison.alignment) for said in variants],
        "of": of,
        "ranks": ranks,
        "failures": failures,
    }


def _keyword_words(words: Sequence[str], phrases: Sequence[str], normaliser: str) -> list[int]:
    """Indices of the reference words that belong to a true keyword."""
    found: set[int] = set()
    for phrase in phrases:
        wanted = text.words(phrase, normaliser)
        for start in range(len(words) - len(wanted) + 1) if wanted else ():
            if list(words[start : start + len(wanted)]) == list(wanted):
                found.update(range(start, start + len(wanted)))
    return sorted(found)


def _error(row: Mapping[str, Any] | None) -> str:
    """Why there is no transcript; empty where there is one."""
    if row is None:
        return "this system has no row for the utterance"
    return "" if row["error_type"] is None else f"{row['error_type']}: {row['error']}"


def _order(comparison: Comparison, limit: int) -> tuple[list[list[int]], list[int]]:
    """Sums per pair of systems, and the utterances in the order in which a page should take them."""
    errors = comparison.errors
    # One number per text, so that forty systems are compared in pairs without comparing strings again and again.
    numbers: dict[str, int] = {}
    words = np.array([[numbers.setdefault(said, len(numbers)) for said in column] for column in comparison.said])
    pairs, orders = [], []
    for a, b in itertools.combinations(range(len(errors)), 2):
        gain = errors[a] - errors[b]
        moved = np.asarray(words[a] != words[b], bool)
        sums = (gain > 0, gain < 0, (gain == 0) & moved, ~moved)
        pairs.append([a, b, *(int(np.count_nonzero(s)) for s in sums)])
        orders.append(np.lexsort((-errors[b], ~moved, -np.abs(gain)))[:limit])
    if len(errors) == 1:
        orders = [np.argsort(-errors[0], kind="stable")[:limit]]
    # Pairs take turns, so that each of them finds its own largest changes on the page.
    found: dict[int, None] = {}
    for turn in zip(*orders, strict=True):
        found |= dict.fromkeys(int(index) for index in turn)
        if len(found) >= limit:
            break
    return pairs, list(found)


def _aligned(reference: Sequence[str], hypothesis: Sequence[str], alignment: str) -> dict[str, Any]:
    """`heard[i]`: the word for reference word i, 1 for the same, None for none; `inserted`: [position, word], ..."""
    heard: list[str | int | None] = [None] * len(reference)
    inserted: list[tuple[int, str]] = []
    position = errors = 0
    for op, row, column in align.align(reference, hypothesis, alignment):
        errors += op != "hit"
        if row is None and column is not None:
            inserted.append((position, hypothesis[column]))
        elif row is not None:
            heard[row] = None if column is None else 1 if op == "hit" else hypothesis[column]
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


def _nbests(comparison: Comparison, hypotheses: pa.Table | None, kept: Sequence[int]) -> dict[str, dict[str, Any]]:
    """Per utterance the head of its N-best list and its best hypothesis, each as [rank, text, errors]."""
    if hypotheses is None or not kept:
        return {}
    reference_of = {comparison.utterances[i]["utterance_id"]: comparison.references[i] for i in kept}
    wanted = pc.is_in(hypotheses["utterance_id"], pa.array(list(reference_of), pa.string()))
    found = hypotheses.select(["utterance_id", "hypotheses"]).filter(wanted)
    lists: dict[str, dict[str, Any]] = {}
    for row in found.to_pylist():
        texts = [h["text"] for h in row["hypotheses"]]
        if not texts:
            continue
        units = text.units(texts, comparison.normaliser, "word")
        references, said = align.encode("word", [reference_of[row["utterance_id"]]] * len(units), units)
        errors = align.count(references, said, comparison.alignment).errors.tolist()
        best = min(range(len(texts)), key=lambda rank: errors[rank])
        ranks = sorted({*range(min(_NBEST_SHOWN, len(texts))), best})
        lists[row["utterance_id"]] = {
            "size": len(texts),
            "best": best,
            "rows": [[rank, texts[rank], errors[rank]] for rank in ranks],
        }
    return lists


def _notes(comparison: Comparison, num_shown: int, has_lists: bool) -> list[str]:
    num_scored = len(comparison.utterances)
    notes = [f"This page holds the {num_shown:,} most changed of {num_scored:,} utterances with a reference."]
    if has_lists and num_shown > _NBEST_UTTERANCES:
        notes.append(f"N-best lists stand beside the first {_NBEST_UTTERANCES} of them.")
    if comparison.num_unreferenced:
        notes.append(f"{comparison.num_unreferenced:,} utterances without a reference are left out here.")
    missing = sum(row is None for column in comparison.rows for row in column)
    if missing:
        notes.append(f"{missing:,} transcripts are missing (an utterance that a system has no row for).")
    return notes
