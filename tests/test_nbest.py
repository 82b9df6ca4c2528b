"""N-best lists and scores between Arrow and numpy."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ctxasr_ray.nbest import (
    Hypothesis,
    NBest,
    Score,
    SourceScores,
    flatten,
    hypotheses_table,
    read_nbest,
    score_matrix,
    scores_table,
)
from ctxasr_ray.schema import ContractError


def hypothesis(text: str, ctc: float | None = -1.0, **fields: Any) -> Hypothesis:
    scores = () if ctc is None else (Score(source="ctc", kind="log_prob", log_prob=ctc),)
    return Hypothesis(text=text, scores=scores, **fields)


def ragged() -> pa.Table:
    return hypotheses_table(
        [
            NBest(utterance_id="three", hypotheses=[hypothesis("a b", -1), hypothesis("", -2), hypothesis("nan", -3)]),
            NBest(utterance_id="none", error_type="audio", error="x.wav: truncated"),
            NBest(utterance_id="one", hypotheses=[hypothesis("c", -4)]),
        ]
    )


def lm(*rows: list[float | None], eos: list[list[float | None]] | None = None, name: str = "lm") -> pa.Table:
    sources = [
        [SourceScores(source=name, log_probs=row, eos_log_probs=None if eos is None else eos[u])]
        for u, row in enumerate(rows)
    ]
    return scores_table(["three", "none", "one"], sources)


def test_lists_survive_the_way_through_arrow_with_every_field() -> None:
    full = Hypothesis(
        text='He said "nan"',
        token_ids=(3, 1),
        token_log_probs=(-0.5, -0.25),
        token_entropies=(1.0, 0.5),
        token_start_s=(0.0, 0.5),
        token_end_s=(0.5, 1.0),
        scores=(
            Score(source="ctc", kind="log_prob", log_prob=-1.25),
            Score(source="boost", kind="bonus", log_prob=2.0),
        ),
        search_score=-3.5,
        origin="keyword",
    )
    failed = NBest(utterance_id="b", error_type="audio", error="b.wav: empty file")
    table = hypotheses_table([NBest(utterance_id="a", hypotheses=[full]), failed])
    back = read_nbest(table)
    assert back[1] == NBest(utterance_id="b", hypotheses=(), error_type="audio", error="b.wav: empty file")
    read = back[0].hypotheses[0]
    assert read.text == full.text
    assert read.scores == full.scores
    assert read.search_score == -3.5
    assert read.origin == "keyword"
    for name in ("token_ids", "token_log_probs", "token_entropies", "token_start_s", "token_end_s"):
        assert tuple(getattr(read, name)) == getattr(full, name)


def test_an_empty_hypothesis_stays_the_empty_string() -> None:
    # trap 1: pandas reads an empty field as nan, which then is written as "nan"
    flat = flatten(ragged())
    assert flat.texts == ["a b", "", "nan", "c"]


def test_ragged_lists_have_offsets_and_owners() -> None:
    flat = flatten(ragged())
    assert flat.utterance_ids == ["three", "none", "one"]
    assert flat.offsets.tolist() == [0, 3, 3, 4]
    assert flat.rows().tolist() == [0, 0, 0, 2]


@pytest.mark.parametrize("start", [0, 1, 2])
def test_a_slice_gives_what_its_rows_alone_give(start: int) -> None:
    scores = lm([-1.0, -2.0, None], [], [-4.0], eos=[[-0.5, -0.5, None], [], [-0.25]])
    whole = score_matrix(ragged(), [scores])
    begin = whole.offsets[start]
    part = score_matrix(ragged().slice(start), [scores.slice(start)])
    assert flatten(ragged().slice(start)).texts == flatten(ragged()).texts[begin:]
    assert part.sources == whole.sources
    np.testing.assert_array_equal(part.values, whole.values[begin:])
    np.testing.assert_array_equal(part.offsets, whole.offsets[start:] - begin)


def test_chunks_of_shards_are_read_as_one_table() -> None:
    first, second = ragged(), ragged().set_column(0, "utterance_id", pa.array(["x", "y", "z"]))
    both = pa.concat_tables([first, second.cast(first.schema)])
    flat = flatten(both)
    assert flat.offsets.tolist() == [0, 3, 3, 4, 7, 7, 8]
    assert score_matrix(both).values[:, 0].tolist() == [-1, -2, -3, -4] * 2


def test_a_missing_score_is_nan_never_zero() -> None:
    # trap 3: SRILM sets missing scores to 0, the best log-prob there is
    matrix = score_matrix(ragged(), [lm([-1.0, None, -3.0], [], [-4.0])])
    assert matrix.sources == ["ctc", "lm"]
    np.testing.assert_array_equal(matrix.values[:, 1], [-1, np.nan, -3, -4])


def test_a_scorer_that_failed_on_an_utterance_leaves_nan() -> None:
    table = scores_table(
        ["three", "none", "one"],
        [[], [], [SourceScores(source="lm", log_probs=[-4.0])]],
        [("model_limit", "2,049 tokens, at most 2,048"), None, None],
    )
    np.testing.assert_array_equal(score_matrix(ragged(), [table]).values[:, 1], [np.nan, np.nan, np.nan, -4])


def test_end_of_sequence_stands_apart() -> None:
    matrix = score_matrix(ragged(), [lm([-1.0, -2.0, -3.0], [], [-4.0], eos=[[-0.1, -0.2, None], [], [-0.4]])])
    assert matrix.sources == ["ctc", "lm", "lm/eos"]
    np.testing.assert_array_equal(matrix.values[:, 2], [-0.1, -0.2, np.nan, -0.4])


def test_the_record_of_the_search_is_no_score() -> None:
    scores = (
        Score(source="ctc", kind="log_prob", log_prob=-1.0),
        Score(source="gated", kind="search", log_prob=-9.0),
    )
    table = hypotheses_table([NBest(utterance_id="u", hypotheses=[Hypothesis(text="a", scores=scores)])])
    assert score_matrix(table).sources == ["ctc"]


def test_a_source_may_be_missing_for_some_hypotheses_of_the_recogniser() -> None:
    table = hypotheses_table([NBest(utterance_id="u", hypotheses=[hypothesis("a"), hypothesis("b", None)])])
    np.testing.assert_array_equal(score_matrix(table).values[:, 0], [-1, np.nan])


def test_scores_of_other_rows_are_refused() -> None:
    # trap 10: beam scores that belong to another row
    swapped = lm([-1.0, -2.0, -3.0], [], [-4.0]).take([2, 1, 0])
    with pytest.raises(ContractError, match="in their order"):
        score_matrix(ragged(), [swapped])


def test_scores_of_another_number_of_hypotheses_are_refused() -> None:
    with pytest.raises(ContractError, match=r"'three': 2 log_probs for 3 hypotheses"):
        score_matrix(ragged(), [lm([-1.0, -2.0], [], [-4.0])])


def test_the_same_source_twice_is_refused() -> None:
    # trap 16: a boost that is counted twice
    one = lm([-1.0, -2.0, -3.0], [], [-4.0])
    with pytest.raises(ContractError, match="'lm' stands in two SCORES tables"):
        score_matrix(ragged(), [one, one])
    with pytest.raises(ContractError, match="'ctc' stands in the recogniser's own scores"):
        score_matrix(ragged(), [lm([-1.0, -2.0, -3.0], [], [-4.0], name="ctc")])


@pytest.mark.parametrize("value", [float("-inf"), float("inf"), float("nan")])
def test_a_score_that_is_no_number_is_refused_where_it_is_written(value: float) -> None:
    with pytest.raises(ContractError, match=r"utterance 'three'.*finite"):
        lm([-1.0, value, -3.0], [], [-4.0])


def test_a_table_without_any_hypothesis_has_an_empty_matrix() -> None:
    table = hypotheses_table([NBest(utterance_id="u", error_type="audio", error="u.wav: missing")])
    matrix = score_matrix(table)
    assert matrix.sources == []
    assert matrix.values.shape == (0, 0)
