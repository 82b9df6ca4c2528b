"""Keyword recall, precision, F1 and false alarms against brute force and by hand."""

import itertools
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctxasr_ray.keywords.catalogue import catalogue, load
from ctxasr_ray.keywords.context import ContextConfig
from ctxasr_ray.metrics.keywords import KeywordCounter, KeywordCountsConfig, phrase_table
from ctxasr_ray.metrics.phrase_trie import PhraseTrie, find_phrases
from ctxasr_ray.metrics.summary import SummaryConfig
from ctxasr_ray.schema import TRANSCRIPTS, UTTERANCES, ContractError, conform
from ctxasr_ray.stage import Costs


def utterances(rows: Sequence[tuple[str | None, Sequence[str] | None]]) -> pa.Table:
    default = {"corpus": "c", "split": "test", "audio_uri": "a.wav", "start_s": 0.0}
    full = [default | {"utterance_id": f"u{i}", "reference": r, "keywords": k} for i, (r, k) in enumerate(rows)]
    return conform(pa.Table.from_pylist(full, schema=UTTERANCES), "utterances")


def transcripts(texts: list[str], error_types: list[str | None] | None = None) -> pa.Table:
    rows: list[dict[str, Any]] = [
        {"utterance_id": f"u{i}", "text": text, "words": [], "num_unscored": 0, "error_type": error}
        for i, (text, error) in enumerate(zip(texts, error_types or [None] * len(texts), strict=True))
    ]
    return conform(pa.Table.from_pylist(rows, schema=TRANSCRIPTS), "transcripts")


def counted(config: KeywordCountsConfig, *tables: pa.Table) -> list[dict[str, tuple[int, int, int]]]:
    """Per utterance and metric: true positives, false negatives, false positives."""
    errors = conform(config.build()(*tables, costs=Costs()), "errors")
    return [
        {c["metric"]: (c["hits"], c["deletions"], c["insertions"]) for c in row if c["metric"] != "keyword_leaks"}
        for row in errors["counts"].to_pylist()
    ]


def results(*tables: pa.Table, **options: Any) -> dict[tuple[str, str], dict[str, Any]]:
    config = SummaryConfig(num_replicates=200, **options)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fewer than 10 speakers")
        rows = conform(config.build()(*tables, costs=Costs()), "results").to_pylist()
    return {(row["system"], row["metric"]): row | {"counts": dict(row["counts"])} for row in rows}


def brute_force(words: list[str], phrases: set[tuple[str, ...]]) -> Counter[tuple[str, ...]]:
    found: Counter[tuple[str, ...]] = Counter()
    at = 0
    while at < len(words):
        ends = [end for end in range(len(words), at, -1) if tuple(words[at:end]) in phrases]
        if ends:
            found[tuple(words[at : ends[0]])] += 1
        at = ends[0] if ends else at + 1
    return found


WORDS = st.lists(st.sampled_from("abc"), max_size=12)


@given(words=WORDS, phrases=st.sets(st.lists(st.sampled_from("abc"), min_size=1, max_size=4).map(tuple), max_size=8))
@settings(max_examples=300, deadline=None)
def test_matches_are_leftmost_longest_and_do_not_overlap(words: list[str], phrases: set[tuple[str, ...]]) -> None:
    ordered = sorted(phrases)
    half = [PhraseTrie(ordered[::2]), PhraseTrie(ordered[1::2])]
    assert find_phrases(words, half) == brute_force(words, phrases)


def test_truth_is_a_multiset_and_every_other_phrase_written_is_a_false_positive() -> None:
    table = utterances([("a latte and a latte with oat milk", ["latte", "oat milk", "decaf"])])
    (found,) = counted(KeywordCountsConfig(), table, transcripts(["a latte latte latte with goat milk decaf"]))
    # latte is true twice and written three times, oat milk is missed, decaf is listed and written
    assert found == {"keyword": (3, 1, 1), "distractor_false_alarms": (0, 0, 0)}


def test_an_utterance_without_transcript_is_scored_by_its_keywords_alone() -> None:
    table = utterances([(None, ["latte", "oat milk"]), (None, None), (None, [])])
    found = counted(KeywordCountsConfig(), table, transcripts(["latte LATTE", "latte", "latte"]))
    assert [row.get("keyword") for row in found] == [(1, 1, 1), None, (0, 0, 0)]


def test_a_failed_utterance_finds_nothing() -> None:
    found = counted(KeywordCountsConfig(), utterances([("latte", ["latte"])]), transcripts(["latte"], ["audio"]))
    assert found[0]["keyword"] == (0, 1, 0)


def test_a_perfect_transcript_has_no_error_whatever_the_catalogue(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("New York Times\nplease\nYork\n")
    table = utterances([("please read the New York Times in New York", ["New York"])])
    config = KeywordCountsConfig(catalogue=str(tmp_path / "list.txt"))
    (found,) = counted(config, table, transcripts(["please read the new york times in new york"]))
    assert found == {"keyword": (1, 0, 0), "distractor_false_alarms": (0, 0, 0)}
    shadowed = utterances([("read the New York Times", ["New York"])])
    assert counted(config, shadowed, transcripts(["read the new york times"]))[0]["keyword"] == (0, 0, 0)


def test_false_alarms_of_distractors_are_counted_apart(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("zorp\nblimfax\nquent\n")
    table = utterances([("call zorp", ["zorp"]), ("call quent", ["quent"])])
    config = KeywordCountsConfig(catalogue=str(tmp_path / "list.txt"))
    heard = transcripts(["call zorp zorp blimfax", "call blimfax"])
    assert counted(config, table, heard) == [
        {"keyword": (1, 0, 2), "distractor_false_alarms": (0, 0, 1)},
        {"keyword": (0, 1, 1), "distractor_false_alarms": (0, 0, 1)},
    ]
    rows = {row["phrase"]: row for row in phrase_table(config, table, heard)}
    assert (rows["zorp"]["recall"], rows["zorp"]["precision"]) == (1.0, 0.5)
    assert (rows["blimfax"]["recall"], rows["blimfax"]["precision"], rows["blimfax"]["f1"]) == (None, 0.0, 0.0)


def test_a_nested_list_raises_alarms_for_its_own_phrases_only(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("".join(f"name{c}\n" for c in "abcdefgh"))
    order = [phrase for phrase in load(str(path)).phrases]
    table = utterances([("x", [order[1]])])
    heard = transcripts([" ".join(order)])
    alarms = []
    for size in (0, 1, 3, 7):
        context = ContextConfig(catalogue=str(path), num_distractors=size, true_keywords=True)
        lists = context.build()(table, costs=Costs())
        (found,) = counted(KeywordCountsConfig(catalogue=str(path)), table, heard, lists)
        alarms.append(found["distractor_false_alarms"][2])
        assert found["keyword"][:2] == (1, 0)
    assert alarms == [0, 1, 3, 7]
    with pytest.raises(ContractError, match="stage was given none"):
        counted(KeywordCountsConfig(), table, heard, lists)


def test_phrases_of_an_own_list_raise_alarms(tmp_path: Path) -> None:
    (tmp_path / "lists.json").write_text('{"u0": ["blim fax", "zorp"]}')
    table = utterances([("call zorp", ["zorp"])])
    lists = ContextConfig(lists=str(tmp_path / "lists.json")).build()(table, costs=Costs())
    (found,) = counted(KeywordCountsConfig(), table, transcripts(["Blim FAX quent"]), lists)
    assert found == {"keyword": (0, 1, 1), "distractor_false_alarms": (0, 0, 1)}


def test_results_are_micro_averaged_with_intervals_and_paired_differences() -> None:
    rows = [("call zorp", ["zorp"]) if i % 2 else ("call quent now", ["quent"]) for i in range(40)]
    table = utterances(rows)
    first = transcripts(["call sorp" if i % 2 else "call quent now" for i in range(40)])
    second = transcripts(["call zorp" if i % 4 else "call quent zorp" for i in range(40)])
    config = KeywordCountsConfig()
    errors = [config.build()(table, heard, costs=Costs()) for heard in (first, second)]
    found = results(table, *errors, systems=("first_pass", "boosted"))
    base, boosted = found["first_pass", "keyword_recall"], found["boosted", "keyword_recall"]
    assert (base["value"], base["counts"]["true_positives"], base["counts"]["false_negatives"]) == (0.5, 20, 20)
    assert boosted["value"] == 30 / 40
    assert boosted["delta"] == 0.25
    assert boosted["probability_of_improvement"] > 0.9
    assert boosted["p_value_matched_pairs"] is None
    hits, extra, missed = (boosted["counts"][n] for n in ("true_positives", "false_positives", "false_negatives"))
    assert found["boosted", "keyword_precision"]["value"] == hits / (hits + extra)
    assert found["boosted", "keyword_f1"]["value"] == 2 * hits / (2 * hits + extra + missed)
    assert base["ci_low"] < base["value"] < base["ci_high"]
    assert found["boosted", "distractor_false_alarms"]["value"] == 0


def test_the_number_of_false_alarms_is_a_total_with_an_interval(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("zorp\n")
    table = utterances([("call me", [])] * 30)
    heard = transcripts(["call zorp"] * 6 + ["call me"] * 24)
    errors = KeywordCountsConfig(catalogue=str(tmp_path / "list.txt")).build()(table, heard, costs=Costs())
    row = results(table, errors, systems=("first_pass",))["first_pass", "distractor_false_alarms"]
    assert (row["value"], row["counts"]["false_alarms"], row["num_utterances"]) == (6, 6, 30)
    assert 1 <= row["ci_low"] < 6 < row["ci_high"] <= 14
    assert ("first_pass", "keyword_recall") in results(table, errors, systems=("first_pass",))


def test_an_utterance_that_a_system_leaves_out_misses_its_phrases() -> None:
    table = utterances([("call zorp", ["zorp"]), ("call quent", ["quent", "?!"])])
    errors = KeywordCountsConfig().build()(table, transcripts(["call zorp", "call quent"]), costs=Costs())
    row = results(table, errors.slice(0, 1), systems=("first_pass",))["first_pass", "keyword_recall"]
    assert (row["value"], row["counts"]["missing_utterances"]) == (0.5, 1)


def test_a_corpus_without_keywords_has_no_keyword_rows() -> None:
    table = utterances([("call zorp", None)])
    errors = KeywordCountsConfig().build()(table, transcripts(["call zorp"]), costs=Costs())
    assert results(table, errors, systems=("first_pass",)) == {}


def test_a_list_of_50000_phrases_costs_no_more_than_one_of_50() -> None:
    """Look-ups per word, counted in processor seconds: no term grows with the list."""
    names = [
        "".join(letters) for letters in itertools.product("bdfgklmnprstvz", "aeiou", "bdfgklmnprst", "aeiou", "lnr")
    ]
    texts = [" ".join(names[(7 * i + k) % len(names)] for k in range(12)) for i in range(2000)]
    seconds = []
    for size in (50, 50_000):
        phrases = [f"{a} {b}" for a, b in zip(itertools.cycle(names), names[: size // 4] * 5, strict=False)][:size]
        counter = KeywordCounter(catalogue(phrases, "none"), "none")
        best = 9.0
        for _ in range(3):
            start = time.process_time()
            for text in texts:
                counter.count(text, text, [])
            best = min(best, time.process_time() - start)
        seconds.append(best)
    assert seconds[1] < 3 * seconds[0] + 0.1
