"""UTTERANCES with captions, TRANSCRIPTS of a stronger model -> the utterances whose transcripts may be learnt from.

What was heard becomes the reference; captions that somebody put beside the recordings only say where that is wrong.

Reference:
    Wang et al. 2025, arXiv:2502.16142, for the three filters (WER against given captions, too simple sentences, longer
    than 20 s). Thresholds of the first two are not published; ours are plain fields.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ctxasr_ray import align, schema, text
from ctxasr_ray.metrics.joined_windows import references_of_whole_rows


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelFilters:
    """What a transcript must be to become a label."""

    max_wer: float | None = 0.3
    """Word errors of the transcript against the caption, per word of the caption. None: captions are not asked."""
    min_distinct_words: int = 4
    """Different words that a sentence needs; with fewer it is too simple (thanks, yes yes yes)."""
    max_duration_s: float = 20.0
    """Seconds of the recording."""

    def __post_init__(self) -> None:
        """Refuses limits that keep nothing, or are no number."""
        keeps = (self.max_wer is None or self.max_wer >= 0) and self.min_distinct_words >= 0 and self.max_duration_s > 0
        if not keeps:  # nan, too
            raise ValueError(f"label filters: got {asdict(self)}; expected limits of 0 or more, and some seconds.")


@dataclass(frozen=True, slots=True)
class Yield:
    """What one filter did, behind those before it."""

    name: str
    """heard (decoding failed, or nothing was heard), caption (there is none), wer, simple, long."""
    num_seen: int
    num_dropped: int
    num_dropped_alone: int
    """What it would drop if it were the only filter."""
    kept_s: float
    """Seconds of speech behind it."""

    @property
    def num_kept(self) -> int:
        """Utterances behind it."""
        return self.num_seen - self.num_dropped


def label(
    utterances: pa.Table, transcripts: pa.Table, filters: LabelFilters, *, normaliser: str, labelled_by: str
) -> tuple[pa.Table, list[Yield]]:
    """Keeps the utterances whose transcripts pass every filter.

    Args:
        utterances: UTTERANCES; `reference` is the caption, null where there is none. A caption of a whole recording
            says nothing of one of its windows.
        transcripts: TRANSCRIPTS, row for row.
        filters: The limits.
        normaliser: Of the words that are compared and counted.
        labelled_by: Goes into the attributes.

    Returns:
        UTTERANCES with the transcript as `reference`; `caption`, `caption_wer` and `labelled_by` are attributes. And
        one yield per filter, in their order.

    Raises:
        ValueError: the tables are not of the same rows, or an unknown normaliser.
    """
    if not utterances["utterance_id"].equals(transcripts["utterance_id"]):
        raise ValueError("pseudo-labels: utterances and transcripts are not the same rows; give both of one run.")
    captions = references_of_whole_rows(utterances)
    heard = transcripts["text"].to_pylist()
    said = text.units(heard, normaliser, "word")
    wers = _wers(captions, said, normaliser)
    durations = [np.inf if seconds is None else seconds for seconds in utterances["duration_s"].to_pylist()]
    passes = {"heard": np.array([bool(words) for words in said]) & ~transcripts["error_type"].is_valid().to_numpy()}
    if filters.max_wer is not None:
        passes["caption"] = np.array([caption is not None for caption in captions])
        passes["wer"] = ~(wers > filters.max_wer)  # nan, without a caption, is not its business
    passes["simple"] = np.array([len(set(words.split())) >= filters.min_distinct_words for words in said])
    passes["long"] = np.array(durations) <= filters.max_duration_s
    kept, yields = _through(passes, np.array(durations))
    rows = utterances.to_pylist()
    labels = [_labelled(rows[i], heard[i], captions[i], wers[i], labelled_by) for i in np.flatnonzero(kept).tolist()]
    return schema.conform(pa.Table.from_pylist(labels, schema=schema.UTTERANCES), "utterances"), yields


def _wers(captions: Sequence[str | None], said: Sequence[str], normaliser: str) -> npt.NDArray[np.float64]:
    """(U,) word errors per word of the caption; nan without a caption, infinite where an empty one was spoken over."""
    references = text.units([caption or "" for caption in captions], normaliser, "word")
    encoded = align.encode("word", references, said)
    errors, lengths = align.distances(*encoded), encoded[0].lengths
    with np.errstate(divide="ignore", invalid="ignore"):
        wers = np.where(errors == 0, 0.0, errors / lengths)
    wers[[caption is None for caption in captions]] = np.nan
    return wers


def _through(
    passes: Mapping[str, npt.NDArray[np.bool_]], durations_s: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.bool_], list[Yield]]:
    left = np.ones(len(durations_s), bool)
    yields = []
    for name, passed in passes.items():
        behind = left & passed
        seen = int(left.sum())
        seconds = float(durations_s[behind & np.isfinite(durations_s)].sum())
        yields.append(Yield(name, seen, seen - int(behind.sum()), int((~passed).sum()), seconds))
        left = behind
    return left, yields


def _labelled(row: dict[str, Any], heard: str, caption: str | None, wer: float, labelled_by: str) -> dict[str, Any]:
    known = [] if caption is None else [("caption", caption), ("caption_wer", f"{wer:.4f}")]
    attributes = dict([*(row["attributes"] or ()), *known, ("labelled_by", labelled_by)])
    return {**row, "reference": heard, "attributes": list(attributes.items())}
