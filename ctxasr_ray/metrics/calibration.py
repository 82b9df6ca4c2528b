"""How far confidence can be believed: ECE, NCE, AUC and the reliability curve, as functions of sums over blocks.

Each figure is a function of sums over words, so that a bootstrap resamples sums of whole speakers and never a word.
Shape letters: W words, G bins, B blocks, R replicates.

Reference:
    Naeini et al. 2015 (AAAI), ECE; with bins of equal mass: Nixon et al. 2019, arXiv:1904.01685. Siu and Gish 1999,
    NCE as NIST computes it. Guo et al. 2017, arXiv:1706.04599, temperature.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

NUM_BINS: Final = 15
CONFIDENT: Final = 0.9
"""A wrong word of at least this confidence is confidently wrong."""
LEAST: Final = 1e-6
"""Confidence is held between this and one minus this before a logarithm: stored in single precision, it may be 1."""
_MAX_STEPS: Final = 200
"""Steps of confidence of a resampled AUC; its own value is exact."""

Sums = npt.NDArray[np.float64]
Figure = Callable[[Sums], npt.NDArray[np.float64]]


def is_confidently_wrong(confidence: npt.NDArray[np.float64], is_right: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """(W,) which words are wrong with a confidence of at least `CONFIDENT`; those without one (nan) are not."""
    with np.errstate(invalid="ignore"):
        return ~is_right & (confidence >= np.float32(CONFIDENT))  # tables hold single precision


def equal_mass_bins(confidence: npt.NDArray[np.float64], num_bins: int = NUM_BINS) -> npt.NDArray[np.int64]:
    """(W,) bin of each word, 0 the least sure; bins differ by at most one word, equal confidences go by their order."""
    ranks = np.empty(len(confidence), np.int64)
    ranks[np.argsort(confidence, kind="stable")] = np.arange(len(confidence))
    return ranks * min(num_bins, max(1, len(confidence))) // max(1, len(confidence))


def _block_sums(
    owner: npt.NDArray[np.int64], column: npt.NDArray[np.int64], values: Any, shape: tuple[int, int]
) -> Sums:
    """(B, columns) sums of one value per word, at the word's block and column."""
    place = owner * shape[1] + column
    sums = np.bincount(place, np.asarray(values, np.float64), shape[0] * shape[1])
    return sums.astype(np.float64).reshape(shape)


def ece_sums(
    confidence: npt.NDArray[np.float64],
    is_right: npt.NDArray[np.bool_],
    owner: npt.NDArray[np.int64],
    num_blocks: int,
) -> Sums:
    """(B, 3G) per bin: words, right words, their confidence."""
    bins = equal_mass_bins(confidence)
    values = (np.ones(len(bins)), is_right, confidence)
    return np.concatenate([_block_sums(owner, bins, each, (num_blocks, NUM_BINS)) for each in values], axis=1)


def ece(sums: Sums) -> npt.NDArray[np.float64]:
    """(R,) mean distance between accuracy and confidence of the bins, weighted by their words.

    Args:
        sums: (R, 3G) totals of `ece_sums`.
    """
    words, right, confidence = sums.reshape(len(sums), 3, -1).transpose(1, 0, 2)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.abs(right - confidence).sum(axis=1) / words.sum(axis=1))


def nce_sums(
    confidence: npt.NDArray[np.float64],
    is_right: npt.NDArray[np.bool_],
    owner: npt.NDArray[np.int64],
    num_blocks: int,
) -> Sums:
    """(B, 3) words, right words, and the logarithm of the probability given to what is true."""
    held = np.clip(confidence, LEAST, 1 - LEAST)
    log_likelihood = np.log(np.where(is_right, held, 1 - held))
    first = np.zeros(len(owner), np.int64)
    values = (np.ones(len(owner)), is_right, log_likelihood)
    return np.concatenate([_block_sums(owner, first, each, (num_blocks, 1)) for each in values], axis=1)


def nce(sums: Sums) -> npt.NDArray[np.float64]:
    """(R,) share of the entropy of right and wrong that confidence explains.

    1 is perfect, 0 as good as the mean, below 0 worse; nan where all words are right or all are wrong.

    Args:
        sums: (R, 3) totals of `nce_sums`.
    """
    words, right, log_likelihood = sums.T
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = right / words
        entropy = -(right * np.log(mean) + (words - right) * np.log1p(-mean))
        return np.where((right > 0) & (right < words), (entropy + log_likelihood) / entropy, np.nan)


def auc_sums(
    confidence: npt.NDArray[np.float64],
    is_right: npt.NDArray[np.bool_],
    owner: npt.NDArray[np.int64],
    num_blocks: int,
) -> Sums:
    """(B, 2K) per step of confidence: wrong words, then right ones; at most 200 steps of equally many values."""
    _, steps = np.unique(confidence, return_inverse=True)
    num_steps = int(steps.max(initial=0)) + 1
    if num_steps > _MAX_STEPS:
        steps, num_steps = steps * _MAX_STEPS // num_steps, _MAX_STEPS
    sums = [_block_sums(owner, steps, each, (num_blocks, num_steps)) for each in (~is_right, is_right)]
    return np.concatenate(sums, axis=1)


def auc(sums: Sums) -> npt.NDArray[np.float64]:
    """(R,) chance that a right word is surer than a wrong one, ties counted half; nan without one of either.

    Args:
        sums: (R, 2K) totals of `auc_sums`.
    """
    wrong, right = sums.reshape(len(sums), 2, -1).transpose(1, 0, 2)
    below = np.cumsum(wrong, axis=1) - wrong / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((right * below).sum(axis=1) / (right.sum(axis=1) * wrong.sum(axis=1)))


def exact_auc(confidence: npt.NDArray[np.float64], is_right: npt.NDArray[np.bool_]) -> float:
    """The AUC over every distinct confidence, by mid-ranks; nan without right or without wrong words."""
    num_right = int(is_right.sum())
    num_wrong = len(is_right) - num_right
    if not num_right or not num_wrong:
        return float("nan")
    _, inverse, counts = np.unique(confidence, return_inverse=True, return_counts=True)
    mid_ranks = np.cumsum(counts) - (counts - 1) / 2
    total = float(mid_ranks[inverse][is_right].sum())
    return (total - num_right * (num_right + 1) / 2) / (num_right * num_wrong)


def fit_temperature(confidence: npt.NDArray[np.float64], is_right: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """The temperature under which confidence explains best which words are right, and its mean NLL in nats.

    sigmoid(logit(confidence) / temperature), by golden section on the logarithm of the temperature between 1/20 and
    20; the negative log-likelihood has one minimum, because it is convex in 1 / temperature.

    Args:
        confidence: (W,) at temperature 1, without nan.
        is_right: (W,).
    """
    held = np.clip(confidence, LEAST, 1 - LEAST)
    signed = np.where(is_right, 1.0, -1.0) * (np.log(held) - np.log1p(-held))

    def loss(log_temperature: float) -> float:
        return float(np.logaddexp(0.0, -signed * np.exp(-log_temperature)).mean())

    ratio = (np.sqrt(5.0) - 1) / 2
    low, high = -np.log(20.0), np.log(20.0)
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    at_left, at_right = loss(left), loss(right)
    while high - low > 1e-6:
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - ratio * (high - low)
            at_left = loss(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + ratio * (high - low)
            at_right = loss(right)
    middle = (low + high) / 2
    return float(np.exp(middle)), loss(middle)


BlockSums = Callable[[npt.NDArray[np.float64], npt.NDArray[np.bool_], npt.NDArray[np.int64], int], Sums]
FIGURES: Final[Mapping[str, tuple[BlockSums, Figure]]] = {
    "confidence_ece": (ece_sums, ece),
    "confidence_nce": (nce_sums, nce),
    "confidence_auc": (auc_sums, auc),
}
"""Metric -> sums per block over its words, and the figure that totals of them give."""
