"""Where tokens are, from attention that is known to look there, and from speech whose times are known."""

import itertools

import numpy as np
import pytest
import soxr

from ctxasr_ray.corpora.espeak import SAMPLE_RATE_HZ, Voice, say
from ctxasr_ray.experiment import asset
from ctxasr_ray.first_pass.token_times import Encoded, token_times
from ctxasr_ray.models.checkpoint import resolve
from ctxasr_ray.models.seq2seq import Seq2SeqModel
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


def test_words_of_the_shipped_model_are_told_where_they_were_spoken() -> None:
    pytest.importorskip("espeakng_loader")
    model = Seq2SeqModel(resolve(asset("attention")))
    voice = Voice(accent="en-us", variant="f4", pitch=50, pitch_range=50, words_per_minute=150)
    parts = ["call the office", "play some music", "turn on the light"]
    pause = 1e-3 * np.random.default_rng(0).standard_normal(model.sample_rate_hz // 2)
    pieces: list[np.ndarray] = []
    spans_s: list[tuple[float, float]] = []
    for part in parts:
        spoken = soxr.resample(say(part, voice) / 32768, SAMPLE_RATE_HZ, model.sample_rate_hz)
        start = sum(map(len, pieces)) + len(pause)
        spans_s.append((start / model.sample_rate_hz, (start + len(spoken)) / model.sample_rate_hz))
        pieces += [pause, spoken]
    waveform = np.concatenate(pieces).astype(np.float32)
    (tokens,) = model.tokens.encode([" ".join(parts)])
    (states,) = model.encode([waveform])
    num_frames = model.num_frames(states, len(waveform))
    heard = Encoded(states, num_frames, model.ctc_log_probs(states, num_frames))
    (found,) = token_times(model, heard, model.tokens.prompt(None), [tokens])
    assert found is not None
    part_of_word = np.repeat(np.arange(len(parts)), [len(part.split()) for part in parts])
    part_of_token = part_of_word[np.array(model.tokens.words(tokens))]
    for n, (start_s, end_s) in enumerate(spans_s):
        own = part_of_token == n
        assert start_s <= found.start_s[own].min() <= start_s + 0.2, "half a second of pause lies before each part"
        assert end_s - 0.4 <= found.end_s[own].max() <= end_s, "labels of CTC are peaks: an end is told too early"
