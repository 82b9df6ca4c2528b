import itertools

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctxasr_ray import schema
from ctxasr_ray.candidates.keyword import KeywordCandidates, KeywordCandidatesConfig
from ctxasr_ray.candidates.replacements import Replacement, best_together, replaced, replacements
from ctxasr_ray.keywords.catalogue import catalogue
from ctxasr_ray.keywords.context import ContextConfig, ContextStage
from ctxasr_ray.keywords.phonetic import distances, sound
from ctxasr_ray.nbest import Hypothesis, NBest, Score, hypotheses_table, read_nbest
from ctxasr_ray.stage import Costs

PHRASES = catalogue(["Zimbrato", "sweetener", "iced coffee", "brown sugar", "\u6771\u4eac"], "basic")


def _run(texts: list[list[str]], **options: object) -> tuple[list[NBest], Costs]:
    hypotheses = hypotheses_table(
        [
            NBest(
                utterance_id=f"u{n}",
                hypotheses=[
                    Hypothesis(text=t, search_score=-k, scores=(Score(source="ctc", kind="log_prob", log_prob=-k),))
                    for k, t in enumerate(row)
                ],
            )
            for n, row in enumerate(texts)
        ]
    )
    utterances = pa.table(
        {"utterance_id": hypotheses["utterance_id"], "keywords": pa.nulls(len(texts), pa.list_(pa.string()))}
    )
    context = ContextStage(ContextConfig(catalogue="x", normaliser="basic"), PHRASES, {})(utterances, costs=Costs())
    costs = Costs()
    config = KeywordCandidatesConfig(catalogue="x", normaliser="basic", **options)  # type: ignore[arg-type]
    table = KeywordCandidates(config, PHRASES)(hypotheses, context, costs=costs)
    schema.conform(table, "hypotheses")
    return read_nbest(table), costs


def test_what_sounds_like_a_phrase_becomes_the_phrase() -> None:
    (row,), costs = _run([["Give me Zimbratto with sweeten her please", "something else"]])
    assert row.hypotheses[0].text == "Give me Zimbrato with sweetener please"
    assert [h.text for h in row.hypotheses if h.origin == "search"] == [
        "Give me Zimbratto with sweeten her please",
        "something else",
    ]
    assert costs.counters["candidates"] == len(row.hypotheses) - 2


def test_every_text_has_the_bonus_and_the_search_is_a_record() -> None:
    (row,), _ = _run([["ice coffee"]])
    made = row.hypotheses[0]
    assert (made.text, made.origin) == ("iced coffee", "keyword")
    assert made.scores == (Score(source="keyword_bonus", kind="bonus", log_prob=7.0),)
    assert made.search_score is None
    assert made.token_ids is None
    assert row.hypotheses[1].scores == (
        Score(source="keyword_bonus", kind="bonus", log_prob=0.0),
        Score(source="ctc", kind="search", log_prob=0.0),
    )


def test_a_phrase_that_is_there_stays_as_it_is_written() -> None:
    (row,), costs = _run([["Brown Sugar, and sweetener"]])
    assert [h.text for h in row.hypotheses] == ["Brown Sugar, and sweetener"]
    assert costs.counters.get("candidates", 0) == 0


def test_rows_without_words_or_with_errors_stay() -> None:
    rows, _ = _run([[""], [], ["nothing like it"]])
    assert [[h.text for h in row.hypotheses] for row in rows] == [[""], [], ["nothing like it"]]


def test_equal_texts_are_made_once() -> None:
    (row,), _ = _run([["ice coffee", "iced coffee", "ize coffee"]])
    assert [h.text for h in row.hypotheses].count("iced coffee") == 1


def test_a_list_that_no_word_sounds_like_changes_nothing() -> None:
    texts = [["the house on the hill", "the mouse"]]
    (row,), _ = _run(texts)
    assert [h.text for h in row.hypotheses] == texts[0]


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.builds(
            lambda start, length, evidence: Replacement(
                start=start, stop=start + length, phrase="x", distance=0.0, evidence=evidence
            ),
            st.integers(0, 5),
            st.integers(1, 3),
            st.floats(0.1, 9),
        ),
        max_size=7,
    )
)
def test_the_best_set_does_not_overlap_and_no_other_explains_more(found: list[Replacement]) -> None:
    chosen = best_together(found, 8)
    assert all(a.stop <= b.start for a, b in itertools.pairwise(chosen))

    def best(at: int) -> float:
        return max([0.0, *(r.evidence + best(r.stop) for r in found if r.start >= at)])

    assert sum(r.evidence for r in chosen) == pytest.approx(best(0))


def test_replacing_keeps_every_other_word() -> None:
    chosen = [Replacement(start=1, stop=3, phrase="P Q", distance=0.0, evidence=1.0)]
    assert replaced(["a", "b", "c", "d"], chosen) == "a P Q d"
    assert replaced(["a"], []) == "a"


def test_distance_is_zero_for_the_same_sound_and_grows_with_what_differs() -> None:
    heard = [sound(word) for word in ("sweeten", "sweetened", "whiten", "house")]
    (near, nearer, far, farthest) = distances(heard, [sound("sweetener")])[:, 0]
    assert 0 < near < far < farthest
    assert nearer < far
    assert distances([sound("knight")], [sound("night")])[0, 0] == 0.0


def test_spans_of_several_words_are_found() -> None:
    (found,) = replacements(
        [["all", "men", "milk"]],
        ["almond milk"],
        max_distance=0.4,
        min_evidence=0.0,
        max_words=4,
        normaliser="basic",
        voice="en-us",
    )
    assert any((r.start, r.stop, r.phrase) == (0, 3, "almond milk") for r in found)


def test_settings_that_make_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match=r"max_distance is 1\.5"):
        KeywordCandidatesConfig(max_distance=1.5)
    with pytest.raises(ValueError, match="at least 1"):
        KeywordCandidatesConfig(max_words=0)
