"""CTC search, forced scores and alignments against enumeration, a plain Python search, torch and real posteriors."""

import itertools
import json
import math
from collections import defaultdict
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from real import real

from ctxasr_ray.search.ctc_alignment import ctc_alignments, entropies
from ctxasr_ray.search.ctc_beam import CtcBeamSearch
from ctxasr_ray.search.ctc_forced import ctc_forward_score, ctc_forward_scores
from ctxasr_ray.search.ctc_state import compiled

UNBOUNDED = {
    "beam_size": 5000,
    "max_labels_per_frame": 100,
    "min_label_log_prob": -math.inf,
    "beam_threshold": math.inf,
    "blank_skip_prob": None,
}


def posteriors(seed: int, num_frames: int, num_labels: int, peak: float = 1.0) -> np.ndarray:
    logits = peak * np.random.default_rng(seed).standard_normal((num_frames, num_labels))
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def collapse(path: tuple[int, ...], blank_id: int) -> tuple[int, ...]:
    return tuple(label for label, _ in itertools.groupby(path) if label != blank_id)


def enumerated(log_probs: np.ndarray, blank_id: int) -> dict[tuple[int, ...], list[tuple[float, tuple[int, ...]]]]:
    """Every labelling with all its paths and their log-probs."""
    paths = defaultdict(list)
    for path in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs)):
        paths[collapse(path, blank_id)].append((float(sum(log_probs[t, v] for t, v in enumerate(path))), path))
    return paths


def total(paths: list[tuple[float, tuple[int, ...]]]) -> float:
    return float(np.logaddexp.reduce([log_prob for log_prob, _ in paths]))


def plain_search(
    log_probs: np.ndarray, blank_id: int, beam_size: int, max_labels: int, min_label: float, threshold: float
) -> dict[tuple[int, ...], float]:
    """The same search over a dictionary of tuples, as a reference for merging and pruning."""
    beam = {(): (0.0, -math.inf)}
    for frame in log_probs:
        floor = min(min_label, frame.max())
        labels = sorted((v for v in range(len(frame)) if v != blank_id and frame[v] >= floor), key=lambda v: -frame[v])
        grown: dict[tuple[int, ...], list[float]] = defaultdict(lambda: [-math.inf, -math.inf])
        for text, (blank, label) in beam.items():
            both = np.logaddexp(blank, label)
            grown[text][0] = np.logaddexp(grown[text][0], both + frame[blank_id])
            if text:
                grown[text][1] = np.logaddexp(grown[text][1], label + frame[text[-1]])
            # a label that is pruned is still written where the longer text is in the beam already
            for v in {*labels[:max_labels], *(t[-1] for t in beam if t and t[:-1] == text)}:
                mass = blank if text and text[-1] == v else both
                grown[(*text, v)][1] = np.logaddexp(grown[(*text, v)][1], mass + frame[v])
        scores = {text: float(np.logaddexp(*pair)) for text, pair in grown.items()}
        best = max(scores.values())
        kept = sorted((t for t in scores if scores[t] >= best - threshold), key=lambda t: -scores[t])[:beam_size]
        beam = {text: (grown[text][0], grown[text][1]) for text in kept if scores[text] > -math.inf}
    return {text: float(np.logaddexp(*pair)) for text, pair in beam.items()}


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), num_frames=st.integers(0, 5), num_labels=st.integers(2, 4), data=st.data())
def test_an_unbounded_beam_gives_every_labelling_with_its_exact_probability_in_order(
    seed: int, num_frames: int, num_labels: int, data: st.DataObject
) -> None:
    blank_id = data.draw(st.integers(0, num_labels - 1))
    log_probs = posteriors(seed, num_frames, num_labels)
    expected = {text: total(paths) for text, paths in enumerated(log_probs, blank_id).items()}
    found = CtcBeamSearch(blank_id=blank_id, num_labels=num_labels, **UNBOUNDED).search(log_probs)
    assert [f.log_prob for f in found] == sorted((f.log_prob for f in found), reverse=True)
    assert {tuple(f.token_ids): f.log_prob for f in found} == pytest.approx(expected, abs=1e-12)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    beam_size=st.integers(1, 12),
    max_labels=st.integers(1, 6),
    min_label=st.floats(-6, -0.5),
    threshold=st.floats(0.5, 12),
)
def test_a_pruned_beam_equals_the_same_search_over_tuples(
    seed: int, beam_size: int, max_labels: int, min_label: float, threshold: float
) -> None:
    log_probs = posteriors(seed, 30, 6, peak=2.0)
    expected = plain_search(log_probs, 2, beam_size, max_labels, min_label, threshold)
    search = CtcBeamSearch(
        blank_id=2,
        num_labels=6,
        beam_size=beam_size,
        max_labels_per_frame=max_labels,
        min_label_log_prob=min_label,
        beam_threshold=threshold,
        blank_skip_prob=None,
    )
    found = {tuple(f.token_ids): f.log_prob for f in search.search(log_probs)}
    assert found == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("blank_skip_prob", [None, 0.9])
def test_frame_by_frame_equals_the_whole_utterance(blank_skip_prob: float | None) -> None:
    log_probs = posteriors(3, 80, 12, peak=3.0)
    search = CtcBeamSearch(blank_id=0, num_labels=12, beam_size=20, blank_skip_prob=blank_skip_prob)
    state = search.begin(len(log_probs), num_fusion_states=2)
    for t in range(len(log_probs)):
        if t % 3:
            search.run(state, log_probs, t + 1)
        elif search.expand(state, log_probs[t]):
            search.prune(state)
    whole, stepped = search.search(log_probs), search.finish(state)
    assert [f.token_ids.tolist() for f in stepped] == [f.token_ids.tolist() for f in whole]
    assert [f.log_prob for f in stepped] == [f.log_prob for f in whole]


def test_rows_carry_fusion_states_and_scores_of_their_parents() -> None:
    log_probs = posteriors(4, 25, 5)
    search = CtcBeamSearch(blank_id=0, num_labels=5, beam_size=8, blank_skip_prob=None)
    state = search.begin(len(log_probs), num_fusion_states=1)
    for t in range(len(log_probs)):
        assert search.expand(state, log_probs[t], max_bonus=0.7)
        size = int(state.candidates.size[0])
        bonus = np.where(state.candidates.token[:size] == 3, 0.7, 0.0)  # a fusion that likes label 3
        state.candidates.fusion[:size] += bonus
        state.candidates.score[:size] += bonus
        search.prune(state)
        rows = int(state.beam.size[0])
        state.beam.states[:rows, 0] += state.beam.token[:rows] == 3  # and counts it
    rows = int(state.beam.size[0])
    found = search.finish(state)
    assert any(3 in f.token_ids for f in found)
    for f in found:
        assert f.fusion == pytest.approx(0.7 * np.sum(f.token_ids == 3))
    assert sorted(state.beam.states[:rows, 0]) == sorted(int(np.sum(f.token_ids == 3)) for f in found)
    ranked = [f.log_prob + f.fusion for f in found]
    assert ranked == sorted(ranked, reverse=True)


def test_mass_lost_by_skipping_blanks_is_at_most_one_minus_the_product_of_the_skipped_blanks() -> None:
    log_probs = posteriors(5, 5, 4)
    skipped = [1, 3]
    for t in skipped:
        log_probs[t] = np.log([0.97, 0.01, 0.01, 0.01])
    exact = CtcBeamSearch(blank_id=0, num_labels=4, **UNBOUNDED).search(log_probs)
    fast = CtcBeamSearch(blank_id=0, num_labels=4, **{**UNBOUNDED, "blank_skip_prob": 0.95}).search(log_probs)
    after = {tuple(f.token_ids): math.exp(f.log_prob) for f in fast}
    lost = [math.exp(f.log_prob) - after.get(tuple(f.token_ids), 0.0) for f in exact]
    assert min(lost) >= -1e-12
    assert sum(lost) == pytest.approx(1 - 0.97 ** len(skipped), abs=1e-9)
    assert fast[0].token_ids.tolist() == exact[0].token_ids.tolist()


def test_a_blank_that_is_skipped_still_separates_equal_labels() -> None:
    log_probs = np.log(np.asarray([[0.001, 0.999], [0.9995, 0.0005], [0.001, 0.999]]))
    found = CtcBeamSearch(blank_id=0, num_labels=2, blank_skip_prob=0.99).search(log_probs)
    assert found[0].token_ids.tolist() == [1, 1]


def test_ties_are_broken_the_same_way_every_time() -> None:
    log_probs = np.full((12, 7), -math.log(7))
    search = CtcBeamSearch(blank_id=6, num_labels=7, beam_size=9, blank_skip_prob=None)
    first = [f.token_ids.tolist() for f in search.search(log_probs)]
    assert all([f.token_ids.tolist() for f in search.search(log_probs)] == first for _ in range(3))
    assert len({tuple(ids) for ids in first}) == len(first)


def test_suppressed_labels_are_never_written() -> None:
    log_probs = posteriors(6, 40, 8)
    found = CtcBeamSearch(blank_id=0, num_labels=8, suppressed=(2, 5)).search(log_probs)
    assert len(found) > 1
    assert not any({2, 5} & set(f.token_ids.tolist()) for f in found)


def test_impossible_labels_never_enter_the_beam() -> None:
    log_probs = np.full((4, 3), -math.inf)
    log_probs[[0, 1, 2, 3], [1, 0, 1, 2]] = 0.0
    found = CtcBeamSearch(blank_id=0, num_labels=3).search(log_probs)
    assert [(f.token_ids.tolist(), f.log_prob) for f in found] == [([1, 1, 2], 0.0)]


def test_bad_settings_and_posteriors_are_refused_in_words() -> None:
    with pytest.raises(ValueError, match="blank_id is 3; expected 0 to 2"):
        CtcBeamSearch(blank_id=3, num_labels=3)
    with pytest.raises(ValueError, match="beam_size is 0"):
        CtcBeamSearch(blank_id=0, num_labels=3, beam_size=0)
    search = CtcBeamSearch(blank_id=0, num_labels=3)
    with pytest.raises(ValueError, match=r"shape \(4, 2\); expected \(T, 3\)"):
        search.search(np.zeros((4, 2)))
    with pytest.raises(ValueError, match="nan, first in frame 1"):
        search.search(np.asarray([[0.0, -1, -1], [np.nan, 0, 0]]))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), num_frames=st.integers(0, 5))
def test_forced_scores_and_alignments_equal_enumeration(seed: int, num_frames: int) -> None:
    log_probs = posteriors(seed, num_frames, 3)
    paths = enumerated(log_probs, 1)
    texts = [text for length in range(5) for text in itertools.product((0, 2), repeat=length)]
    scores = ctc_forward_scores(log_probs, texts, 1)
    for text, score, alignment in zip(texts, scores, ctc_alignments(log_probs, texts, 1), strict=True):
        if text not in paths:
            assert score.log_prob is None
            assert score.reason is not None
            assert f"audio has {num_frames}" in score.reason
            assert alignment is None
            continue
        assert score.log_prob == pytest.approx(total(paths[text]), abs=1e-12)
        assert alignment is not None
        best = max(log_prob for log_prob, _ in paths[text])
        path = [1] * num_frames
        for token, start, end in zip(text, alignment.start_frame, alignment.end_frame, strict=True):
            path[start:end] = [token] * (end - start)
        assert collapse(tuple(path), 1) == text
        assert sum(log_probs[t, v] for t, v in enumerate(path)) == pytest.approx(best, abs=1e-12)
        spans = zip(text, alignment.start_frame, alignment.end_frame, alignment.peak_frame, strict=True)
        for token, start, end, peak in spans:
            assert peak == start + np.argmax(log_probs[start:end, token])


@pytest.mark.parametrize(("length", "peak"), [(1, 1.0), (40, 1.0), (40, 12.0), (150, 12.0)])
def test_forced_scores_equal_torch_however_improbable(length: int, peak: float) -> None:
    log_probs = posteriors(7, 310, 29, peak)
    rng = np.random.default_rng(length)
    texts = [rng.integers(1, 29, size=length) for _ in range(4)]
    texts += [np.concatenate([texts[0][: length // 2], t[length // 2 :]]) for t in texts]
    expected = -torch.nn.functional.ctc_loss(
        torch.from_numpy(log_probs)[:, None].expand(-1, len(texts), -1),
        torch.from_numpy(np.stack(texts)),
        torch.full((len(texts),), 310),
        torch.full((len(texts),), length),
        reduction="none",
    )
    scores = [score.log_prob for score in ctc_forward_scores(log_probs, texts, 0)]
    assert scores == pytest.approx(expected.tolist(), rel=1e-10)
    if peak > 1:
        assert min(s for s in scores if s is not None) < -700, "beyond the range of a float64 probability"


def test_a_text_that_the_recogniser_cannot_write_has_a_reason_and_no_score() -> None:
    log_probs = posteriors(8, 4, 5)
    too_long = ctc_forward_score(log_probs, [1, 1, 2], 0)
    assert too_long.log_prob is not None
    too_long = ctc_forward_score(log_probs, [1, 1, 2, 2], 0)
    assert too_long.log_prob is None
    assert too_long.reason == "text needs at least 6 frames (4 labels, 2 of them repeats), audio has 4"
    log_probs[:, 3] = -math.inf
    silent = ctc_forward_score(log_probs, [3], 0)
    assert silent.log_prob is None
    assert silent.reason == "every alignment of the text has probability zero"
    with pytest.raises(ValueError, match="label 0; expected 0 to 4 without the blank 0"):
        ctc_forward_score(log_probs, [1, 0], 0)


def test_no_audio_is_the_empty_text_with_certainty() -> None:
    found = CtcBeamSearch(blank_id=0, num_labels=3).search(np.zeros((0, 3)))
    assert [(f.token_ids.tolist(), f.log_prob) for f in found] == [([], 0.0)]
    assert ctc_forward_score(np.zeros((0, 3)), [], 0).log_prob == 0.0


def test_search_scores_never_exceed_forced_scores() -> None:
    log_probs = posteriors(9, 120, 15, peak=3.0)
    found = CtcBeamSearch(blank_id=0, num_labels=15, beam_size=30).search(log_probs)
    forced = ctc_forward_scores(log_probs, [f.token_ids for f in found], 0)
    assert len(found) == 30
    assert all(f.log_prob <= (s.log_prob or 0) + 1e-9 for f, s in zip(found, forced, strict=True))


def test_a_wider_beam_finds_a_list_that_is_at_least_as_probable() -> None:
    log_probs = posteriors(10, 100, 20, peak=2.5)
    best = []
    for beam_size in (1, 5, 25, 125):
        found = CtcBeamSearch(blank_id=0, num_labels=20, beam_size=beam_size).search(log_probs)
        best.append(ctc_forward_scores(log_probs, [found[0].token_ids], 0)[0].log_prob)
    assert best == sorted(best)


def test_entropies_are_those_of_the_whole_frame() -> None:
    log_probs = np.log(np.asarray([[0.25] * 4, [1.0, 1e-300, 1e-300, 1e-300]]))
    log_probs[1, 3] = -math.inf
    assert entropies(log_probs) == pytest.approx([math.log(4), 0.0])


def test_kernels_compile_where_no_cache_can_be_written() -> None:
    scope: dict[str, Any] = {}
    exec("def twice(a):\n    return 2 * a", scope)  # code without a file has no place for a cache
    assert compiled(scope["twice"])(21) == 42


@pytest.mark.parametrize("beam_size", [10, 100])
def test_real_posteriors_give_the_expected_text(beam_size: int) -> None:
    log_probs = np.asarray(json.loads(real("ctc_logits/librispeech_utterance.json").read_text()))
    alphabet = " abcdefghijklmnopqrstuvwxyz'"
    found = CtcBeamSearch(blank_id=28, num_labels=29, beam_size=beam_size).search(log_probs)
    texts = ["".join(alphabet[v] for v in f.token_ids) for f in found]
    assert texts[0] == (
        "i have a good deal of will you remember and what i have set my mind upon no doubt i shall some day achieve"
    )
    assert len(texts) == beam_size, "a beam of full width also on clear speech"
