"""Somebody else's N-best lists come in as they are, or are refused; formats on small documented examples."""

import gzip
import json
import math
import pickle
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from real import real

from ctxasr_ray.candidates.union import UnionConfig
from ctxasr_ray.cli import main
from ctxasr_ray.corpora.lines import ManifestError
from ctxasr_ray.first_pass.imported import ImportedConfig
from ctxasr_ray.fusion.log_linear import LogLinearConfig
from ctxasr_ray.metrics.counts import read_errors
from ctxasr_ray.metrics.error_rate import ErrorCountsConfig
from ctxasr_ray.metrics.nbest_errors import NbestErrorsConfig
from ctxasr_ray.metrics.oracle import OracleConfig
from ctxasr_ray.metrics.transcript_files import read_hypotheses, read_references
from ctxasr_ray.nbest import Hypothesis, NBest, Score, hypotheses_table, read_nbest, score_matrix
from ctxasr_ray.pipeline import add_corpus
from ctxasr_ray.recipes.evaluation import ctc
from ctxasr_ray.schema import ContractError, conform
from ctxasr_ray.stage import Costs
from ctxasr_ray.storage.store import Store

OPAQUE = {"score_kinds": {"score": "opaque"}}
NATURAL = {"score_kinds": {"score": "log_prob"}, "log_base": "e", "eos": "included"}


def utterances(*ids: str, references: dict[str, str] | None = None) -> pa.Table:
    rows = [
        {
            "utterance_id": i,
            "corpus": "c",
            "split": "test",
            "audio_uri": f"{i}.wav",
            "start_s": 0.0,
            "reference": (references or {}).get(i),
        }
        for i in ids
    ]
    return conform(pa.Table.from_pylist(rows), "utterances")


def write(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    return str(path)


def imported(config: ImportedConfig, *ids: str) -> list[NBest]:
    return read_nbest(config.build()(utterances(*ids).select(["utterance_id"]), costs=Costs()))


def texts(nbest: NBest) -> list[str]:
    return [h.text for h in nbest.hypotheses]


def values(nbest: NBest, source: str = "imported") -> list[float]:
    return [next(s.log_prob for s in h.scores if s.source == source) for h in nbest.hypotheses]


def espnet(folder: Path) -> str:
    write(folder / "logdir/output.1/1best_recog/text", "u1 hello world\n")
    write(folder / "logdir/output.1/1best_recog/score", "u1 tensor(-1.5)\n")
    write(folder / "logdir/output.1/2best_recog/text", "u1 hello word\n")
    write(folder / "logdir/output.1/2best_recog/score", "u1 tensor(-2.25, device='cuda:0')\n")
    write(folder / "logdir/output.2/1best_recog/text", "u2\n")
    write(folder / "logdir/output.2/1best_recog/score", "u2 -0.5\n")
    write(folder / "logdir/output.2/2best_recog/text", "")
    write(folder / "logdir/output.2/2best_recog/score", "")
    return str(folder)


def test_espnet_directories_of_parallel_jobs_are_one_set_of_ragged_lists(tmp_path: Path) -> None:
    one, two = imported(ImportedConfig(paths=(espnet(tmp_path),), format="espnet", **OPAQUE), "u1", "u2")
    assert texts(one) == ["hello world", "hello word"]
    assert values(one) == [-1.5, -2.25]
    assert texts(two) == [""], "an empty hypothesis is the empty string"
    assert {h.origin for h in one.hypotheses} == {"imported"}
    assert one.hypotheses[0].token_ids is None


def test_espnet_text_without_score_and_rank_without_the_one_above_are_named(tmp_path: Path) -> None:
    config = ImportedConfig(paths=(espnet(tmp_path),), format="espnet", **OPAQUE)
    score = tmp_path / "logdir/output.1/2best_recog/score"
    score.write_text("other -1\n")
    with pytest.raises(ManifestError, match=r"2best_recog/score: has no line for 'u1'; a missing score is not 0"):
        config.build()
    score.write_text("u1 -1\nu3 -2\n")
    score.with_name("text").write_text("u1 a\nu3 b\n")
    with pytest.raises(ManifestError, match="'u3' has rank 2 and no rank 1"):
        config.build()


def nemo_lines(*ids: str) -> str:
    return "".join(json.dumps({"audio_filepath": f"{i}.wav", "duration": 1.0}) + "\n" for i in ids)


def test_nemo_beams_as_tsv_take_their_ids_from_the_declared_manifest(tmp_path: Path) -> None:
    beams = write(tmp_path / "beams.tsv", "a b\t-1.0\na\ttensor(-2.)\n\t-0.5\nc\t-3\n")
    manifest = write(tmp_path / "m.jsonl", nemo_lines("u1", "u2"))
    config = ImportedConfig(paths=(beams,), format="nemo_tsv", ids_path=manifest, rows_per_utterance=2, **OPAQUE)
    two, one = imported(config, "u2", "u1")
    assert (texts(one), texts(two)) == (["a b", "a"], ["", "c"])
    assert values(two) == [-0.5, -3.0]


def test_nemo_beams_that_would_shift_against_the_manifest_are_refused(tmp_path: Path) -> None:
    beams = write(tmp_path / "beams.tsv", "a\t-1\nb\t-2\nc\t-3\n")
    ids = write(tmp_path / "ids", "u1\nu2\n")
    config = ImportedConfig(paths=(beams,), format="nemo_tsv", ids_path=ids, rows_per_utterance=2, **OPAQUE)
    with pytest.raises(ManifestError, match=r"has 3 rows, expected 2 utterances .* x 2 rows each"):
        config.build()
    with pytest.raises(ValueError, match="names no utterance; set ids_path"):
        ImportedConfig(paths=(beams,), format="nemo_tsv", rows_per_utterance=2, **OPAQUE)


def test_nemo_manifests_with_beams_are_named_as_the_corpus_names_them(tmp_path: Path) -> None:
    lines = [
        {"audio_filepath": "a/x.wav", "offset": 1.5, "duration": 1, "beams": [["hi you", -1.0], ["hi", -2]]},
        {"audio_filepath": "y.wav", "utterance_id": "why", "duration": 1, "beams": [[-3.5, "nan"]]},
    ]
    path = write(tmp_path / "m.json", "".join(json.dumps(line) + "\n" for line in lines))
    config = ImportedConfig(paths=(path,), format="nemo_manifest", **OPAQUE)
    first, second = imported(config, "a/x@1.500", "why")
    assert (texts(first), values(first)) == (["hi you", "hi"], [-1.0, -2.0])
    assert (texts(second), values(second)) == (["nan"], [-3.5]), "nan as a word is a word"
    write(tmp_path / "m.json", json.dumps({"audio_filepath": "y.wav", "beams": [["a", "b"]]}))
    with pytest.raises(ManifestError, match="line 1, column 'beams'"):
        config.build()


def test_random_duplicates_as_padding_stay_rows_and_hyporadise_needs_declared_ids(tmp_path: Path) -> None:
    entries = [{"input": ["a b", "a c", "a b"], "output": "a b"}, {"input": ["x"], "output": "y"}]
    path = write(tmp_path / "h.json", json.dumps(entries))
    ids = write(tmp_path / "text", "u2 some words\nu1\n")
    first, second = imported(ImportedConfig(paths=(path,), format="hyporadise", ids_path=ids), "u1", "u2")
    assert texts(second) == ["a b", "a c", "a b"]
    assert texts(first) == ["x"]
    assert first.hypotheses[0].scores == ()
    with pytest.raises(ManifestError, match=r"names no utterance; say by `ids_path`"):
        ImportedConfig(paths=(path,), format="hyporadise").build()
    write(tmp_path / "text", "u2\n")
    with pytest.raises(ManifestError, match="has 2 entries, but the file that names them has 1"):
        ImportedConfig(paths=(path,), format="hyporadise", ids_path=ids).build()
    named = write(tmp_path / "n.json", json.dumps([{**e, "utterance_id": f"n{i}"} for i, e in enumerate(entries)]))
    assert texts(imported(ImportedConfig(paths=(named,), format="hyporadise"), "n1")[0]) == ["x"]


def mlm(tmp_path: Path) -> str:
    entry = {"hyp_10": {"score": -9.0, "text": "ten"}, "hyp_2": {"score": -2.0, "text": "two"}, "ref": "one"}
    return write(tmp_path / "n.am.json", json.dumps({"u1": {"hyp_1": {"score": -1, "text": "one"}, **entry}}, indent=2))


def test_mlm_scoring_ranks_count_as_numbers_and_keys_that_stand_twice_are_refused(tmp_path: Path) -> None:
    config = ImportedConfig(paths=(mlm(tmp_path),), format="mlm_scoring", **NATURAL)
    assert texts(imported(config, "u1")[0]) == ["one", "two", "ten"]
    assert values(imported(config, "u1")[0]) == [-1.0, -2.0, -9.0]
    write(tmp_path / "n.am.json", '{"u1": {"ref": "a"}, "u1": {"ref": "b"}}')
    with pytest.raises(ManifestError, match="'u1' stands twice"):
        config.build()


def srilm(folder: Path) -> str:
    write(folder / "u1.nbest", "-100.5 -4.0 2 <s> hello world </s>\n-101 -3.5 1 hello\n")
    (folder / "u2.gz").write_bytes(gzip.compress(b"-7 -1 0\n"))
    write(folder / "u3", "")
    return str(folder)


def test_natural_log_and_log10_come_in_as_nats_and_acoustic_scores_stay_apart(tmp_path: Path) -> None:
    config = ImportedConfig(
        paths=(srilm(tmp_path),),
        format="srilm",
        score_kinds={"acoustic": "opaque", "lm": "log_prob"},
        log_base="10",
        eos="included",
        source="decipher",
    )
    one, two, three = imported(config, "u1", "u2", "u3")
    assert texts(one) == ["hello world", "hello"]
    assert values(one, "decipher_acoustic") == [-100.5, -101.0]
    assert values(one, "decipher_lm") == pytest.approx([-4.0 * math.log(10), -3.5 * math.log(10)])
    assert [s.kind for s in one.hypotheses[0].scores] == ["opaque", "log_prob"]
    assert texts(two) == [""]
    assert (texts(three), three.error) == ([], None)


def test_transcripts_of_several_systems_are_one_list_in_the_order_of_the_files(tmp_path: Path) -> None:
    first = write(tmp_path / "a.trn", "hello world (spk-u1)\n(spk-u2)\n")
    second = write(tmp_path / "b.trn", "hello word (spk-u1)\n")
    one, two = imported(ImportedConfig(paths=(first, second), format="trn"), "spk-u1", "spk-u2")
    assert (texts(one), texts(two)) == (["hello world", "hello word"], [""])
    kaldi = write(tmp_path / "text", "spk-u1 hello  there\nspk-u2\n")
    assert texts(imported(ImportedConfig(paths=(kaldi,), format="kaldi"), "spk-u1")[0]) == ["hello  there"]


def test_missing_ids_keep_their_row_and_extra_ids_are_named(tmp_path: Path) -> None:
    config = ImportedConfig(paths=(mlm(tmp_path),), format="mlm_scoring", **NATURAL)
    costs = Costs()
    table = config.build()(utterances("u0", "u1").select(["utterance_id"]), costs=costs)
    missing, found = read_nbest(table)
    assert (missing.hypotheses, missing.error_type) == ((), "text")
    assert "no list of this utterance in" in str(missing.error)
    assert "n.am.json (mlm_scoring)" in str(missing.error)
    assert found.error is None
    assert costs.counters["missing_lists"] == 1
    config.refuse_other_corpus(["u0", "u1"])
    with pytest.raises(ValueError, match=r"1 lists are of utterances that the corpus does not have: 'u1'"):
        config.refuse_other_corpus(["u0", "u2"])


def test_a_missing_list_counts_as_deletions(tmp_path: Path) -> None:
    path = write(tmp_path / "text", "u1 a b\n")
    table = utterances("u0", "u1", references={"u0": "x y z", "u1": "a c"})
    lists = ImportedConfig(paths=(path,), format="kaldi").build()(table.select(["utterance_id"]), costs=Costs())
    transcripts = LogLinearConfig().build()(lists, costs=Costs())
    errors = ErrorCountsConfig(normaliser="none").build()(table, transcripts, costs=Costs())
    counts = next(c.counts for c in read_errors(errors) if c.metric == "wer")
    assert (counts.deletions.tolist(), counts.substitutions.tolist()) == ([3, 0], [0, 1])


def test_a_run_refuses_lists_of_another_utterance_set_before_any_work(tmp_path: Path) -> None:
    path = write(tmp_path / "text", "u1 a b\nu7 c\n")
    experiment = replace(ctc(), first_pass=ImportedConfig(paths=(path,), format="kaldi"))
    with pytest.raises(ValueError, match="1 lists are of utterances that the corpus does not have: 'u7'"):
        add_corpus(experiment, Store(tmp_path / "run"), utterances("u0", "u1"))


def test_one_command_evaluates_somebody_elses_lists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = write(tmp_path / "m.jsonl", json.dumps({"audio_filepath": "u1.wav", "duration": 1.0, "text": "two"}))
    words = ["evaluate", "imported", "--manifest", manifest, "--root", str(tmp_path / "run"), "--json"]
    words += ["--executor", "inline", "--normaliser", "none", "--num-replicates", "20"]
    words += ["--first-pass.paths", mlm(tmp_path), "--first-pass.format", "mlm_scoring"]
    with pytest.raises(SystemExit):
        main([*words, "--first-pass.score-kinds", "score", "log_prob", "--first-pass.log-base", "e"])
    assert "eos is None" in capsys.readouterr().err
    assert main([*words, "--first-pass.score-kinds", "score", "opaque"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    found = {(row["system"], row["metric"]): row["value"] for row in rows}
    assert (found["first_pass", "wer"], found["oracle", "wer"]) == (1.0, 0.0)


def test_an_id_that_stands_twice_is_refused_where_scores_would_mix(tmp_path: Path) -> None:
    config = ImportedConfig(paths=(mlm(tmp_path / "a"), mlm(tmp_path / "b")), format="mlm_scoring", **NATURAL)
    with pytest.raises(ManifestError, match=r"'u1' has a list in .*a/n.am.json, 'u1' already.*joined by a union"):
        config.build()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "score_kinds is {}. Say of each what it is"),
        ({"score_kinds": {"score": "probability"}}, "Say of each what it is: log_prob, opaque, search"),
        ({"score_kinds": {"score": "log_prob"}}, "log_base is None"),
        ({"score_kinds": {"score": "log_prob"}, "log_base": "2", "eos": "included"}, "log_base is '2'"),
        ({"score_kinds": {"score": "log_prob"}, "log_base": "e"}, "eos is None"),
        ({"score_kinds": {"score": "opaque"}, "log_base": "e"}, "no number is declared log_prob"),
        ({**OPAQUE, "format": "lattice"}, "format 'lattice' is unknown; choose one of espnet"),
        ({**OPAQUE, "paths": ()}, "paths is empty"),
        ({**OPAQUE, "ids_path": "x"}, "ids_path is given"),
        ({**OPAQUE, "rows_per_utterance": 2}, "rows_per_utterance is 2"),
    ],
)
def test_scores_of_unknown_base_and_other_undeclared_things_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match="imported") as caught:
        ImportedConfig(**{"paths": ("x",), "format": "mlm_scoring", **fields})
    assert message in str(caught.value)


@pytest.mark.parametrize("bad", ["NaN", "-Infinity", '"-inf"', "null", "true", "1e999"])
def test_a_score_that_is_no_number_is_refused_and_never_zero(tmp_path: Path, bad: str) -> None:
    path = write(tmp_path / "n.json", f'{{"u1": {{"hyp_1": {{"score": {bad}, "text": "a"}}}}}}')
    with pytest.raises(ManifestError, match="leave out a hypothesis that has no score"):
        ImportedConfig(paths=(path,), format="mlm_scoring", **OPAQUE).build()


def test_a_positive_log_prob_is_refused_and_an_opaque_number_stays_as_it_is(tmp_path: Path) -> None:
    path = write(tmp_path / "n.json", '{"u1": {"hyp_1": {"score": 4.5, "text": "a"}}}')
    with pytest.raises(ManifestError, match=r"is 4\.5, above 0, and declared log_prob"):
        ImportedConfig(paths=(path,), format="mlm_scoring", **NATURAL).build()
    assert values(imported(ImportedConfig(paths=(path,), format="mlm_scoring", **OPAQUE), "u1")[0]) == [4.5]
    record = ImportedConfig(paths=(path,), format="mlm_scoring", score_kinds={"score": "search"}).build()
    table = record(utterances("u1").select(["utterance_id"]), costs=Costs())
    assert score_matrix(table).sources == [], "a record is never weighted"


@pytest.mark.parametrize(
    ("form", "content", "message"),
    [
        ("mlm_scoring", "[]", "expected an object"),
        ("mlm_scoring", '{"u": 3}', "expected hyp_N with a score and a text"),
        ("mlm_scoring", '{"u": {"hyp_1": {"text": "a"}}}', "column 'u.hyp_1.score': got 'None'"),
        ("mlm_scoring", '{"u": \n {"hyp_1": ', "line 2, column 12: broken JSON"),
        ("mlm_scoring", '{"u": {"hyp_1": {"score": 1, "text": "\\ud800"}}}', "broken JSON"),
        ("mlm_scoring", "", "is empty"),
        ("hyporadise", '[{"output": "a", "utterance_id": "u"}]', "'input' is no list of texts"),
        ("hyporadise", '[{"input": [null], "utterance_id": "u"}]', "'input' is no list of texts"),
        ("nbest", '{"hypotheses": []}', "expected an object with utterance_id"),
        ("nbest", '{"utterance_id": "u", "hypotheses": [{"text": "a", "scores": [{}]}]}', "expected source, kind"),
        ("nbest", '{"utterance_id": "u", "hypotheses": [{"text": "a", "token_ids": "x"}]}', "'token_ids': expected a"),
        ("nbest", '{"utterance_id": "u", "hypotheses": [{"text": "a", "token_ids": [null]}]}', "got 'None'"),
        ("nbest", '{"utterance_id": "u", "error_type": "odd"}', "column 'error_type': expected one of audio"),
        ("nbest", '{"utterance_id": "u", "hypotheses": [{"words": "a"}]}', "expected text, scores"),
        ("kaldi", "u1 a\nu1 b\n", "'u1' stands in line 1 already"),
        ("trn", "no id\n", "does not end with an id in parentheses"),
    ],
)
def test_broken_lists_are_refused_with_their_place(tmp_path: Path, form: str, content: str, message: str) -> None:
    path = write(tmp_path / "lists.json", content)
    declared = OPAQUE if form == "mlm_scoring" else {}
    with pytest.raises(ManifestError) as caught:
        ImportedConfig(paths=(path,), format=form, **declared).build()
    assert path in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize("form", ["espnet", "srilm"])
def test_a_folder_without_lists_and_a_path_that_is_not_there_are_refused(tmp_path: Path, form: str) -> None:
    kinds = {"score": "opaque"} if form == "espnet" else {"acoustic": "opaque", "lm": "opaque"}
    config = ImportedConfig(paths=(str(tmp_path),), format=form, score_kinds=kinds)
    with pytest.raises(ManifestError, match=r"is no folder|holds no folder"):
        config.build()
    with pytest.raises(ValueError, match="does not exist"):
        ImportedConfig(paths=(str(tmp_path / "none"),), format=form, score_kinds=kinds).fingerprint()


def test_lists_may_lie_behind_a_url() -> None:
    with fsspec.open("memory://lists/text", "wb") as stream:
        stream.write(b"u1 hello\n")
    config = ImportedConfig(paths=("memory://lists/text",), format="kaldi")
    assert texts(imported(config, "u1")[0]) == ["hello"]
    before = config.fingerprint()
    with fsspec.open("memory://lists/text", "wb") as stream:
        stream.write(b"u1 hallo\n")
    assert config.fingerprint() != before


def test_a_changed_list_changes_the_fingerprint_and_another_place_does_not(tmp_path: Path) -> None:
    prints = [
        ImportedConfig(paths=(espnet(tmp_path / name),), format="espnet", **OPAQUE).fingerprint() for name in "ab"
    ]
    assert prints[0] == prints[1]
    write(tmp_path / "a/logdir/output.1/1best_recog/score", "u1 -1.25\n")
    config = ImportedConfig(paths=(str(tmp_path / "a"),), format="espnet", **OPAQUE)
    assert config.fingerprint() != prints[0]


def test_a_refusal_travels_between_processes_as_it_is() -> None:
    error = ManifestError("lists.json", "is odd", 3, "score")
    assert str(pickle.loads(pickle.dumps(error))) == str(error) == "lists.json, line 3, column 'score': is odd"


# union


def nbest(utterance_id: str, source: str, *pairs: tuple[str, float]) -> NBest:
    return NBest(
        utterance_id=utterance_id,
        hypotheses=[
            Hypothesis(
                text=text,
                scores=[Score(source=source, kind="log_prob", log_prob=score)],
                token_ids=[1] if source == "b" else None,
                search_score=score,
            )
            for text, score in pairs
        ],
    )


def joined(*systems: list[NBest], own_scores: str = "keep", costs: Costs | None = None) -> list[NBest]:
    config = UnionConfig(own_scores=own_scores)
    return read_nbest(config.build()(*(hypotheses_table(s) for s in systems), costs=costs or Costs()))


def test_union_goes_round_by_rank_and_keeps_scores_of_all_systems_side_by_side() -> None:
    costs = Costs()
    (one,) = joined(
        [nbest("u", "a", ("x", -1.0), ("y", -2.0), ("x", -3.0))],
        [nbest("u", "b", ("z", -4.0), ("x", -5.0), ("w", -6.0))],
        costs=costs,
    )
    assert texts(one) == ["x", "z", "y", "w"]
    first = one.hypotheses[0]
    assert [(s.source, s.log_prob) for s in first.scores] == [("a", -1.0), ("b", -5.0)]
    assert first.token_ids == [1], "tokens come from the first system that has them"
    assert first.search_score == -1.0
    assert {h.origin for h in one.hypotheses} == {"union"}
    assert costs.counters["merged"] == 2


def test_one_system_failing_does_not_lose_the_others() -> None:
    failed = NBest(utterance_id="u", error_type="audio", error="truncated")
    (one,) = joined([failed], [nbest("u", "b", ("z", -4.0))])
    assert (texts(one), one.error) == (["z"], None)
    (one,) = joined([failed], [NBest(utterance_id="u", error_type="text", error="no list")])
    assert (one.hypotheses, one.error_type, one.error) == ((), "audio", "truncated; no list")
    (one,) = joined([failed], [NBest(utterance_id="u")])
    assert (one.hypotheses, one.error_type) == ((), None), "an empty list is an answer, not a failure"


def test_union_refuses_a_source_in_two_systems_other_utterances_and_a_single_table() -> None:
    with pytest.raises(ContractError, match="source 'a' stands in inputs 0 and 1"):
        joined([nbest("u", "a", ("x", -1.0))], [nbest("u", "a", ("y", -1.0))])
    with pytest.raises(ContractError, match="ids differ"):
        joined([nbest("u", "a", ("x", -1.0))], [nbest("v", "b", ("y", -1.0))])
    with pytest.raises(ValueError, match="expected at least 2"):
        joined([nbest("u", "a", ("x", -1.0))])
    with pytest.raises(ValueError, match="own_scores is 'drop'"):
        UnionConfig(own_scores="drop")


def test_recorded_own_scores_leave_their_names_to_forced_scorers() -> None:
    table = hypotheses_table(
        joined([nbest("u", "a", ("x", -1.0))], [nbest("u", "b", ("y", -2.0))], own_scores="record")
    )
    assert score_matrix(table).sources == []
    kept = hypotheses_table(joined([nbest("u", "a", ("x", -1.0))], [nbest("u", "b", ("y", -2.0))]))
    np.testing.assert_array_equal(score_matrix(kept).values, [[-1.0, np.nan], [np.nan, -2.0]])


LISTS = st.lists(st.lists(st.sampled_from("abcdef"), max_size=6), min_size=2, max_size=4)


@settings(max_examples=60, deadline=None)
@given(LISTS)
def test_union_holds_every_text_once_no_lower_than_its_best_rank_allows(lists: list[list[str]]) -> None:
    systems = [[nbest("u", f"s{i}", *((t, -float(r)) for r, t in enumerate(own)))] for i, own in enumerate(lists)]
    (one,) = joined(*systems)
    found = texts(one)
    assert sorted(found) == sorted({t for own in lists for t in own})
    for text in found:
        best = min(own.index(text) for own in lists if text in own)
        assert found.index(text) < len(lists) * (best + 1)
    for hypothesis in one.hypotheses:
        said_by = {f"s{i}": float(-own.index(hypothesis.text)) for i, own in enumerate(lists) if hypothesis.text in own}
        assert {s.source: s.log_prob for s in hypothesis.scores} == said_by


def edits(reference: list[str], hypothesis: list[str]) -> int:
    """Levenshtein distance as the textbook has it."""
    row = list(range(len(hypothesis) + 1))
    for i, a in enumerate(reference, 1):
        diagonal, row[0] = row[0], i
        for j, b in enumerate(hypothesis, 1):
            diagonal, row[j] = row[j], min(diagonal + (a != b), row[j] + 1, row[j - 1] + 1)
    return row[-1]


def test_the_union_of_five_published_systems_gives_the_oracle_of_brute_force() -> None:
    reference_path = real("is21/ref/test-clean.biasing_100.tsv")
    spoken = read_references(reference_path, "is21")[:400]
    known = {s.utterance_id: s.text or "" for s in spoken}
    table = utterances(*known, references=known)
    files = sorted(real("is21/hyp").glob("*.tsv"))
    assert len(files) == 5
    configs = [ImportedConfig(paths=(str(path),), format="is21", source=path.name) for path in files]
    systems = [config.build()(table.select(["utterance_id"]), costs=Costs()) for config in configs]
    union = UnionConfig().build()(*systems, costs=Costs())
    errors = NbestErrorsConfig(normaliser="none").build()(union, table, costs=Costs())
    counts = read_errors(OracleConfig().build()(errors, costs=Costs()))
    word = next(c for c in counts if c.metric == "wer")
    heard = [read_hypotheses(path, "is21", ()) for path in files]
    brute = sum(min(edits(text.split(), own[i].split()) for own in heard) for i, text in known.items())
    assert int(word.counts.errors.sum()) == brute
    assert int(word.counts.reference_length.sum()) == sum(len(text.split()) for text in known.values())
    together = ImportedConfig(paths=tuple(str(path) for path in files), format="is21")
    rows = read_nbest(together.build()(table.select(["utterance_id"]), costs=Costs()))
    assert all(len(row.hypotheses) == 5 for row in rows)
    extra = read_references(reference_path, "is21")
    with pytest.raises(ValueError, match="are of utterances that the corpus does not have"):
        configs[0].refuse_other_corpus(known)
    configs[0].refuse_other_corpus([s.utterance_id for s in extra])
