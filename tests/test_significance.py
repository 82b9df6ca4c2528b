import math
import warnings

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctxasr_ray.metrics.significance import (
    Blocks,
    adjusted_p_values,
    choose_blocks,
    compare,
    matched_pairs_p,
    percentile_levels,
    resampled_sums,
)

Counts = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]


def speakers(num: int, per_speaker: int) -> Blocks:
    return Blocks(kind="speaker", index=np.repeat(np.arange(num), per_speaker), num_blocks=num)


def counts(num: int, per_speaker: int, rate: float, seed: int, spread: float = 0.3) -> Counts:
    """Errors and lengths of utterances whose speakers differ in their error rate, `rate` on average."""
    rng = np.random.default_rng(seed)
    rates = np.clip(rate * (1 + spread * rng.standard_normal(num)), 0.0, 1.0).repeat(per_speaker)
    lengths = rng.integers(5, 30, num * per_speaker)
    return rng.binomial(lengths, rates), lengths


def test_intervals_equal_a_plain_bootstrap() -> None:
    blocks = speakers(40, 5)
    a, lengths = counts(40, 5, 0.10, 1)
    b, _ = counts(40, 5, 0.08, 2)
    found = compare(np.stack([a, b], 1), np.stack([lengths] * 2, 1), blocks, baseline=0, num_replicates=8000, seed=3)
    rng = np.random.default_rng(99)
    rates, differences = [], []
    for _ in range(8000):
        rows = np.concatenate([np.flatnonzero(blocks.index == s) for s in rng.integers(40, size=40)])
        rates.append(b[rows].sum() / lengths[rows].sum())
        differences.append(rates[-1] - a[rows].sum() / lengths[rows].sum())
    levels = percentile_levels(40, 0.95)
    # two bootstraps of 8,000 draws: their bounds agree to about 2 % of the interval's width
    for bounds, plain in (
        ((found.ci_low[1], found.ci_high[1]), rates),
        ((found.delta_ci_low[1], found.delta_ci_high[1]), differences),
    ):
        expected = np.quantile(plain, levels)
        assert bounds == pytest.approx(expected, abs=0.05 * (expected[1] - expected[0]))
    plain_p = 2 * min(np.mean(np.array(differences) <= 0), np.mean(np.array(differences) >= 0))
    assert found.p_value[1] == pytest.approx(plain_p, abs=0.02)
    assert found.probability_of_improvement[1] == pytest.approx(np.mean(np.array(differences) < 0), abs=0.01)


@pytest.mark.parametrize(("num_speakers", "per_speaker"), [(20, 10), (40, 20), (150, 2)])
def test_95_percent_intervals_hold_the_truth_in_93_to_97_percent_of_simulated_corpora(
    num_speakers: int, per_speaker: int
) -> None:
    """1,500 corpora: the share found has a standard error of 0.6 %."""
    blocks = speakers(num_speakers, per_speaker)
    held = 0
    for corpus in range(1500):
        errors, lengths = counts(num_speakers, per_speaker, 0.1, corpus)
        found = compare(errors[:, None], lengths[:, None], blocks, baseline=0, num_replicates=600, seed=corpus)
        held += bool(found.ci_low[0] <= 0.1 <= found.ci_high[0])
    assert 0.93 <= held / 1500 <= 0.97


def test_an_interval_by_speaker_is_wider_than_one_by_utterance_where_speakers_differ() -> None:
    errors, lengths = counts(30, 40, 0.1, 5, spread=0.6)
    by_speaker = compare(errors[:, None], lengths[:, None], speakers(30, 40), baseline=0, num_replicates=2000, seed=1)
    alone = Blocks(kind="utterance", index=np.arange(1200), num_blocks=1200)
    by_utterance = compare(errors[:, None], lengths[:, None], alone, baseline=0, num_replicates=2000, seed=1)
    widths = [float(c.ci_high[0] - c.ci_low[0]) for c in (by_speaker, by_utterance)]
    assert widths[0] > 2 * widths[1]


@given(seed=st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_a_system_against_itself_has_p_of_one_and_no_difference(seed: int) -> None:
    errors, lengths = counts(12, 3, 0.2, seed)
    both = np.stack([errors, errors], 1)
    found = compare(both, np.stack([lengths] * 2, 1), speakers(12, 3), baseline=0, num_replicates=200, seed=seed)
    assert (found.p_value[1], found.delta[1], found.delta_ci_low[1], found.delta_ci_high[1]) == (1, 0, 0, 0)
    assert found.probability_of_improvement[1] == 0.5
    assert matched_pairs_p(errors, errors) == 1


def test_p_values_of_equally_good_systems_are_spread_evenly() -> None:
    below = 0
    for corpus in range(400):
        a, lengths = counts(40, 3, 0.1, corpus, spread=0.0)
        b = np.random.default_rng(corpus + 10_000).binomial(lengths, 0.1)
        found = compare(
            np.stack([a, b], 1), np.stack([lengths] * 2, 1), speakers(40, 3), baseline=0, num_replicates=400, seed=1
        )
        below += bool(found.p_value[1] < 0.05)
    assert 0.02 <= below / 400 <= 0.09


def test_matched_pairs_agree_with_the_bootstrap_over_utterances() -> None:
    rng = np.random.default_rng(4)
    lengths = rng.integers(5, 30, 2000)
    a, b = rng.binomial(lengths, 0.10), rng.binomial(lengths, 0.104)
    alone = Blocks(kind="utterance", index=np.arange(2000), num_blocks=2000)
    found = compare(np.stack([a, b], 1), np.stack([lengths] * 2, 1), alone, baseline=0, num_replicates=8000, seed=2)
    p = matched_pairs_p(b, a)
    assert 0.01 < p < 0.9
    assert found.p_value[1] == pytest.approx(p, abs=0.03)


def test_matched_pairs_by_hand() -> None:
    """Differences 1, 1, 1, -1: mean 0.5, deviation 1, z = 1, p = 0.3173."""
    assert matched_pairs_p(np.array([1, 1, 1, 0]), np.array([0, 0, 0, 1])) == pytest.approx(0.31731, abs=1e-5)
    assert np.isnan(matched_pairs_p(np.array([1]), np.array([0])))
    assert matched_pairs_p(np.array([2, 2]), np.array([1, 1])) == 0


def test_draws_depend_on_the_seed_and_on_nothing_else() -> None:
    sums = np.arange(24, dtype=float).reshape(12, 2)
    once = resampled_sums(sums, 100, 7)
    np.testing.assert_array_equal(once, resampled_sums(sums, 100, 7))
    np.testing.assert_array_equal(once[:, :1], resampled_sums(sums[:, :1], 100, 7))
    assert not np.array_equal(once, resampled_sums(sums, 100, 8))
    assert once.mean(axis=0) == pytest.approx(sums.sum(axis=0), rel=0.1)


def test_every_replicate_draws_as_many_blocks_as_there_are() -> None:
    ones = np.ones((2620, 1))
    np.testing.assert_array_equal(resampled_sums(ones, 2000, 7), np.full((2000, 1), 2620.0))


def test_blocks_are_speakers_then_sessions_then_utterances() -> None:
    many = [f"s{i % 10}" for i in range(30)]
    assert (choose_blocks(many, [None] * 30).kind, choose_blocks(many, [None] * 30).num_blocks) == ("speaker", 10)
    few = [f"s{i % 9}" for i in range(30)]
    assert choose_blocks(few, many).kind == "session"
    assert choose_blocks([None, *many[1:]], many).kind == "session"
    assert (choose_blocks(few, [None] * 30).kind, choose_blocks(few, [None] * 30).num_blocks) == ("utterance", 30)


def test_utterances_stay_with_their_speaker() -> None:
    blocks = choose_blocks([f"s{i % 10}" for i in range(30)], [None] * 30)
    assert blocks.sums(np.ones((30, 1))).tolist() == [[3.0]] * 10
    assert all(len(set(blocks.index[i::10])) == 1 for i in range(10))


def test_a_corpus_of_one_or_no_utterance_gives_no_error() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one, none = choose_blocks(["a"], ["a"]), choose_blocks([], [])
    found = compare(np.array([[1]]), np.array([[4]]), one, baseline=0, num_replicates=10, seed=1)
    assert found.value.tolist() == [0.25]
    assert np.isnan([found.ci_low[0], found.ci_high[0], found.p_value[0]]).all()
    empty = compare(np.zeros((0, 1)), np.zeros((0, 1)), none, baseline=0, num_replicates=10, seed=1)
    assert np.isnan(empty.value).all()
    assert np.isnan(empty.ci_low).all()
    assert np.isnan(empty.p_value).all()


def test_levels_widen_for_few_blocks_and_are_nominal_for_many() -> None:
    """Student's quantile for 11 degrees of freedom is 2.201 (any table)."""
    assert percentile_levels(10**6, 0.95) == pytest.approx((0.025, 0.975), abs=1e-5)
    assert percentile_levels(12, 0.95)[0] == pytest.approx(0.01075, abs=1e-4)


def test_correction_for_many_configurations_is_holms() -> None:
    assert adjusted_p_values([0.01, 0.4, 0.02], [1, 1, 1]) == pytest.approx([0.03, 0.4, 0.04])
    assert adjusted_p_values([0.03, 0.02], [1, 1]) == pytest.approx([0.04, 0.04])  # never below a smaller one's
    assert adjusted_p_values([0.01], [5]) == pytest.approx([0.05])  # chosen among five
    found = adjusted_p_values([0.01, math.nan, 0.3], [2, 9, 1])
    assert found[::2] == pytest.approx([0.03, 0.6])
    assert math.isnan(found[1])


@pytest.mark.parametrize("num_systems", [2, 10])
def test_the_correction_keeps_one_false_alarm_among_all_systems_below_5_percent(num_systems: int) -> None:
    rng = np.random.default_rng(8)
    alarms = 0
    for _ in range(2000):
        shared = rng.standard_normal()
        z = 0.7 * shared + np.sqrt(1 - 0.49) * rng.standard_normal(num_systems)  # systems on the same utterances
        p_values = [math.erfc(abs(value) / math.sqrt(2)) for value in z]
        alarms += min(adjusted_p_values(p_values, [1] * num_systems)) < 0.05
    assert alarms / 2000 < 0.06


def test_improvement_follows_the_direction_of_the_metric() -> None:
    errors, lengths = counts(20, 5, 0.2, 1)
    both, wholes = np.stack([errors, errors // 2], 1), np.stack([lengths] * 2, 1)
    for higher, expected in ((False, 1.0), (True, 0.0)):
        found = compare(both, wholes, speakers(20, 5), baseline=0, num_replicates=100, seed=1, higher_is_better=higher)
        assert found.probability_of_improvement[1] == expected


@pytest.mark.parametrize(("replicates", "confidence"), [(0, 0.95), (10, 1.0)])
def test_impossible_settings_are_refused(replicates: int, confidence: float) -> None:
    with pytest.raises(ValueError, match="expected at least 1 and 0 < c < 1"):
        compare(
            np.ones((2, 1)),
            np.ones((2, 1)),
            speakers(2, 1),
            baseline=0,
            num_replicates=replicates,
            seed=1,
            confidence=confidence,
        )
