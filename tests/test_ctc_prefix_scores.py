"""CTC prefix scores against the enumeration of every alignment."""

import itertools

import numpy as np
import pytest

from ctxasr_ray.search.ctc_forced import ctc_forward_score
from ctxasr_ray.search.ctc_prefix_scores import CtcPrefixScores

BLANK, T, V = 1, 5, 4


def log_probs(seed: int, frames: int = T, sharpness: float = 2.0) -> np.ndarray:
    logits = sharpness * np.random.default_rng(seed).standard_normal((frames, V))
    log_probs_TV: np.ndarray = (logits - np.log(np.exp(logits).sum(1, keepdims=True))).astype(np.float32)
    return log_probs_TV


def texts_by_alignment(log_probs_TV: np.ndarray) -> dict[tuple[int, ...], float]:
    """P of every text, by writing out every path."""
    found: dict[tuple[int, ...], float] = {}
    probs = np.exp(log_probs_TV.astype(np.float64))
    for path in itertools.product(range(V), repeat=len(probs)):
        text = tuple(a for a, b in zip(path, (-1, *path), strict=False) if a not in (b, BLANK))
        found[text] = found.get(text, 0.0) + float(np.prod(probs[range(len(probs)), path]))
    return found


@pytest.mark.parametrize("seed", range(4))
def test_a_prefix_scores_what_all_texts_that_begin_with_it_sum_to(seed: int) -> None:
    given = log_probs(seed)
    texts = texts_by_alignment(given)
    labels = [v for v in range(V) if v != BLANK]
    level: list[tuple[int, ...]] = [()]
    scores = CtcPrefixScores(given, BLANK)
    for depth in range(T + 1):
        for prefix, total, whole in zip(level, scores.totals, scores.ended(), strict=True):
            expected = sum(p for text, p in texts.items() if text[:depth] == prefix)
            np.testing.assert_allclose(np.exp(total), expected, rtol=1e-6, atol=1e-12)
            np.testing.assert_allclose(np.exp(whole), texts.get(prefix, 0.0), rtol=1e-6, atol=1e-12)
        candidates = scores.extended(np.tile(np.arange(V), (len(level), 1)))
        assert (candidates[:, BLANK] == -np.inf).all()
        parents = [row for row in range(len(level)) for _ in labels]
        tokens = labels * len(level)
        scores.advance(tokens, parents)
        np.testing.assert_array_equal(scores.totals, candidates[parents, tokens])
        level = [(*level[row], token) for row, token in zip(parents, tokens, strict=True)]
    assert not np.isnan(scores.totals).any()


def test_long_improbable_prefixes_stay_exact() -> None:
    given = log_probs(7, frames=400, sharpness=8.0)
    text = np.random.default_rng(1).choice([0, 2, 3], 120).tolist()
    scores = CtcPrefixScores(given, BLANK)
    for token in text:
        scores.advance([token], [0])
    assert scores.ended()[0] < -800, "beyond what a float64 holds as a probability"
    assert scores.ended()[0] == pytest.approx(ctc_forward_score(given, text, BLANK).log_prob, abs=1e-6)
    assert scores.totals[0] >= scores.ended()[0]
