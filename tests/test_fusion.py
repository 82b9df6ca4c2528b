"""Log-linear fusion: which hypothesis wins, and what happens where a score, a list or a weight is missing."""

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctxasr_ray.fusion.log_linear import LogLinearConfig
from ctxasr_ray.fusion.words import word_confidence
from ctxasr_ray.nbest import Hypothesis, NBest, Score, SourceScores, hypotheses_table, scores_table
from ctxasr_ray.schema import FITS, TRANSCRIPTS, ContractError, conform
from ctxasr_ray.stage import Costs

Lists = list[list[tuple[str, float, float | None]]]
"""Per utterance, per hypothesis: text, the recogniser's and the LM's log-prob."""


def nbest(lists: Lists) -> pa.Table:
    return hypotheses_table(
        [
            NBest(
                utterance_id=f"u{u}",
                hypotheses=[
                    Hypothesis(text=text, scores=(Score(source="ctc", kind="log_prob", log_prob=ctc),))
                    for text, ctc, _ in row
                ],
                error_type=None if row else "audio",
                error=None if row else f"u{u}.wav: truncated",
            )
            for u, row in enumerate(lists)
        ]
    )


def lm_scores(lists: Lists, eos: float | None = None, name: str = "lm") -> pa.Table:
    return scores_table(
        [f"u{u}" for u in range(len(lists))],
        [
            [
                SourceScores(
                    source=name,
                    log_probs=[lm for _, _, lm in row],
                    eos_log_probs=None if eos is None else [eos * i for i in range(len(row))],
                )
            ]
            for row in lists
        ],
    )


def fits(values: dict[str, float], name: str = "weights") -> pa.Table:
    row = {
        "name": name,
        "values": list(values.items()),
        "interval": [],
        "objective": "wer|word|whisper_english|all",
        "split": "dev",
        "parents": [],
        "num_configurations": 1,
    }
    return conform(pa.Table.from_pylist([row], schema=FITS), "fits")


def fuse(*tables: pa.Table, costs: Costs | None = None, **fields: Any) -> pa.Table:
    config = LogLinearConfig(**{"normaliser": "basic", **fields})
    result = config.build()(*tables, costs=costs or Costs())
    assert result.schema == TRANSCRIPTS
    return result


TWO: Lists = [[("the cat", -1.0, -9.0), ("a cat", -2.0, -3.0)], [("yes", -1.0, -1.0)]]


def test_without_scores_and_fits_the_first_hypothesis_is_taken() -> None:
    result = fuse(nbest([[("worse", -9.0, None), ("better", -1.0, None)]]))
    assert result["text"].to_pylist() == ["worse"]
    assert result["hypothesis_index"].to_pylist() == [0]
    assert result["fused_scores"].to_pylist() == [None]


def test_the_weighted_sum_decides() -> None:
    result = fuse(nbest(TWO), lm_scores(TWO), weights={"ctc": 1.0, "lm": 0.5})
    assert result["text"].to_pylist() == ["a cat", "yes"]
    assert result["hypothesis_index"].to_pylist() == [1, 0]
    assert result["fused_scores"].to_pylist() == [[-5.5, -3.5], [-1.5]]
    assert result["num_unscored"].to_pylist() == [0, 0]


def test_fitted_and_fixed_weights_give_the_same_table() -> None:
    values = {"ctc": 1.0, "lm": 0.5, "length_bonus": -0.25}
    fixed = fuse(nbest(TWO), lm_scores(TWO), weights=values)
    assert fuse(nbest(TWO), lm_scores(TWO), fits(values)).equals(fixed)


def test_the_length_bonus_counts_normalised_words() -> None:
    lists: Lists = [[("Stop (noise), go!", -1.0, 0.0), ("go", -1.5, 0.0)]]
    result = fuse(nbest(lists), weights={"ctc": 1.0, "length_bonus": 1.0})
    assert result["fused_scores"].to_pylist() == [[1.0, -0.5]]


def test_the_length_bonus_counts_characters_of_chinese() -> None:
    lists: Lists = [[("你好 吗", -1.0, 0.0)]]
    result = fuse(nbest(lists), weights={"ctc": 1.0, "length_bonus": 1.0}, unit="character", normaliser="mandarin")
    assert result["fused_scores"].to_pylist() == [[2.0]]


def test_the_end_of_sequence_is_weighted_like_its_source() -> None:
    lists: Lists = [[("a", -1.0, -1.0), ("b", -1.0, -1.0)]]
    result = fuse(nbest(lists), lm_scores(lists, eos=-2.0), weights={"ctc": 1.0, "lm": 0.5})
    assert result["fused_scores"].to_pylist() == [[-1.5, -2.5]]


def test_the_end_of_sequence_may_have_its_own_weight() -> None:
    lists: Lists = [[("a", -1.0, -1.0), ("b", -1.0, -1.0)]]
    weights = {"ctc": 1.0, "lm": 0.5, "lm/eos": 0.0}
    result = fuse(nbest(lists), lm_scores(lists, eos=-2.0), weights=weights)
    assert result["fused_scores"].to_pylist() == [[-1.5, -1.5]]


def test_a_missing_score_keeps_the_first_pass_choice_and_is_counted() -> None:
    lists: Lists = [[("first", -5.0, -1.0), ("second", -1.0, None)], [("x", -2.0, -9.0), ("y", -3.0, -1.0)]]
    costs = Costs()
    result = fuse(nbest(lists), lm_scores(lists), costs=costs, weights={"ctc": 1.0, "lm": 1.0})
    assert result["text"].to_pylist() == ["first", "y"]
    assert result["num_unscored"].to_pylist() == [1, 0]
    assert result["fused_scores"].to_pylist() == [None, [-11.0, -4.0]]
    assert costs.counters == {"utterances": 2, "changed": 1, "unscored": 1}


def test_a_shard_whose_scorer_failed_everywhere_keeps_the_first_pass() -> None:
    failed = scores_table(["u0", "u1"], [[], []], [("model_limit", "too long")] * 2)
    result = fuse(nbest(TWO), failed, weights={"ctc": 1.0, "lm": 1.0})
    assert result["text"].to_pylist() == ["the cat", "yes"]
    assert result["num_unscored"].to_pylist() == [1, 1]


def test_a_weight_of_zero_ignores_a_source_even_where_it_is_missing() -> None:
    lists: Lists = [[("first", -5.0, -1.0), ("second", -1.0, None)]]
    result = fuse(nbest(lists), lm_scores(lists), weights={"ctc": 1.0, "lm": 0.0})
    assert result["text"].to_pylist() == ["second"]
    assert result["num_unscored"].to_pylist() == [0]


def test_an_error_row_is_carried_with_its_reason() -> None:
    lists: Lists = [[], [("yes", -1.0, -1.0)]]
    result = fuse(nbest(lists), lm_scores(lists), weights={"ctc": 1.0, "lm": 1.0})
    first = result.to_pylist()[0]
    assert first["text"] == ""
    assert first["hypothesis_index"] is None
    assert first["words"] == []
    assert first["num_unscored"] == 0
    assert (first["error_type"], first["error"]) == ("audio", "u0.wav: truncated")


def test_an_empty_hypothesis_can_win_and_is_the_empty_string() -> None:
    result = fuse(nbest([[("nan", -2.0, None), ("", -1.0, None)]]), weights={"ctc": 1.0})
    assert result["text"].to_pylist() == [""]
    assert result["hypothesis_index"].to_pylist() == [1]


def test_of_equal_scores_the_earlier_hypothesis_wins() -> None:
    lists: Lists = [[("c", -3.0, 0.0), ("a", -1.0, 0.0), ("b", -1.0, 0.0)]]
    assert fuse(nbest(lists), weights={"ctc": 1.0})["text"].to_pylist() == ["a"]


def test_a_table_of_no_rows_stays_one() -> None:
    assert fuse(nbest([]), weights={"ctc": 1.0}).num_rows == 0


def test_a_slice_gives_the_same_rows_as_the_whole() -> None:
    weights = {"ctc": 1.0, "lm": 0.5, "length_bonus": 0.1}
    lists: Lists = [*TWO, [], [("p q", -2.0, -4.0), ("p", -2.5, -3.0)]]
    whole = fuse(nbest(lists), lm_scores(lists), weights=weights)
    for start in range(len(lists)):
        part = fuse(nbest(lists).slice(start, 1), lm_scores(lists).slice(start, 1), weights=weights)
        assert part.equals(whole.slice(start, 1))


scores = st.integers(-40, 0).map(lambda n: n / 4)
some_lists = st.lists(
    st.lists(st.tuples(st.sampled_from(["a", "a b", ""]), scores, scores), max_size=4), min_size=1, max_size=4
)


@settings(max_examples=40, deadline=None)
@given(lists=some_lists, weight=st.integers(0, 8).map(lambda n: n / 4), constant=scores)
def test_a_constant_added_to_all_scores_of_an_utterance_changes_nothing(
    lists: Lists, weight: float, constant: float
) -> None:
    moved: Lists = [[(t, c + constant, None if lm is None else lm + constant) for t, c, lm in row] for row in lists]
    weights = {"ctc": 1.0, "lm": weight}
    before = fuse(nbest(lists), lm_scores(lists), weights=weights)
    after = fuse(nbest(moved), lm_scores(moved), weights=weights)
    assert before["hypothesis_index"].equals(after["hypothesis_index"])


@settings(max_examples=40, deadline=None)
@given(lists=some_lists)
def test_weight_zero_equals_leaving_the_scorer_out(lists: Lists) -> None:
    ignored = fuse(nbest(lists), lm_scores(lists), weights={"ctc": 1.0, "lm": 0.0})
    if any(lists):
        assert ignored.equals(fuse(nbest(lists), weights={"ctc": 1.0}))


@settings(max_examples=40, deadline=None)
@given(lists=some_lists, seed=st.integers(0, 99))
def test_reordered_hypotheses_give_the_same_best_score(lists: Lists, seed: int) -> None:
    random = np.random.default_rng(seed)
    mixed: Lists = [[row[int(i)] for i in random.permutation(len(row))] for row in lists]
    weights = {"ctc": 1.0, "lm": 0.75}
    before = fuse(nbest(lists), lm_scores(lists), weights=weights)
    after = fuse(nbest(mixed), lm_scores(mixed), weights=weights)

    def best(table: pa.Table) -> list[float | None]:
        return [max(row) if row else None for row in table["fused_scores"].to_pylist()]

    assert best(before) == best(after)


def test_weights_from_two_places_or_from_none_are_refused() -> None:
    with pytest.raises(ValueError, match="exactly one"):
        fuse(nbest(TWO), lm_scores(TWO), fits({"ctc": 1.0, "lm": 0.5}), weights={"ctc": 1.0, "lm": 0.5})
    with pytest.raises(ValueError, match="1 SCORES inputs but no weights"):
        fuse(nbest(TWO), lm_scores(TWO))


def test_the_recogniser_weighs_one_unless_it_is_named() -> None:
    named = fuse(nbest(TWO), lm_scores(TWO), weights={"ctc": 1.0, "lm": 0.5})
    assert fuse(nbest(TWO), lm_scores(TWO), weights={"lm": 0.5}).equals(named)


def test_a_source_without_weight_is_not_dropped_in_silence() -> None:
    with pytest.raises(ContractError, match=r"\['lm'\] have no weight"):
        fuse(nbest(TWO), lm_scores(TWO), weights={"ctc": 1.0})


def test_a_weight_without_source_is_refused() -> None:
    with pytest.raises(ContractError, match=r"\['llm'\], which no input has"):
        fuse(nbest(TWO), lm_scores(TWO), weights={"ctc": 1.0, "lm": 0.5, "llm": 1.0})


def test_the_same_source_twice_is_refused() -> None:
    with pytest.raises(ContractError, match="added twice"):
        fuse(nbest(TWO), lm_scores(TWO), lm_scores(TWO), weights={"ctc": 1.0, "lm": 0.5})


def test_a_fit_of_another_name_is_refused() -> None:
    with pytest.raises(ValueError, match="0 rows are named 'weights'"):
        fuse(nbest(TWO), lm_scores(TWO), fits({"ctc": 1.0, "lm": 0.5}, name="temperature"))


@pytest.mark.parametrize(
    "fields",
    [{"unit": "syllable"}, {"normaliser": "mine"}, {"temperature": 0.0}, {"weights": {}}, {"weights": {"a": math.nan}}],
    ids=str,
)
def test_bad_fields_are_refused_at_construction(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        LogLinearConfig(**fields)


def with_tokens(text: str, token_words: list[int] | None, log_probs: list[float]) -> pa.Table:
    steps = [0.5 * i for i in range(len(log_probs))]
    hypothesis = Hypothesis(
        text=text,
        token_ids=range(len(log_probs)),
        token_log_probs=log_probs,
        token_start_s=steps,
        token_end_s=[s + 0.25 for s in steps],
        token_words=token_words,
        scores=(Score(source="ctc", kind="log_prob", log_prob=-1.0),),
        origin="keyword",
    )
    return hypotheses_table([NBest(utterance_id="u", hypotheses=[hypothesis])])


def test_a_search_that_left_out_its_language_model_counts_as_unscored() -> None:
    hypothesis = Hypothesis(text="so", scores=(Score(source="ctc", kind="log_prob", log_prob=-1.0),))
    lists = [
        NBest(utterance_id="a", hypotheses=[hypothesis], error="causal_lm: its log-probs are not finite"),
        NBest(utterance_id="b", hypotheses=[hypothesis]),
        NBest(utterance_id="c", error_type="audio", error="c.wav: gone"),
    ]
    fused = fuse(hypotheses_table(lists))
    assert fused["text"].to_pylist() == ["so", "so", ""]
    assert fused["num_unscored"].to_pylist() == [1, 0, 0]


def test_tokens_give_their_words_times_and_confidence() -> None:
    half = math.log(0.5)
    table = with_tokens("hi yo", [0, 0, -1, 1, 1], [0.0, half, -9.0, -0.1, 0.0])
    words = fuse(table)["words"].to_pylist()[0]
    assert [w["word"] for w in words] == ["hi", "yo"]
    assert [(w["start_s"], w["end_s"]) for w in words] == [(0.0, 0.75), (1.5, 2.25)]
    assert words[0]["confidence"] == pytest.approx(0.5)
    assert words[1]["confidence"] == pytest.approx(math.exp(-0.1), abs=1e-6)
    assert [w["origin"] for w in words] == ["keyword", "keyword"]


@pytest.mark.parametrize("token_words", [None, [-1, -1]], ids=["not stored", "of no word"])
def test_tokens_of_unknown_words_give_words_without_confidence(token_words: list[int] | None) -> None:
    words = fuse(with_tokens("hi yo", token_words, [-0.1] * 2))["words"].to_pylist()[0]
    assert [w["word"] for w in words] == ["hi", "yo"]
    assert {(w["start_s"], w["end_s"], w["confidence"]) for w in words} == {(None, None, None)}


def test_the_temperature_pulls_confidence_towards_a_half() -> None:
    p = 0.9
    assert word_confidence([math.log(p)], 1.0) == pytest.approx(p)
    expected = 1 / (1 + math.exp(-math.log(p / (1 - p)) / 2))
    assert word_confidence([0.0, math.log(p)], 2.0) == pytest.approx(expected)
    assert word_confidence([0.0], 2.0) == 1.0
    assert word_confidence([-80.0], 1.0) == pytest.approx(math.exp(-80.0))
