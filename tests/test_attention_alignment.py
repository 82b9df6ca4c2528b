"""Where tokens are, from attention that is known to look there."""

import itertools

import numpy as np
import pytest

from ctxasr_ray.search.attention_alignment import attention_spans


def planted(bounds: list[int], frames: int, heads: int = 3) -> np.ndarray:
    """Weights of heads that look at each token's own stretch, one of them at nothing in particular."""
    rng = np.random.default_rng(0)
    weights = 0.02 + 0.01 * rng.random((heads, len(bounds) - 1, frames))
    for row, (start, end) in enumerate(itertools.pairwise(bounds)):
        weights[:-1, row, start:end] += 1.0
    weights /= weights.sum(axis=2, keepdims=True)
    return weights.astype(np.float32)


@pytest.mark.parametrize("bounds", [[0, 12, 30, 41, 60, 80], [0, 40, 60], [0, 25]])
def test_spans_are_where_the_attention_was_planted(bounds: list[int]) -> None:
    start, end = attention_spans(planted(bounds, bounds[-1]))
    np.testing.assert_allclose(start, bounds[:-2], atol=1)
    np.testing.assert_allclose(end, bounds[1:-1], atol=1)


def test_more_tokens_than_positions_share_them_in_order() -> None:
    weights = np.random.default_rng(0).random((2, 9, 4)).astype(np.float32)
    start, end = attention_spans(weights)
    assert len(start) == len(end) == 8
    assert (np.diff(start) >= 0).all()
    assert (start <= end).all()
    assert end.max() < 4


def test_an_empty_text_has_no_tokens() -> None:
    start, end = attention_spans(np.ones((2, 1, 10), np.float32))
    assert len(start) == len(end) == 0
