import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctxasr_ray import layout, schema
from ctxasr_ray.keywords.catalogue import catalogue, load
from ctxasr_ray.keywords.context import ContextConfig, ContextStage, row_phrases
from ctxasr_ray.recipes.showcase import keyword_methods
from ctxasr_ray.schema import ContractError
from ctxasr_ray.stage import Costs
from tests.real import real

WORDS = [f"word{n}" for n in range(40)]


def _utterances(*keywords: list[str] | None) -> pa.Table:
    return pa.table(
        {
            "utterance_id": pa.array([f"u{n}" for n in range(len(keywords))]),
            "keywords": pa.array(keywords, pa.list_(pa.string())),
        }
    )


def _path(tmp_path: Path, name: str = "words.txt", content: str = "\n".join(WORDS)) -> str:
    (tmp_path / name).write_text(content)
    return str(tmp_path / name)


def _run(config: ContextConfig, utterances: pa.Table) -> tuple[pa.Table, Costs]:
    costs = Costs()
    return config.build()(utterances, costs=costs), costs


@settings(deadline=None)
@given(
    st.lists(st.sampled_from([*WORDS, "Word3.", "elsewhere", "other phrase"]), max_size=8),
    st.integers(0, 40),
    st.integers(0, 40),
)
def test_every_larger_list_contains_the_smaller_one(own: list[str], one: int, other: int) -> None:
    words = catalogue(WORDS, "basic")
    smaller, larger = sorted((one, other))
    lists = []
    for size in (smaller, larger):
        config = ContextConfig(catalogue="words.txt", num_distractors=size, true_keywords=True, normaliser="basic")
        table = ContextStage(config, words, {})(_utterances(own), costs=Costs())
        (row,) = row_phrases(table, words)
        texts = row.texts(words)
        assert len(texts) == len({text.strip(".").lower() for text in texts})
        mine = {phrase.phrase_id for phrase in row.own}
        distractors = [n for n in range(row.num_shared) if n not in mine]
        assert len(distractors) == min(size, len(words) - len(mine - {-1}))
        assert distractors == [n for n in range(len(words)) if n not in mine][: len(distractors)]
        lists.append({text.lower().strip(".") for text in texts})
    assert lists[0] <= lists[1]
    assert {phrase.lower().strip(".") for phrase in own} <= lists[0]


def test_shared_phrases_are_never_repeated_in_rows(tmp_path: Path) -> None:
    config = ContextConfig(catalogue=_path(tmp_path), true_keywords=True)
    table, costs = _run(config, _utterances(["word3", "Word3", "new one"], [], None))
    schema.conform(table, "context")
    found = load(_path(tmp_path))
    assert table["phrases"].to_pylist() == [["word3", "new one"], [], []]
    assert table["phrase_ids"].to_pylist() == [[found.id_of("word3"), -1], [], []]
    assert table["origins"].to_pylist() == [["truth", "truth"], [], []]
    assert table["num_distractors"].to_pylist() == [40, 40, 40]
    assert table["catalogue"].to_pylist() == [found.digest] * 3
    assert costs.counters["keywords_unknown"] == 1
    assert [len(row.texts(found)) for row in row_phrases(table, found)] == [41, 40, 40]


def test_without_truth_the_truth_changes_nothing(tmp_path: Path) -> None:
    config = ContextConfig(catalogue=_path(tmp_path), num_distractors=5)
    table, _ = _run(config, _utterances(["word3"], []))
    assert table["phrases"].to_pylist() == [[], []]


def test_lists_per_utterance_bring_their_scores(tmp_path: Path) -> None:
    lists = {"u0": [{"phrase": "Alpha", "score": 3}, "alpha", "beta", "um"], "u2": []}
    path = _path(tmp_path, "lists.json", json.dumps(lists))
    table, costs = _run(ContextConfig(lists=path), _utterances(None, None, None))
    assert table["phrases"].to_pylist() == [["Alpha", "beta"], [], []]
    assert table["weights"].to_pylist() == [[3.0, 1.0], [], []]
    assert table["catalogue"].null_count == 3
    assert costs.counters["utterances_without_list"] == 2
    assert costs.counters["unusable_phrases"] == 1
    assert row_phrases(table, None)[0].texts(None) == ["Alpha", "beta"]


def test_lists_whose_ids_do_not_match_are_refused_in_words(tmp_path: Path) -> None:
    config = ContextConfig(lists=_path(tmp_path, "lists.json", '{"u0": [], "v1": ["x"]}'))
    config.refuse_other_corpus(["u0", "v1", "w"])
    with pytest.raises(ValueError, match=r"1 phrase lists are of utterances .* 'v1'; its own are like 'u0'"):
        config.refuse_other_corpus(["u0", "u1"])


def test_scores_of_the_catalogue_weigh_true_keywords_too(tmp_path: Path) -> None:
    path = _path(tmp_path, "words.tsv", "alpha\t2.5\nbeta\t-1\n")
    table, _ = _run(ContextConfig(catalogue=path, num_distractors=0, true_keywords=True), _utterances(["beta", "x"]))
    assert table["weights"].to_pylist() == [[-1.0, 1.0]]


def test_another_catalogue_than_the_rows_name_is_refused(tmp_path: Path) -> None:
    table, _ = _run(ContextConfig(catalogue=_path(tmp_path), num_distractors=3), _utterances([]))
    for other in (catalogue(["x"]), catalogue(WORDS, "basic"), None):
        with pytest.raises(ContractError, match="give both the same file"):
            row_phrases(table, other)


def test_more_distractors_than_phrases_are_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has 40 phrases.*keyword_methods.*--context.num-distractors 40"):
        ContextConfig(catalogue=_path(tmp_path), num_distractors=41).fingerprint()
    with pytest.raises(ValueError, match="expected 0 or more"):
        ContextConfig(num_distractors=-1)


def test_the_recipe_that_the_refusal_names_takes_a_list_as_long_as_it_is(tmp_path: Path) -> None:
    line = layout.line(replace(keyword_methods(), catalogue=_path(tmp_path)))
    (context,) = [step.config for step in line.steps if isinstance(step.config, ContextConfig)]
    phrases = context.phrases()
    assert phrases is not None
    assert len(phrases) == 40


def test_fingerprint_names_content_not_place(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    here, there = _path(tmp_path), _path(tmp_path / "b", "renamed.txt", "\n".join(WORDS[::-1]))
    assert ContextConfig(catalogue=here).fingerprint() == ContextConfig(catalogue=there).fingerprint()
    changed = _path(tmp_path / "b", "renamed.txt", "\n".join(WORDS[1:]))
    assert ContextConfig(catalogue=here).fingerprint() != ContextConfig(catalogue=changed).fingerprint()


def test_published_lists_are_found_by_utterance() -> None:
    config = ContextConfig(lists=str(real("is21/ref/test-clean.biasing_100.tsv")))
    ids = list(config.build().lists)[:3]
    utterances = pa.table({"utterance_id": ids, "keywords": pa.nulls(3, pa.list_(pa.string()))})
    table, _ = _run(config, utterances)
    assert all(len(phrases) >= 95 for phrases in table["phrases"].to_pylist())
