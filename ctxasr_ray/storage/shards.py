"""UTTERANCES -> shards of equal audio: the unit of work, of commit, of retry and of resume.

The cut depends on ids, sessions and durations only, so that mended references leave every shard where it was.
"""

import dataclasses
import hashlib
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa

from ctxasr_ray import schema

UNKNOWN_DURATION_S: Final = 10.0
"""What an utterance without a duration counts when no utterance of its split has one; else their mean."""


@dataclass(frozen=True, slots=True)
class Shard:
    """A description of one shard; all that ever travels between processes."""

    name: str
    """`corpus-split-number`, for example "quickstart-test-00003"; stays the same when a reference is mended."""
    corpus: str
    split: str
    num_rows: int
    audio_s: float
    """Seconds of audio, unknown durations counted by the mean."""
    uri: str
    """Its UTTERANCES file: root, slash, key."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON and for Ray Data rows."""
        return dataclasses.asdict(self)


def cut(
    utterances: pa.Table, *, shard_audio_s: float, seed: int
) -> dict[tuple[str, str], Iterator[tuple[pa.Table, float]]]:
    """Cuts a manifest into shards of about equal audio, by a seeded draw of whole sessions.

    Args:
        utterances: UTTERANCES of any corpora and splits, in any order.
        shard_audio_s: Seconds of audio per shard, > 0; the number of shards of a split is its audio
            divided by this, rounded, at least 1. A session longer than this makes a longer shard.
        seed: Of the draw. The same ids, sessions, durations and seed give the same cut, whatever the row order.

    Returns:
        (corpus, split) -> per shard its table and its seconds of audio, made as they are asked for, because a
        table of one row takes 18 KB. Utterances of one session (without one, of one recording; without either,
        single ones) lie together; rows are sorted by duration, longest first, so that batches pad little and a
        shard that does not fit fails at once.

    Raises:
        ValueError: a split that is not train, dev or test; a corpus name that cannot stand in a file name;
            a shard length that is not positive.
        ContractError: the table breaks its schema.
    """
    if not shard_audio_s > 0:
        raise ValueError(f"shard_audio_s: got {shard_audio_s}; expected a number of seconds above 0, for example 600.")
    utterances = schema.conform(utterances, "utterances")
    rows: dict[tuple[str, str], list[int]] = defaultdict(list)
    for row, pair in enumerate(zip(utterances["corpus"].to_pylist(), utterances["split"].to_pylist(), strict=True)):
        rows[pair].append(row)
    for corpus, split in rows:
        if split not in schema.SPLITS:
            raise ValueError(
                f"corpus '{corpus}', column 'split': got '{split}'; expected one of {', '.join(schema.SPLITS)}."
            )
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", corpus):
            raise ValueError(
                f"column 'corpus': got '{corpus}'; expected letters, digits, dots, dashes and underscores only: "
                "it names files."
            )
    return {pair: _cut_split(utterances.take(rows[pair]), pair, shard_audio_s, seed) for pair in sorted(rows)}


def _cut_split(
    table: pa.Table, pair: tuple[str, str], shard_audio_s: float, seed: int
) -> Iterator[tuple[pa.Table, float]]:
    given = table["duration_s"].to_pylist()
    known = [d for d in given if d is not None]
    usual = sum(known) / len(known) if known else UNKNOWN_DURATION_S
    durations = [usual if d is None else d for d in given]
    ids = table["utterance_id"].to_pylist()
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    sessions, recordings = table["session_id"].to_pylist(), table["recording_id"].to_pylist()
    for row, (id_, session, recording) in enumerate(zip(ids, sessions, recordings, strict=True)):
        if session is not None:
            groups["session", session].append(row)
        elif recording is not None:
            groups["recording", recording].append(row)
        else:
            groups["utterance", id_].append(row)
    drawn = int.from_bytes(hashlib.sha256("\n".join([*pair, str(seed)]).encode()).digest()[:8], "big")
    names = sorted(groups)
    order = np.random.default_rng(drawn).permutation(len(names))
    total = sum(durations)
    num_shards = max(1, round(total / shard_audio_s))
    members: list[list[int]] = [[] for _ in range(num_shards)]
    before = 0.0
    for group in (groups[names[i]] for i in order):
        audio_s = sum(durations[row] for row in group)
        middle = (before + audio_s / 2) / total if total > 0 else 0.0
        members[min(num_shards - 1, int(middle * num_shards))] += group
        before += audio_s
    for rows in members:
        if rows:  # a long session can leave its neighbour empty
            rows.sort(key=lambda row: (-durations[row], ids[row]))
            yield table.take(rows), sum(durations[row] for row in rows)
