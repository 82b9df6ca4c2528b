"""Every rule of the README's section on how numbers are computed has tests that are named here."""

import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctxasr_ray.metrics.counts import errors_table
from ctxasr_ray.metrics.error_rate import count_metrics
from ctxasr_ray.metrics.real_time_factor import real_time_factors
from ctxasr_ray.metrics.word_classes import WordLists
from ctxasr_ray.schema import RESULTS

RULES = {
    "Rates are sums": (
        "test_metrics.py::test_rates_are_sums_over_sums_and_equal_jiwer",
        "test_metrics.py::test_the_alignment_and_the_normaliser_stand_in_every_count",
        "test_text.py::test_whisper_english_equals_the_normaliser_of_the_whisper_package",
    ),
    "An utterance that failed": (
        "test_metrics.py::test_a_failed_utterance_is_all_deletions_whatever_its_text_says",
        "test_metrics.py::test_missing_ids_are_charged_as_deletions_and_extra_ids_are_counted",
        "test_score_files.py::test_an_empty_hypothesis_is_all_deletions_and_not_missing",
        "test_metrics.py::test_utterances_without_reference_and_empty_references_are_counted",
    ),
    "A scorer's failure": (
        "test_known_traps.py::test_trap_03_missing_score_treated_as_0",
        "test_metrics.py::test_failed_unscored_and_configurations_are_counted_per_split",
        "test_nbest.py::test_a_missing_score_is_nan_never_zero",
        "test_nbest.py::test_a_score_that_is_no_number_is_refused_where_it_is_written",
    ),
    "Intervals are 95 %": (
        "test_significance.py::test_95_percent_intervals_hold_the_truth_in_93_to_97_percent_of_simulated_corpora",
        "test_significance.py::test_blocks_are_speakers_then_sessions_then_utterances",
        "test_metrics.py::test_single_utterances_as_blocks_are_said_once_with_every_split_that_has_them",
        "test_metrics.py::test_a_row_carries_interval_difference_blocks_and_signature",
    ),
    "O-WER": (
        "test_metrics.py::test_orthographic_errors_are_counted_on_raw_words",
        "test_metrics.py::test_rare_words_are_listed_or_not_common_or_seldom_in_a_training_text",
        "test_metrics.py::test_biased_words_are_those_of_the_true_phrases_outside_the_common_words",
        "test_known_rules.py::test_biased_and_unbiased_edits_add_up_to_those_of_all_words",
    ),
    "Keywords are leftmost-longest": (
        "test_keyword_metrics.py::test_matches_are_leftmost_longest_and_do_not_overlap",
        "test_keyword_metrics.py::test_a_perfect_transcript_has_no_error_whatever_the_catalogue",
        "test_keyword_metrics.py::test_an_utterance_without_transcript_is_scored_by_its_keywords_alone",
        "test_keyword_metrics.py::test_the_number_of_false_alarms_is_a_total_with_an_interval",
    ),
    "`oracle` is": (
        "test_metrics.py::test_the_oracle_is_the_best_transcript_that_any_choice_could_give",
        "test_edit_metrics.py::test_the_compositional_oracle_equals_the_best_of_all_paths",
    ),
    "`harmful_edits` and": (
        "test_edit_metrics.py::test_words_are_spoiled_or_repaired_one_by_one",
        "test_edit_metrics.py::test_the_gap_to_the_oracle_is_closed_by_the_share_of_repaired_words",
    ),
    "Word confidence": (
        "test_calibration.py::test_each_written_word_is_right_or_wrong_and_keeps_its_confidence",
        "test_calibration.py::test_ece_is_the_weighted_gap_of_bins_of_equal_mass",
        "test_calibration.py::test_confidently_wrong_words_are_counted_and_their_repairs_too",
    ),
    "`p_value_adjusted` is": (
        "test_significance.py::test_correction_for_many_configurations_is_holms",
        "test_significance.py::test_matched_pairs_by_hand",
    ),
    "Tuning reads dev": (
        "test_execution.py::test_a_fit_on_test_is_refused_before_any_work",
        "test_calibration.py::test_a_temperature_is_never_fitted_on_test_and_stays_1_without_confidences",
    ),
    "`real_time_factor`:": ("test_known_rules.py::test_the_real_time_factor_adds_up_busy_seconds_without_loading",),
}
BAD_INPUT = {
    "ids on one side": "test_score_files.py::test_ids_of_one_side_only_are_named",
    "duplicate ids": "test_score_files.py::test_a_reference_file_that_is_broken_is_refused_with_its_line",
    "empty references": "test_score_files.py::test_an_empty_reference_counts_insertions_and_is_counted",
    "empty hypotheses": "test_score_files.py::test_an_empty_hypothesis_is_all_deletions_and_not_missing",
    "NaN scores": "test_nbest.py::test_a_score_that_is_no_number_is_refused_where_it_is_written",
    "normalise to nothing": "test_score_files.py::test_references_that_normalise_to_nothing_are_counted",
    "CRLF and BOM": "test_score_files.py::test_a_bom_and_crlf_are_read_over",
    "right to left, combining": "test_score_files.py::test_right_to_left_and_combining_scripts",
    "a million utterances": "test_score_files.py::test_a_million_utterances",
}
FOLDER = Path(__file__).parent


def test_every_rule_of_the_readme_has_its_tests() -> None:
    readme = (FOLDER.parent / "README.md").read_text("utf-8")
    section = readme.partition("## How numbers are computed")[2].partition("\n## ")[0]
    rules = re.findall(r"^- (.*)", section, re.MULTILINE)
    assert [next((key for key in RULES if rule.startswith(key)), rule) for rule in rules] == list(RULES)
    for test in [*(name for names in RULES.values() for name in names), *BAD_INPUT.values()]:
        file, name = test.split("::")
        assert f"def {name}(" in (FOLDER / file).read_text("utf-8"), test


WORDS = st.lists(st.sampled_from(["call", "zorp", "new", "york", "blim", "now"]), max_size=7).map(" ".join)


@given(
    pairs=st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=6),
    keywords=st.lists(st.sampled_from(["zorp", "new york", "blim"]), max_size=2),
    alignment=st.sampled_from(["unit", "nist"]),
)
@settings(max_examples=60, deadline=None)
def test_biased_and_unbiased_edits_add_up_to_those_of_all_words(
    pairs: list[tuple[str, str]], keywords: list[str], alignment: str
) -> None:
    references, heard = [list(side) for side in zip(*pairs, strict=True)]
    own = [keywords] * len(pairs)
    names = ["wer", "biased_wer", "unbiased_wer"]
    classes = WordLists(common_words=None).load("none")
    found = count_metrics(names, references, heard, own, normaliser="none", alignment=alignment, classes=classes)
    for row in errors_table([f"u{i}" for i in range(len(pairs))], found).to_pylist():
        counted = {entry["metric"]: entry for entry in row["counts"]}
        for name in ("hits", "substitutions", "deletions", "insertions", "reference_length"):
            assert counted["wer"][name] == counted["biased_wer"][name] + counted["unbiased_wer"][name]


def test_the_real_time_factor_adds_up_busy_seconds_without_loading() -> None:
    row = {"corpus": "c", "split": "test", "system": "lm", "condition": [], "metric": "wer", "unit": "word"}
    row |= {"value": 0.1, "counts": [], "num_utterances": 3, "num_failed": 0, "num_unscored": 0}
    results = pa.Table.from_pylist([row | {"num_configurations": 1, "signature": "wer"}], schema=RESULTS)

    def receipt(step: str, shard: str, audio_s: float, busy: float) -> dict[str, Any]:
        seconds = {"busy": busy, "load": 100.0}
        common = {"corpus": "c", "split": "test", "device": "cpu"}
        return common | {"step": step, "shard": shard, "audio_s": audio_s, "seconds": seconds}

    steps = [
        ("first_pass", "a", 40.0, 4.0),
        ("first_pass", "b", 60.0, 6.0),
        ("lm", "a", 40.0, 1.0),
        ("lm", "b", 60.0, 4.0),
    ]
    (found,) = real_time_factors(results, {"lm": [receipt(*each) for each in steps]}).to_pylist()
    assert found["value"] == pytest.approx((4 + 6 + 1 + 4) / 100)
    assert "steps:2" in found["signature"]
