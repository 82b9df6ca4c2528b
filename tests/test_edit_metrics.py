"""Harmful and helpful edits, the gap to the oracle, and the compositional oracle against brute force."""

import itertools
import warnings
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein

from ctxasr_ray import align
from ctxasr_ray.metrics.compositional_oracle import CompositionalOracleConfig, slots
from ctxasr_ray.metrics.edits import EditCountsConfig
from ctxasr_ray.metrics.error_rate import ErrorCountsConfig
from ctxasr_ray.metrics.nbest_errors import NbestErrorsConfig
from ctxasr_ray.metrics.oracle import OracleConfig
from ctxasr_ray.metrics.summary import SummaryConfig
from ctxasr_ray.nbest import Hypothesis, NBest, hypotheses_table
from ctxasr_ray.schema import TRANSCRIPTS, UTTERANCES, conform
from ctxasr_ray.stage import Costs, StageConfig


def utterances(references: list[str | None]) -> pa.Table:
    default = {"corpus": "c", "split": "test", "audio_uri": "a.wav", "start_s": 0.0}
    rows = [default | {"utterance_id": f"u{i}", "reference": reference} for i, reference in enumerate(references)]
    return conform(pa.Table.from_pylist(rows, schema=UTTERANCES), "utterances")


def transcripts(texts: list[str]) -> pa.Table:
    rows = [{"utterance_id": f"u{i}", "text": text, "words": [], "num_unscored": 0} for i, text in enumerate(texts)]
    return conform(pa.Table.from_pylist(rows, schema=TRANSCRIPTS), "transcripts")


def lists(texts: list[list[str]]) -> pa.Table:
    return hypotheses_table(
        [NBest(utterance_id=f"u{i}", hypotheses=[Hypothesis(text=t) for t in own]) for i, own in enumerate(texts)]
    )


def run(config: StageConfig, *tables: pa.Table) -> pa.Table:
    return conform(config.build()(*tables, costs=Costs()), config.WRITES)


def sdi(errors: pa.Table, row: int = 0) -> tuple[int, int, int]:
    (entry,) = errors["counts"][row].as_py()
    return entry["substitutions"], entry["deletions"], entry["insertions"]


def results(config: SummaryConfig, *tables: pa.Table) -> dict[tuple[str, str], dict[str, Any]]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fewer than 10 speakers")
        rows = run(config, *tables).to_pylist()
    return {(row["system"], row["metric"]): row | {"counts": dict(row["counts"])} for row in rows}


def test_words_are_spoiled_or_repaired_one_by_one() -> None:
    table = utterances(["call the zorp now", None])
    errors = run(EditCountsConfig(), table, transcripts(["call a sorp now", "x"]), transcripts(["all a zorp now", "y"]))
    harmful, helpful = errors["counts"][0].as_py()
    assert (harmful["metric"], harmful["hits"], harmful["substitutions"]) == ("harmful_edits", 1, 1)  # now, call
    assert (helpful["metric"], helpful["hits"], helpful["substitutions"]) == ("helpful_edits", 1, 1)  # zorp, the
    assert errors["counts"][1].as_py() == []
    found = results(SummaryConfig(systems=("first_pass",), num_replicates=20), table, errors)
    assert found["first_pass", "harmful_edits"]["value"] == 0.5
    assert found["first_pass", "helpful_edits"]["value"] == 0.5
    assert found["first_pass", "harmful_edits"]["counts"]["words"] == 2


def test_a_system_that_changes_nothing_edits_nothing() -> None:
    table, same = utterances(["a b c"]), transcripts(["a x c"])
    found = run(EditCountsConfig(), table, same, same)["counts"][0].as_py()
    assert [(entry["hits"], entry["substitutions"]) for entry in found] == [(2, 0), (0, 1)]


def test_the_gap_to_the_oracle_is_closed_by_the_share_of_repaired_words() -> None:
    table = utterances(["a b c d"] * 12)
    texts = {"first_pass": "x y z d", "rescored": "x y c d", "oracle": "x b c d"}
    errors = [run(ErrorCountsConfig(metrics=("wer",)), table, transcripts([t] * 12)) for t in texts.values()]
    config = SummaryConfig(systems=tuple(texts), gaps={"rescored": ("first_pass", "oracle")}, num_replicates=50)
    row = results(config, table, *errors)["rescored", "oracle_gap_closed"]
    assert (row["value"], row["counts"]) == (0.5, {"repaired": 12, "possible": 24})
    equal = SummaryConfig(systems=("first_pass", "rescored"), gaps={"rescored": ("first_pass",) * 2}, num_replicates=5)
    assert ("rescored", "oracle_gap_closed") not in results(equal, table, *errors[:2])
    with pytest.raises(ValueError, match=r"gaps: \['nobody'\] are not among systems"):
        SummaryConfig(systems=("first_pass",), gaps={"nobody": ("first_pass",) * 2}).build()


def test_the_compositional_oracle_takes_each_word_from_another_hypothesis() -> None:
    table = utterances(["call zorp in lima now", "a b", "c", None])
    given = lists([["all zorp in lima", "call sorp in lima", "all sorp in lima now"], [], ["d"], ["x"]])
    errors = run(CompositionalOracleConfig(), given, table)
    assert [sdi(errors, row) for row in range(3)] == [(0, 0, 0), (0, 2, 0), (1, 0, 0)]
    assert errors["counts"][3].as_py() == []
    (entry,) = errors["counts"][0].as_py()
    assert (entry["hits"], entry["reference_length"]) == (5, 5)


WORDS = st.lists(st.sampled_from("abc"), max_size=4).map(" ".join)


@given(reference=WORDS, texts=st.lists(WORDS, max_size=3))
@settings(max_examples=150, deadline=None)
def test_the_compositional_oracle_equals_the_best_of_all_paths(reference: str, texts: list[str]) -> None:
    config = CompositionalOracleConfig(normaliser="none")
    found = sdi(run(config, lists([texts]), utterances([reference])))
    references, heard = align.encode("word", [reference], texts)
    choices = [[*words, *([""] if may_be_empty else [])] for words, may_be_empty in slots(heard.strings())]
    paths = ["".join(path) for path in itertools.product(*choices)]
    assert sum(found) == min(Levenshtein.distance(references.string(0), path) for path in paths)
    _, deletions, insertions = found
    num_words = len(references.string(0)) - deletions + insertions
    assert any(
        len(path) == num_words and Levenshtein.distance(references.string(0), path) == sum(found) for path in paths
    )
    assert set(heard.strings()) <= set(paths)


@given(rows=st.lists(st.tuples(WORDS, st.lists(WORDS, max_size=5)), min_size=1, max_size=4))
@settings(max_examples=50, deadline=None)
def test_the_compositional_oracle_is_never_worse_than_the_oracle(rows: list[tuple[str, list[str]]]) -> None:
    table, given = utterances([r for r, _ in rows]), lists([texts for _, texts in rows])
    counts = NbestErrorsConfig(normaliser="none", classes=(("word", "all"),))
    whole = run(OracleConfig(), run(counts, given, table))
    slotwise = run(CompositionalOracleConfig(normaliser="none"), given, table)
    for row in range(len(rows)):
        assert sum(sdi(slotwise, row)) <= sum(sdi(whole, row))
    part = run(CompositionalOracleConfig(normaliser="none"), given.slice(1), table.slice(1))
    assert part.equals(slotwise.slice(1))
