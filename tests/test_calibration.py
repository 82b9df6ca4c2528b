"""Calibration figures against plain definitions, the confidently wrong words, and the fitted temperature."""

import math
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctxasr_ray import align
from ctxasr_ray.fusion.confidence import ConfidenceConfig
from ctxasr_ray.fusion.log_linear import LogLinearConfig
from ctxasr_ray.fusion.words import word_confidence
from ctxasr_ray.metrics.calibration import (
    auc,
    auc_sums,
    ece,
    ece_sums,
    equal_mass_bins,
    exact_auc,
    fit_temperature,
    nce,
    nce_sums,
)
from ctxasr_ray.metrics.calibration_summary import CalibrationConfig
from ctxasr_ray.metrics.judged_words import judge
from ctxasr_ray.nbest import Hypothesis, NBest, hypotheses_table
from ctxasr_ray.schema import TRANSCRIPTS, UTTERANCES, conform
from ctxasr_ray.stage import Costs, StageConfig

Said = list[tuple[str, float | None]]


def utterances(references: list[str | None], split: str = "test", num_speakers: int = 0) -> pa.Table:
    rows = [
        {"utterance_id": f"u{i}", "corpus": "c", "split": split, "audio_uri": "a", "start_s": 0.0, "reference": r}
        | {"speaker_id": f"s{i % num_speakers}" if num_speakers else None}
        for i, r in enumerate(references)
    ]
    return conform(pa.Table.from_pylist(rows, schema=UTTERANCES), "utterances")


def transcripts(said: list[Said]) -> pa.Table:
    rows = [
        {
            "utterance_id": f"u{i}",
            "text": " ".join(word for word, _ in own),
            "words": [{"word": word, "confidence": c, "origin": "search"} for word, c in own],
            "num_unscored": 0,
        }
        for i, own in enumerate(said)
    ]
    return conform(pa.Table.from_pylist(rows, schema=TRANSCRIPTS), "transcripts")


def run(config: StageConfig, *tables: pa.Table) -> pa.Table:
    return conform(config.build()(*tables, costs=Costs()), config.WRITES)


def results(config: CalibrationConfig, *tables: pa.Table) -> list[dict[str, Any]]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fewer than 10 speakers")
        rows = run(config, *tables).to_pylist()
    return [row | {"counts": dict(row["counts"]), "condition": dict(row["condition"])} for row in rows]


def find(rows: list[dict[str, Any]], system: str, metric: str) -> dict[str, Any]:
    (row,) = [row for row in rows if (row["system"], row["metric"]) == (system, metric)]
    return row


# words and their confidence


def test_each_written_word_is_right_or_wrong_and_keeps_its_confidence() -> None:
    said: Said = [("please", 0.7), ("Call", 0.9), ("sorp", 0.8), ("now", None)]
    words = judge(utterances(["call zorp now please"]), transcripts([said]), "whisper_english")
    assert words.words == ["please", "call", "sorp", "now"]
    assert words.op.tolist() == [align.INSERTION, 0, align.SUBSTITUTION, 0]
    assert words.place.tolist() == [0, -1, 1, -1]
    np.testing.assert_allclose(words.confidence, [0.7, 0.9, 0.8, np.nan], rtol=1e-6)
    assert words.wrong_references.tolist() == [False, True, False, True]
    assert words.deletions.tolist() == [1]


def test_a_word_that_the_normaliser_splits_or_joins_keeps_what_belongs_to_it() -> None:
    said: Said = [("don't", 0.5), ("pay", 0.9), ("twenty", 0.6), ("one", 0.7), ("um", 0.1)]
    words = judge(utterances(["do not pay 21"]), transcripts([said]), "whisper_english")
    assert words.words == ["do", "not", "pay", "21"]
    np.testing.assert_allclose(words.confidence, [0.5, 0.5, 0.9, np.nan], rtol=1e-6)
    assert words.unplaced == 1


def test_failed_and_unreferenced_utterances_have_no_words() -> None:
    table = transcripts([[("a", 0.5)], [("b", 0.5)]])
    table = table.set_column(table.schema.get_field_index("error_type"), "error_type", pa.array(["audio", None]))
    assert judge(utterances(["a", None]), table, "none").words == []


# figures

JUDGED = st.lists(st.tuples(st.integers(0, 20).map(lambda i: i / 20), st.booleans()), min_size=1, max_size=60)


def arrays(judged: list[tuple[float, bool]]) -> tuple[Any, Any, Any]:
    return np.array([c for c, _ in judged]), np.array([r for _, r in judged]), np.zeros(len(judged), np.int64)


@given(judged=JUDGED)
@settings(max_examples=200, deadline=None)
def test_ece_is_the_weighted_gap_of_bins_of_equal_mass(judged: list[tuple[float, bool]]) -> None:
    confidence, is_right, one = arrays(judged)
    bins = equal_mass_bins(confidence)
    sizes = np.bincount(bins)[np.unique(bins)]
    assert sizes.max() - sizes.min() <= 1
    assert len(sizes) == min(15, len(judged))
    assert (np.diff(bins[np.argsort(confidence, kind="stable")]) >= 0).all()
    expected = sum(
        np.mean(bins == b) * abs(is_right[bins == b].mean() - confidence[bins == b].mean()) for b in np.unique(bins)
    )
    assert ece(ece_sums(confidence, is_right, one, 1))[0] == pytest.approx(expected)


@given(judged=JUDGED)
@settings(max_examples=200, deadline=None)
def test_auc_is_the_chance_that_a_right_word_is_surer(judged: list[tuple[float, bool]]) -> None:
    confidence, is_right, one = arrays(judged)
    pairs = [(a > b) + 0.5 * (a == b) for a in confidence[is_right] for b in confidence[~is_right]]
    expected = np.mean(pairs) if pairs else math.nan
    assert exact_auc(confidence, is_right) == pytest.approx(expected, nan_ok=True)
    assert auc(auc_sums(confidence, is_right, one, 1))[0] == pytest.approx(expected, nan_ok=True)


def test_nce_by_hand() -> None:
    """Three right of four: base entropy 4 * 0.5623 nats; certain and true is 1, the mean itself is 0."""
    is_right, one = np.array([True, True, True, False]), np.zeros(4, np.int64)

    def of(*confidence: float) -> float:
        return float(nce(nce_sums(np.array(confidence), is_right, one, 1))[0])

    assert of(0.75, 0.75, 0.75, 0.75) == pytest.approx(0)
    assert of(1, 1, 1, 0) == pytest.approx(1, abs=1e-5)
    assert of(0.9, 0.8, 0.7, 0.4) == pytest.approx(1 + sum(map(math.log, (0.9, 0.8, 0.7, 0.6))) / (4 * 0.5623351))
    assert of(0.1, 0.1, 0.1, 0.9) < 0
    assert math.isnan(nce(nce_sums(np.array([0.5]), np.array([True]), one[:1], 1))[0])


def simulated(temperature: float, num: int = 4000, seed: int = 1) -> tuple[Any, Any]:
    """Confidences whose logits are `temperature` times too far from 0."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(1.0, 1.5, num)
    is_right = rng.random(num) < 1 / (1 + np.exp(-logits))
    return 1 / (1 + np.exp(-logits * temperature)), is_right


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_the_fitted_temperature_is_the_one_that_was_put_in(temperature: float) -> None:
    confidence, is_right = simulated(temperature)
    found, loss = fit_temperature(confidence, is_right)
    assert found == pytest.approx(temperature, rel=0.08)
    grid = []
    for other in np.geomspace(0.05, 20, 400):
        logits = np.log(confidence / (1 - confidence)) / other
        grid.append(np.mean(np.logaddexp(0, np.where(is_right, -logits, logits))))
    assert loss == pytest.approx(min(grid), abs=1e-4)
    assert loss <= min(grid) + 1e-9


# RESULTS


def corpus(system: Mapping[str, float], num: int = 240) -> tuple[pa.Table, list[pa.Table]]:
    """Systems that miss one word in four, each with its own temperature."""
    table = utterances(["w x y z"] * num, num_speakers=20)
    said = []
    for temperature in system.values():
        confidence, is_right = simulated(temperature, num * 4)
        words: Said = [
            ("wxyz"[i % 4] if right else "err", float(c))
            for i, (c, right) in enumerate(zip(confidence, is_right, strict=True))
        ]
        said.append(transcripts([words[4 * i : 4 * i + 4] for i in range(num)]))
    return table, said


def test_an_overconfident_system_has_a_larger_ece_and_the_same_auc() -> None:
    table, said = corpus({"first_pass": 1.0, "sure": 3.0})
    rows = results(CalibrationConfig(systems=("first_pass", "sure"), num_replicates=300), table, *said)
    first, sure = find(rows, "first_pass", "confidence_ece"), find(rows, "sure", "confidence_ece")
    assert first["value"] < 0.06 < 0.08 < sure["value"]
    assert sure["ci_low"] < sure["value"] < sure["ci_high"]
    assert (sure["num_blocks"], sure["counts"]["words"]) == (20, 960)
    areas = [find(rows, system, "confidence_auc") for system in ("first_pass", "sure")]
    assert areas[0]["value"] == pytest.approx(areas[1]["value"], abs=1e-3)
    assert areas[0]["ci_low"] < areas[0]["value"] < areas[0]["ci_high"]
    assert find(rows, "sure", "confidence_nce")["value"] < find(rows, "first_pass", "confidence_nce")["value"]


def test_the_reliability_curve_has_15_bins_whose_words_add_up() -> None:
    table, said = corpus({"first_pass": 3.0})
    rows = results(CalibrationConfig(systems=("first_pass",), num_replicates=50), table, *said)
    curve = [row for row in rows if row["metric"] == "reliability"]
    assert [row["condition"]["bin"] for row in curve] == [f"{i:02d}" for i in range(15)]
    assert sum(row["counts"]["words"] for row in curve) == 960
    confidences = [float(row["condition"]["mean_confidence"]) for row in curve]
    assert confidences == sorted(confidences)
    gaps = sum(row["counts"]["words"] * abs(row["value"] - c) for row, c in zip(curve, confidences, strict=True))
    assert gaps / 960 == pytest.approx(find(rows, "first_pass", "confidence_ece")["value"], abs=1e-6)


def test_confidently_wrong_words_are_counted_and_their_repairs_too() -> None:
    table = utterances(["call zorp now", "a b", "c d"])
    first = transcripts(
        [[("now", 0.9), ("call", 0.99), ("sorp", 0.95), ("now", 0.92)], [("a", 0.5), ("x", 0.8)], [("c", 0.9)]]
    )
    better = transcripts([[("now", None), ("call", None), ("zorp", None), ("now", None)], [("a", 0.5)], []])
    rows = results(CalibrationConfig(systems=("first_pass", "better"), num_replicates=20), table, first, better)
    row = find(rows, "first_pass", "confidently_wrong")
    assert row["value"] == pytest.approx(2 / 7)
    assert row["counts"] == {"confidently_wrong": 2, "substituted": 1, "inserted": 1, "words": 7, "deletions": 1}
    repaired = find(rows, "better", "confidently_wrong_repaired")
    assert (repaired["value"], repaired["counts"]) == (0.5, {"repaired": 1, "confidently_wrong": 2})


def test_a_system_without_confidences_has_no_calibration() -> None:
    table = utterances(["a b"])
    rows = results(CalibrationConfig(systems=("first_pass",), num_replicates=5), table, transcripts([[("a", None)]]))
    assert rows == []


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (CalibrationConfig(systems=("a",)), r"baseline 'first_pass' is not among systems \['a'\]"),
        (CalibrationConfig(systems=("first_pass",), num_replicates=0), "num_replicates is 0"),
        (CalibrationConfig(systems=("first_pass",), normaliser="x"), "normaliser 'x' is unknown"),
    ],
)
def test_wrong_configs_are_refused(config: CalibrationConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config.build()


# the temperature as a fit


def test_a_temperature_fitted_on_dev_reaches_the_words() -> None:
    confidence, is_right = simulated(3.0, 2000)
    said: list[Said] = [[("w" if right else "err", float(c))] for c, right in zip(confidence, is_right, strict=True)]
    fit = run(ConfidenceConfig(), utterances(["w"] * 2000, "dev"), transcripts(said))
    (row,) = fit.to_pylist()
    temperature = dict(row["values"])["temperature"]
    assert temperature == pytest.approx(3.0, rel=0.1)
    assert (row["name"], row["split"]) == ("confidence", "dev")
    log_probs = [-0.01, -0.2]
    lists = hypotheses_table(
        [NBest(utterance_id="u0", hypotheses=[Hypothesis(text="ab", token_log_probs=log_probs, token_words=[0, 0])])]
    )
    chosen = run(LogLinearConfig(temperature_fit="confidence"), lists, fit)
    (word,) = chosen["words"][0].as_py()
    assert word["confidence"] == pytest.approx(word_confidence(log_probs, temperature), rel=1e-6)
    with pytest.raises(ValueError, match="temperature_fit 'confidence' is named but no FITS table is an input"):
        run(LogLinearConfig(temperature_fit="confidence"), lists)
    with pytest.raises(ValueError, match="0 rows are named"):
        run(LogLinearConfig(temperature_fit="other"), lists, fit)


def test_a_temperature_is_never_fitted_on_test_and_stays_1_without_confidences() -> None:
    said = transcripts([[("a", None)]])
    with pytest.raises(ValueError, match=r"rows of the splits \['test'\] are among the inputs"):
        run(ConfidenceConfig(), utterances(["a"]), said)
    with pytest.raises(ValueError, match="never on what is reported"):
        ConfidenceConfig(splits=("test",))
    (row,) = run(ConfidenceConfig(), utterances(["a"], "dev"), said).to_pylist()
    assert (dict(row["values"]), row["objective_value"]) == ({"temperature": 1.0}, None)
