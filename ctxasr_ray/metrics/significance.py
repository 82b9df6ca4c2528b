"""Error counts per utterance -> intervals and paired tests, resampled by whole speakers.

Utterances of one speaker err together, so they are drawn together; an interval over utterances would be about half as
wide as it should be. One set of draws serves every system of a comparison, which makes differences paired.
Shape letters: U utterances, B blocks, S systems, R replicates.

Reference:
    Bisani and Ney 2004 (ICASSP), the bootstrap and its paired difference. Efron and Tibshirani 1993, percentile
    intervals. Hesterberg 2015, arXiv:1411.5279, their expansion for few blocks. Gillick and Cox 1989 (ICASSP),
    matched pairs, here with utterances as segments (the paper cuts them at words that both systems got right).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Final

import numpy as np
import numpy.typing as npt

MIN_BLOCKS: Final = 10
"""With fewer speakers than this their resampling says little, and the next finer block is taken."""
MAX_BLOCKS: Final = 10_000
"""More are merged at random into this many: an interval over a million utterances differs by less than 1 % of its
width, and takes seconds instead of minutes."""
_DRAWS_PER_STEP: Final = 1 << 22
"""Counts of one step of the resampling, so that its memory stays near 32 MiB whatever the corpus."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Blocks:
    """Which utterances are drawn together."""

    kind: str
    """speaker, session or utterance."""
    index: npt.NDArray[np.int64]
    """(U,) block of each utterance, 0 to num_blocks - 1."""
    num_blocks: int

    def merged(self, seed: int) -> "Blocks":
        """At most `MAX_BLOCKS` blocks of about equal numbers of these, put together at random."""
        if self.num_blocks <= MAX_BLOCKS:
            return self
        group = np.random.default_rng(seed).permutation(self.num_blocks) % MAX_BLOCKS
        return Blocks(kind=self.kind, index=group[self.index], num_blocks=MAX_BLOCKS)

    def sums(self, values_US: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """(B, S) sums of (U, S) values over the utterances of each block."""
        sums_BS = np.zeros((self.num_blocks, values_US.shape[1]))
        np.add.at(sums_BS, self.index, values_US)
        return sums_BS


def choose_blocks(speaker_ids: Sequence[str | None], session_ids: Sequence[str | None]) -> Blocks:
    """Blocks by speaker; by session or by utterance where speakers are unknown or fewer than 10.

    Intervals over utterances are too narrow where those of a speaker err together; `summary` warns of them, once.
    """
    num_utterances = len(speaker_ids)
    for kind, ids in (("speaker", speaker_ids), ("session", session_ids)):
        if num_utterances and None not in ids:
            _, index = np.unique(np.asarray(ids, dtype=str), return_inverse=True)
            if index.max() + 1 >= MIN_BLOCKS:
                return Blocks(kind=kind, index=index.astype(np.int64), num_blocks=int(index.max()) + 1)
    return Blocks(kind="utterance", index=np.arange(num_utterances), num_blocks=num_utterances)


def resampled_sums(sums_BS: npt.NDArray[np.float64], num_replicates: int, seed: int) -> npt.NDArray[np.float64]:
    """(R, S) totals of B blocks drawn with replacement, the same draws for every column.

    Args:
        sums_BS: Errors and lengths of each block, any number of columns.
        num_replicates: R.
        seed: Of the draws; the same seed and number of blocks give the same draws whatever the columns.
    """
    totals_RS = np.empty((num_replicates, sums_BS.shape[1]))
    for start, times_RB in _draws(len(sums_BS), num_replicates, seed):
        totals_RS[start : start + len(times_RB)] = times_RB @ sums_BS
    return totals_RS


def _draws(num_blocks: int, num_replicates: int, seed: int) -> Iterator[tuple[int, npt.NDArray[np.float64]]]:
    """Multinomial counts, replicates x blocks, in steps of bounded size."""
    generator = np.random.default_rng(seed)
    step = max(1, _DRAWS_PER_STEP // max(1, num_blocks))
    for start in range(0, num_replicates, step):
        rows = min(step, num_replicates - start)
        drawn = generator.integers(num_blocks, size=(rows, num_blocks), dtype=np.int32)
        drawn += (np.arange(rows, dtype=np.int32) * num_blocks)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * num_blocks).astype(np.float64)
        yield start, times.reshape(rows, num_blocks)


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """S systems on the same utterances, each (S,) float64; rates are fractions, nan where there are no words."""

    value: npt.NDArray[np.float64]
    ci_low: npt.NDArray[np.float64]
    ci_high: npt.NDArray[np.float64]
    delta: npt.NDArray[np.float64]
    """value - baseline's value; negative is better."""
    delta_ci_low: npt.NDArray[np.float64]
    delta_ci_high: npt.NDArray[np.float64]
    p_value: npt.NDArray[np.float64]
    """Two-sided, that the difference to the baseline is none; 1 for the baseline itself."""
    probability_of_improvement: npt.NDArray[np.float64]
    """Share of replicates in which the system is better than the baseline, ties counted half."""


def compare(
    errors_US: npt.NDArray[Any],
    lengths_US: npt.NDArray[Any],
    blocks: Blocks,
    *,
    baseline: int,
    num_replicates: int,
    seed: int,
    confidence: float = 0.95,
    higher_is_better: bool = False,
) -> Comparison:
    """Rates of S systems with intervals, and their paired differences to one of them.

    Args:
        errors_US: Errors of each utterance and system.
        lengths_US: Reference lengths, parallel; usually equal across systems.
        blocks: Of the same U utterances.
        baseline: Column to compare with.
        num_replicates: R, for example 10,000.
        seed: Of the draws.
        confidence: Of the intervals, above 0 and below 1.
        higher_is_better: Whether a positive difference is an improvement.

    Raises:
        ValueError: no replicate or a confidence outside its range.
    """
    if num_replicates < 1 or not 0 < confidence < 1:
        raise ValueError(
            f"num_replicates is {num_replicates} and confidence {confidence}; expected at least 1 and 0 < c < 1."
        )
    num_systems = errors_US.shape[1]
    blocks = blocks.merged(seed)
    sums = np.concatenate([blocks.sums(errors_US), blocks.sums(lengths_US)], axis=1)
    totals = np.concatenate([sums.sum(axis=0, keepdims=True), resampled_sums(sums, num_replicates, seed)])
    with np.errstate(invalid="ignore", divide="ignore"):
        rates = totals[:, :num_systems] / totals[:, num_systems:]
    rates[~np.isfinite(rates)] = np.nan
    if blocks.num_blocks < 2:
        rates[1:] = np.nan  # one block says nothing about another
    deltas = rates - rates[:, [baseline]]
    levels = percentile_levels(blocks.num_blocks, confidence)
    low, high = _percentiles(rates[1:], levels)
    delta_low, delta_high = _percentiles(deltas[1:], levels)
    return Comparison(
        value=rates[0],
        ci_low=low,
        ci_high=high,
        delta=deltas[0],
        delta_ci_low=delta_low,
        delta_ci_high=delta_high,
        p_value=_two_sided_p(deltas[1:]),
        probability_of_improvement=_improvement(-deltas[1:] if higher_is_better else deltas[1:]),
    )


def percentile_levels(num_blocks: int, confidence: float) -> tuple[float, float]:
    """Levels of the replicates that bound an interval: wider than nominal where blocks are few.

    Resampling B blocks has a variance that is (B - 1)/B of the true one, and a normal tail where Student's is due;
    both are made up for in the levels (Hesterberg 2015, section 3.3; Student's quantile by Fisher and Cornish's
    expansion, exact to 1e-3 from 10 blocks on).
    """
    if num_blocks < 2:
        return 0.0, 1.0  # no interval comes of it
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    n = num_blocks - 1
    student = z + (z**3 + z) / (4 * n) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
    low = NormalDist().cdf(-student * math.sqrt(num_blocks / n))
    return low, 1 - low


def _percentiles(
    replicates_RS: npt.NDArray[np.float64], levels: tuple[float, float]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Bounds per column over the replicates that have words at all; nan where none has."""
    bounds = np.full((2, replicates_RS.shape[1]), np.nan)
    for column, values in enumerate(replicates_RS.T):
        known = values[~np.isnan(values)]
        if len(known):
            bounds[:, column] = np.quantile(known, levels)
    return bounds[0], bounds[1]


def _two_sided_p(deltas_RS: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Twice the smaller tail of the resampled differences around zero, never exactly 0; nan without replicates."""
    known = np.sum(~np.isnan(deltas_RS), axis=0)
    tail = np.minimum(np.sum(deltas_RS <= 0, axis=0), np.sum(deltas_RS >= 0, axis=0))
    return np.where(known > 0, np.minimum(1.0, 2 * (tail + 1) / (known + 1)), np.nan)


def _improvement(deltas_RS: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    known = np.sum(~np.isnan(deltas_RS), axis=0)
    better = np.sum(deltas_RS < 0, axis=0) + 0.5 * np.sum(deltas_RS == 0, axis=0)
    return np.where(known > 0, better / np.maximum(known, 1), np.nan)


def matched_pairs_p(errors_U: npt.NDArray[Any], baseline_errors_U: npt.NDArray[Any]) -> float:
    """Two-sided p-value of the matched-pairs test (MAPSSWE), a second opinion on `Comparison.p_value`.

    It takes utterances for independent segments, so it is too sure of itself where speakers differ.

    Args:
        errors_U: Errors of a system per utterance.
        baseline_errors_U: Errors of the other system on the same utterances.

    Returns:
        1 where the systems never differ; nan with fewer than two utterances.

    Reference:
        Gillick and Cox 1989, equations 11 to 13; segments are ours (see the module).
    """
    differences = np.asarray(errors_U, np.float64) - np.asarray(baseline_errors_U, np.float64)
    if len(differences) < 2:
        return math.nan
    deviation = float(np.std(differences, ddof=1))
    mean = float(np.mean(differences))
    if deviation == 0:
        return 1.0 if mean == 0 else 0.0
    return math.erfc(abs(mean) / (deviation / math.sqrt(len(differences))) / math.sqrt(2))


def adjusted_p_values(p_values: Sequence[float], num_configurations: Sequence[int]) -> list[float]:
    """Corrects the p-values of several systems for all configurations tried, by Holm's step-down method.

    The chance that any system without a real difference falls below a level stays below that level, whatever the
    dependence between systems. A system that was chosen among several configurations stands for all of them.

    Args:
        p_values: One per system against the same baseline; nan where there is none, which takes no part.
        num_configurations: Tried behind each, at least 1.

    Returns:
        At least the p-value itself, at most 1; nan where it is nan.

    Reference:
        Holm 1979, Scandinavian Journal of Statistics 6(2). Counting unreported configurations is ours: their p-values
        are not below the reported one, so only reported ones step down.
    """
    ranked = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    remaining = sum(max(1, num_configurations[i]) for _, i in ranked)
    adjusted, floor = [math.nan] * len(p_values), 0.0
    for p, i in ranked:
        floor = max(floor, min(1.0, p * remaining))
        adjusted[i] = floor
        remaining -= 1
    return adjusted
