"""Scores times weights -> the winner of each list: the one sum that fitting and fusing share.

Shapes: U utterances, H hypotheses of all utterances in one line, D weighted values.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ctxasr_ray.nbest import ScoreMatrix, score_matrix
from ctxasr_ray.schema import ContractError

LENGTH_BONUS: Final = "length_bonus"
"""Name of the value that multiplies the number of normalised words (or characters) of a hypothesis."""
_EOS: Final = "/eos"


@dataclass(frozen=True, slots=True)
class Features:
    """What the weights multiply.

    Args:
        names: (D,) sources, and `length_bonus` where it takes part.
        offsets: (U + 1,) int64; utterance u owns hypotheses offsets[u] to offsets[u + 1].
        values: (H, D) float64, log-probs in nats (and lengths); nan where a score is missing. Column-major.
    """

    names: list[str]
    offsets: npt.NDArray[np.int64]
    values: npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Inputs:
    """The tables of a fusion step by what they are; a step names its inputs in this order."""

    hypotheses: pa.Table
    scores: list[pa.Table]
    fits: pa.Table | None
    nbest_errors: pa.Table | None
    utterances: pa.Table | None


def read_inputs(tables: Sequence[pa.Table]) -> Inputs:
    """Tells the tables of a fusion step apart by their columns, because all but HYPOTHESES may be absent.

    Raises:
        ValueError: the first table is not HYPOTHESES, or a table is of no or of a repeated kind.
    """
    if not tables or "hypotheses" not in tables[0].column_names:
        raise ValueError("fusion: the first input is not a HYPOTHESES table; name the first-pass step first.")
    scores: list[pa.Table] = []
    single: dict[str, pa.Table] = {}
    for index, table in enumerate(tables[1:], start=1):
        columns = set(table.column_names)
        if "sources" in columns:
            scores.append(table)
            continue
        kind = next((k for k, key in _KINDS.items() if key in columns), None)
        if kind is None or (kind in single and kind != "fits"):
            raise ValueError(
                f"fusion: input {index} has columns {sorted(columns)}; expected SCORES and FITS tables, and at "
                "most one each of NBEST_ERRORS and UTTERANCES."
            )
        single[kind] = pa.concat_tables([single[kind], table]) if kind in single else table
    return Inputs(tables[0], scores, single.get("fits"), single.get("nbest_errors"), single.get("utterances"))


_KINDS: Final[Mapping[str, str]] = {"fits": "values", "nbest_errors": "counts", "utterances": "speaker_id"}


def recogniser(hypotheses: pa.Table) -> list[str]:
    """The first source of the hypotheses' own scores, as a list of one; empty for lists without scores."""
    scores = hypotheses.column("hypotheses").combine_chunks().flatten().field("scores").flatten()
    first = scores.filter(pc.not_equal(scores.field("kind"), "search")).field("source")[:1]
    return [str(source) for source in first.to_pylist()]


def source_names(matrix: ScoreMatrix) -> list[str]:
    """The sources of a matrix that need a weight: an end-of-sequence source goes with its own."""
    return [s for s in matrix.sources if not (s.endswith(_EOS) and s.removesuffix(_EOS) in matrix.sources)]


def read_scores(inputs: Inputs, names: Sequence[str]) -> ScoreMatrix:
    """The score matrix of a step, with a column of nan for a named source whose scorer failed on every utterance.

    Raises:
        ContractError: a named source stands nowhere although its scorer answered, or a source has no name
            (its scores would be ignored in silence).
    """
    matrix = score_matrix(inputs.hypotheses, inputs.scores)
    unnamed = [s for s in source_names(matrix) if s not in names]
    if unnamed:
        raise ContractError(
            f"fusion: sources {unnamed} have no weight; got weights for {list(names)}. Give a weight (0 ignores a "
            "source) or fit again with these inputs."
        )
    missing = [n for n in names if n != LENGTH_BONUS and n not in matrix.sources]
    if not missing:
        return matrix
    if not _scorers_failed(inputs, matrix):
        raise ContractError(
            f"fusion: weights are given for {missing}, which no input has; got sources {matrix.sources}. "
            "Add the scorer's step to the inputs or drop the weight."
        )
    num_hypotheses = len(matrix.values)
    return ScoreMatrix(
        sources=[*matrix.sources, *missing],
        kinds=[*matrix.kinds, *["log_prob"] * len(missing)],
        offsets=matrix.offsets,
        values=np.concatenate([matrix.values, np.full((num_hypotheses, len(missing)), np.nan)], axis=1),
    )


def _scorers_failed(inputs: Inputs, matrix: ScoreMatrix) -> bool:
    """Whether every utterance that has hypotheses lacks all sources of some SCORES table."""
    answered = np.diff(matrix.offsets) > 0
    for table in inputs.scores:
        lengths = pc.list_value_length(table.column("sources")).to_numpy(zero_copy_only=False)
        answered &= lengths > 0
    return not answered.any()


def features(matrix: ScoreMatrix, names: Sequence[str], num_units_H: npt.NDArray[np.float64] | None = None) -> Features:
    """Folds sources into one column per name; "<source>/eos" is added to its source unless it has its own name.

    Args:
        matrix: Scores of all sources.
        names: (D,) sources in the order of the weights; `length_bonus` stands for `num_units_H`.
        num_units_H: Normalised words (or characters) of each hypothesis.
    """
    columns = {name: matrix.values[:, k] for k, name in enumerate(matrix.sources)}
    values_HD = np.empty((len(matrix.values), len(names)), order="F")
    for d, name in enumerate(names):
        if name == LENGTH_BONUS:
            assert num_units_H is not None
            values_HD[:, d] = num_units_H
            continue
        values_HD[:, d] = columns[name]
        eos = name + _EOS
        if eos in columns and eos not in names:
            values_HD[:, d] += columns[eos]
    return Features(list(names), matrix.offsets, values_HD)


def fused_scores(values_HD: npt.NDArray[np.float64], weights_D: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Weighted sums in a fixed order, so that equal rows get equal bits; a weight of 0 leaves its value out.

    Returns:
        (H,) float64; nan where a value with a weight other than 0 is missing.
    """
    fused_H = np.zeros(len(values_HD))
    for d in np.flatnonzero(weights_D):
        fused_H += weights_D[d] * values_HD[:, d]
    return fused_H


def winners(
    offsets: npt.NDArray[np.int64], fused_H: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """The best hypothesis of each list; the earlier one where two tie.

    Returns:
        (U,) int64 positions among all hypotheses, -1 for an empty list; (U,) bool, True where a score is
        missing and the first hypothesis, the first pass's choice, is kept.
    """
    lengths = np.diff(offsets)
    filled = np.flatnonzero(lengths)
    starts = offsets[:-1][filled]
    winner_U = np.full(len(lengths), -1, dtype=np.int64)
    unscored_U = np.zeros(len(lengths), dtype=bool)
    if not len(filled):
        return winner_U, unscored_U
    best = np.maximum.reduceat(fused_H, starts)  # a nan anywhere in the list makes it nan
    owner_H = np.repeat(np.arange(len(filled)), lengths[filled])
    hits = np.flatnonzero(fused_H == best[owner_H])
    owners, first = np.unique(owner_H[hits], return_index=True)
    winner_U[filled] = starts
    winner_U[filled[owners]] = hits[first]
    unscored_U[filled] = np.isnan(best)
    return winner_U, unscored_U
