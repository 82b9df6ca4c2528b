"""N-best lists between Arrow and numpy: the one place that pays for nested lists.

HYPOTHESES and SCORES tables in; flat texts, offsets and score matrices out, and the way back.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ctxasr_ray.schema import HYPOTHESES, SCORES, ContractError, conform


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """One source's score of one hypothesis, in nats, unweighted."""

    source: str
    kind: str
    """One of `schema.SCORE_KINDS`."""
    log_prob: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Hypothesis:
    """One candidate transcript with the recogniser's evidence; the lists are parallel to its tokens."""

    text: str
    token_ids: Sequence[int] | None = None
    token_log_probs: Sequence[float] | None = None
    token_entropies: Sequence[float] | None = None
    token_start_s: Sequence[float] | None = None
    token_end_s: Sequence[float] | None = None
    token_words: Sequence[int] | None = None
    """Index in `text.split()` of the word that each token belongs to; -1 for a token that belongs to none."""
    scores: Sequence[Score] = ()
    search_score: float | None = None
    origin: str = "search"
    """One of `schema.ORIGINS`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NBest:
    """The candidates of one utterance, best first; an error has no candidates and its reason."""

    utterance_id: str
    hypotheses: Sequence[Hypothesis] = ()
    error_type: str | None = None
    error: str | None = None


def hypotheses_table(nbests: Sequence[NBest]) -> pa.Table:
    """One HYPOTHESES row per list, in the order given."""
    rows = [
        {
            "utterance_id": nbest.utterance_id,
            "hypotheses": [
                {
                    "text": h.text,
                    "token_ids": h.token_ids,
                    "token_log_probs": h.token_log_probs,
                    "token_entropies": h.token_entropies,
                    "token_start_s": h.token_start_s,
                    "token_end_s": h.token_end_s,
                    "token_words": h.token_words,
                    "scores": [{"source": s.source, "kind": s.kind, "log_prob": s.log_prob} for s in h.scores],
                    "search_score": h.search_score,
                    "origin": h.origin,
                }
                for h in nbest.hypotheses
            ],
            "error_type": nbest.error_type,
            "error": nbest.error,
        }
        for nbest in nbests
    ]
    return conform(pa.Table.from_pylist(rows, schema=HYPOTHESES), "hypotheses")


def read_nbest(hypotheses: pa.Table) -> list[NBest]:
    """The rows of a HYPOTHESES table as objects, for code that walks one utterance at a time."""
    present = set(hypotheses.column_names)
    return [
        NBest(
            utterance_id=row["utterance_id"],
            hypotheses=tuple(
                Hypothesis(**{**h, "scores": tuple(Score(**s) for s in h["scores"])}) for h in row["hypotheses"]
            ),
            error_type=row["error_type"] if "error_type" in present else None,
            error=row["error"] if "error" in present else None,
        )
        for row in hypotheses.to_pylist()
    ]


@dataclass(frozen=True, slots=True)
class FlatNBest:
    """All hypotheses of a shard in one line.

    Args:
        utterance_ids: (U,) ids.
        offsets: (U + 1,) int64; utterance u owns hypotheses offsets[u] to offsets[u + 1].
        texts: (H,) raw texts.
    """

    utterance_ids: list[str]
    offsets: npt.NDArray[np.int64]
    texts: list[str]

    def rows(self) -> npt.NDArray[np.int64]:
        """(H,) index of the utterance that owns each hypothesis."""
        return np.repeat(np.arange(len(self.utterance_ids)), np.diff(self.offsets))

    def bounds(self) -> list[tuple[int, int]]:
        """(U,) first hypothesis of each utterance, and the one behind its last."""
        return list(itertools.pairwise(self.offsets.tolist()))


def flatten(hypotheses: pa.Table) -> FlatNBest:
    """Texts and offsets of a HYPOTHESES table, without a Python loop over utterances."""
    column = hypotheses.column("hypotheses").combine_chunks()
    lengths = column.value_lengths().to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return FlatNBest(
        utterance_ids=hypotheses.column("utterance_id").to_pylist(),
        offsets=offsets,
        texts=column.flatten().field("text").to_pylist(),
    )


@dataclass(frozen=True, slots=True)
class ScoreMatrix:
    """Every source's score of every hypothesis, apart.

    Args:
        sources: (K,) unique names; end of sequence stands apart as "<source>/eos".
        kinds: (K,) one of `schema.SCORE_KINDS`.
        offsets: (U + 1,) int64, as in `FlatNBest`.
        values: (H, K) float64 in nats; nan where a source has no score for a hypothesis.
    """

    sources: list[str]
    kinds: list[str]
    offsets: npt.NDArray[np.int64]
    values: npt.NDArray[np.float64]


def score_matrix(hypotheses: pa.Table, scores: Sequence[pa.Table] = ()) -> ScoreMatrix:
    """Columns for the recogniser's own scores and for every source of the SCORES tables.

    Args:
        hypotheses: HYPOTHESES rows; kind `search` is left out, being a record that nobody re-weights.
        scores: SCORES tables on exactly these HYPOTHESES, same rows in the same order.

    Raises:
        ContractError: other ids or another number of hypotheses than in HYPOTHESES, or a source
            that stands in two tables (it would be added twice).
    """
    flat = flatten(hypotheses)
    columns: dict[str, tuple[str, npt.NDArray[np.float64]]] = {}
    _own_scores(hypotheses, len(flat.texts), columns)
    own = set(columns)
    for table in scores:
        _scorer_columns(table, flat, columns, own)
    names = list(columns)
    values = np.stack([columns[n][1] for n in names], axis=1) if names else np.zeros((len(flat.texts), 0))
    return ScoreMatrix(names, [columns[n][0] for n in names], flat.offsets, values)


def _own_scores(
    hypotheses: pa.Table, num_hypotheses: int, columns: dict[str, tuple[str, npt.NDArray[np.float64]]]
) -> None:
    nested = hypotheses.column("hypotheses").combine_chunks().flatten().field("scores")
    owner = np.repeat(np.arange(num_hypotheses), nested.value_lengths().to_numpy(zero_copy_only=False))
    flat = nested.flatten()
    sources, kinds = np.asarray(flat.field("source")), np.asarray(flat.field("kind"))
    log_probs = flat.field("log_prob").to_numpy(zero_copy_only=False)
    for source in dict.fromkeys(sources.tolist()):
        mine = sources == source
        kind = str(kinds[mine][0])
        if kind == "search":
            continue
        values = np.full(num_hypotheses, np.nan)
        values[owner[mine]] = log_probs[mine]
        columns[source] = (kind, values)


def _scorer_columns(
    table: pa.Table, flat: FlatNBest, columns: dict[str, tuple[str, npt.NDArray[np.float64]]], own: set[str]
) -> None:
    ids = table.column("utterance_id").to_pylist()
    if ids != flat.utterance_ids:
        raise ContractError(
            f"scores: {len(ids)} ids that are not the {len(flat.utterance_ids)} of the hypotheses, in their order; "
            "rescore with the current HYPOTHESES."
        )
    lengths = np.diff(flat.offsets)
    seen: set[str] = set()
    for u, row in enumerate(table.column("sources").to_pylist()):
        for source in row:
            for name, key in ((source["source"], "log_probs"), (f"{source['source']}/eos", "eos_log_probs")):
                if source[key] is None:
                    continue
                if len(source[key]) != lengths[u]:
                    raise ContractError(
                        f"scores '{name}', utterance '{ids[u]}': {len(source[key])} {key} for {lengths[u]} hypotheses; "
                        "rescore with the current HYPOTHESES."
                    )
                if name in columns and name not in seen:
                    where = "the recogniser's own scores" if name in own else "two SCORES tables"
                    raise ContractError(f"scores: source '{name}' stands in {where}; it would be added twice.")
                if name not in columns:
                    columns[name] = (source["kind"], np.full(len(flat.texts), np.nan))
                seen.add(name)
                columns[name][1][flat.offsets[u] : flat.offsets[u + 1]] = [
                    np.nan if v is None else v for v in source[key]
                ]


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceScores:
    """What a scorer says of one utterance's hypotheses; None where it cannot score one, with the reason."""

    source: str
    log_probs: Sequence[float | None]
    kind: str = "log_prob"
    eos_log_probs: Sequence[float | None] | None = None
    num_tokens: Sequence[int | None] | None = None
    reasons: Sequence[str | None] | None = None


def scores_table(
    utterance_ids: Sequence[str],
    sources: Sequence[Sequence[SourceScores]],
    errors: Sequence[tuple[str, str] | None] | None = None,
) -> pa.Table:
    """One SCORES row per utterance; `errors` holds (error_type, message) where a whole utterance failed."""
    rows = [
        {
            "utterance_id": utterance_id,
            "sources": [
                {
                    "source": s.source,
                    "kind": s.kind,
                    "log_probs": list(s.log_probs),
                    "eos_log_probs": None if s.eos_log_probs is None else list(s.eos_log_probs),
                    "num_tokens": None if s.num_tokens is None else list(s.num_tokens),
                    "reasons": None if s.reasons is None else list(s.reasons),
                }
                for s in own
            ],
            "error_type": error[0] if error else None,
            "error": error[1] if error else None,
        }
        for utterance_id, own, error in zip(utterance_ids, sources, errors or [None] * len(utterance_ids), strict=True)
    ]
    return conform(pa.Table.from_pylist(rows, schema=SCORES), "scores")
