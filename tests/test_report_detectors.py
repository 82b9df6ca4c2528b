"""Every detector speaks up where its fault is, and is silent where it is not."""

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from made_run import made_run, made_transcripts, made_utterances, result, results_table

from ctxasr_ray.execution.stage_calls import make_receipt
from ctxasr_ray.keywords.context import ContextConfig
from ctxasr_ray.nbest import Hypothesis, NBest, Score, SourceScores, hypotheses_table, scores_table
from ctxasr_ray.report import detectors, findings, tables
from ctxasr_ray.report.comparison import Comparison, compare
from ctxasr_ray.report.lost_words import changed_words
from ctxasr_ray.report.odd_phrases import odd_phrases, unwritable_phrases
from ctxasr_ray.report.page import write_report
from ctxasr_ray.schema import CONTEXT, UTTERANCES
from ctxasr_ray.stage import Costs

IDS = ["utt-00000", "utt-00001", "utt-00002"]


def utterances(references: list[str | None], keywords: list[list[str] | None] | None = None) -> pa.Table:
    rows = made_utterances(len(references)).to_pylist()
    for index, (row, reference) in enumerate(zip(rows, references, strict=True)):
        row |= {"reference": reference, "keywords": keywords[index] if keywords else None}
    return pa.Table.from_pylist(rows, schema=UTTERANCES)


def context(phrases: list[list[str] | None]) -> pa.Table:
    rows = [{"utterance_id": id_, "phrases": each} for id_, each in zip(IDS, phrases, strict=False)]
    return pa.Table.from_pylist(rows, schema=CONTEXT)


def lines_of(rows: list[dict[str, Any]]) -> list[tables.Line]:
    return tables.lines(tables.results_records(results_table(rows)))


# -- references and rows


def test_references_that_normalise_to_nothing_are_found() -> None:
    (found,) = detectors.emptied_references(utterances(["[noise]", "turn it on", None, "  "]), "whisper_english")
    assert found.severity == "error"
    assert "'utt-00000'" in found.where
    assert found.got.startswith("1 of 2 references")


def test_references_that_keep_words_or_were_empty_are_no_finding() -> None:
    assert not list(detectors.emptied_references(utterances(["turn it on", "", None]), "whisper_english"))


def test_a_system_that_leaves_ids_out_is_named_with_its_number() -> None:
    systems = {"first_pass": made_transcripts(IDS, ["a"] * 3), "other": made_transcripts(IDS[:1], ["a"])}
    (found,) = detectors.left_out(utterances(["a"] * 3), systems)
    assert (found.severity, found.got, found.expected) == ("error", "1 transcripts", "3")
    assert "'other'" in found.where
    assert "'utt-00001', 'utt-00002'" in found.where


def test_transcripts_of_unknown_utterances_are_named() -> None:
    systems = {"first_pass": made_transcripts([*IDS, "stranger"], ["a"] * 4)}
    (found,) = detectors.left_out(utterances(["a"] * 3), systems)
    assert (found.severity, found.got) == ("warning", "1 further transcripts")
    assert "'stranger'" in found.where


def test_failed_utterances_are_named_once_with_their_reasons() -> None:
    good = made_transcripts(IDS, ["a"] * 3)
    columns = {
        "error_type": pa.array(["audio", None, "model_limit"]),
        "error": pa.array(["a.wav: does not exist", None, "c.wav: 200 s of audio"]),
    }
    bad = good
    for name, column in columns.items():
        bad = bad.set_column(bad.column_names.index(name), bad.schema.field(name), column)
    (found,) = findings.failed({"first_pass": bad, "lm_rescoring": bad, "other": good})
    assert (found.severity, found.where) == ("warning", "first_pass, lm_rescoring")
    assert found.got == "2 (1 audio, 1 model_limit)"
    assert "utt-00000: a.wav: does not exist; utt-00002: c.wav: 200 s" in found.remedy
    assert findings.failed({"other": good}) == []


# -- settings


@pytest.mark.parametrize("in_name", [True, False])
def test_a_sweep_axis_without_effect_is_found_as_condition_and_in_names(in_name: bool) -> None:
    rows = []
    for size in ("10", "100"):
        system = f"keyword_boost/list_{size}" if in_name else "keyword_boost"
        condition = [] if in_name else [("list_size", size)]
        rows.append(result("test", system, "wer", 0.2, condition=condition))
        rows.append(result("test", system, "real_time_factor", float(size), condition=condition))
    (found,) = detectors.sweep_without_effect(lines_of(rows))
    assert found.what == "The setting 'list_size' has no effect"
    assert "10, 100" in found.got


def test_one_metric_that_moves_is_an_effect_and_one_value_is_no_sweep() -> None:
    rows = [
        result("test", f"keyword_boost/list_{size}", metric, value)
        for size in (10, 100)
        for metric, value in (("wer", 0.2), ("biased_wer", 0.3 - size / 1000))
    ]
    assert not list(detectors.sweep_without_effect(lines_of(rows)))
    assert not list(detectors.sweep_without_effect(lines_of(rows[:1])))


def test_noise_levels_of_different_utterances_are_no_sweep() -> None:
    rows = [
        result("test", "first_pass", "wer", 0.0, condition=[("snr_db", level)], num_utterances=size)
        for level, size in (("5", 10), ("10", 12))
    ]
    assert not list(detectors.sweep_without_effect(lines_of(rows)))


def compared(metric: str, delta: float, low: float) -> dict[str, Any]:
    more = {"baseline": "first_pass", "delta": delta, "delta_ci_low": low, "delta_ci_high": delta + 0.01}
    return result("test", "keyword_boost", metric, 0.2 + delta, **more)


REFERENCES = ["call the okonkwo office", "the call to okonkwo", None]
SAID = {
    "first_pass": ["call the conquer office", "the call to conquer", "anything"],
    "keyword_boost": ["call okonkwo offers", "call to okonkwo the the the", "anything else"],
}


def said() -> Comparison:
    made = {system: made_transcripts(IDS, texts) for system, texts in SAID.items()}
    return compare(utterances(list(REFERENCES)), made, normaliser="basic")


def test_rare_words_better_while_all_words_are_worse_is_found_with_the_words_that_pay() -> None:
    rows = lines_of([compared("wer", 0.02, 0.01), compared("rare_wer", -0.1, -0.2)])
    (found,) = detectors.rare_better_overall_worse(rows, said())
    assert found.severity == "warning"
    assert "rare_wer -10.00 points, wer +2.00" in found.got
    assert "; words that pay: 1, 4 errors more ('the' +4); that win: 1, 1 fewer" in found.got
    assert [word.word for word in found.words] == ["the"], "only the second utterance is of test"
    (unsure,) = detectors.rare_better_overall_worse(
        lines_of([compared("wer", 0.02, -0.01), compared("biased_wer", -0.1, -0.2)]), said()
    )
    assert unsure.severity == "note"
    elsewhere = dataclasses.replace(rows[0], corpus="another")
    (unnamed,) = detectors.rare_better_overall_worse([elsewhere], said())
    assert unnamed.words == (), "no utterances of that corpus are at hand"


def test_words_that_change_add_up_to_the_change_of_all_errors() -> None:
    comparison = said()
    words = changed_words(comparison, "first_pass", "keyword_boost", range(2))
    change = int((comparison.errors[1] - comparison.errors[0]).sum())
    assert sum(word.more_errors for word in words) == change > 0
    first, last = words[0], words[-1]
    assert (first.lost, first.won, first.inserted, sorted(first.instead)) == (2, 0, 3, [("", 2)])
    assert first.utterances == ("utt-00000", "utt-00001")
    assert (last.word, last.lost, last.won, last.more_errors) == ("okonkwo", 0, 2, -2)
    (office,) = (word for word in words if word.word == "office")
    assert office.instead == (("offers", 1),)
    back = changed_words(comparison, "keyword_boost", "first_pass", range(2))
    assert {word.word: -word.more_errors for word in back} == {word.word: word.more_errors for word in words}
    assert changed_words(comparison, "first_pass", "first_pass", range(2)) == []


@pytest.mark.parametrize(("overall", "rare"), [(-0.01, -0.1), (0.01, 0.1), (0.0, -0.1)])
def test_both_better_both_worse_and_no_change_are_no_finding(overall: float, rare: float) -> None:
    rows = [compared("wer", overall, overall - 0.01), compared("rare_wer", rare, rare - 0.01)]
    assert not list(detectors.rare_better_overall_worse(lines_of(rows), said()))


# -- phrase lists


def test_a_list_without_any_effect_is_found() -> None:
    same = made_transcripts(IDS, ["a", "b", "c"])
    (found,) = detectors.list_without_effect(
        "keyword_boost", context([["Okonkwo"], [], None]), same, "first_pass", same
    )
    assert found.severity == "error"
    assert found.got == "3 equal transcripts, though 1 utterances have phrases"


def test_one_changed_transcript_or_an_empty_list_is_no_finding() -> None:
    same, other = made_transcripts(IDS, ["a", "b", "c"]), made_transcripts(IDS, ["a", "b", "x"])
    assert not list(detectors.list_without_effect("boost", context([["a"]] * 3), other, "first_pass", same))
    assert not list(detectors.list_without_effect("boost", context([[], None, []]), same, "first_pass", same))


def never(
    phrases: list[str], spoken: list[str], said: str, listed: str, normaliser: str = "whisper_english"
) -> list[findings.Finding]:
    lists = hypotheses_table([NBest(utterance_id=IDS[0], hypotheses=[Hypothesis(text=listed)])])
    corpus = utterances(["call"], [spoken])
    systems = {"first_pass": made_transcripts(IDS[:1], [said])}
    return list(detectors.never_matching(corpus, {"boost": context([phrases])}, systems, lists, normaliser))


def test_phrases_that_normalise_to_nothing_are_found() -> None:
    (found,) = never(["(um)", "Okonkwo"], ["Okonkwo"], "call okonkwo", "")
    assert (found.severity, found.name) == ("error", "never_matching")
    assert "'(um)'" in found.where


def test_spoken_phrases_that_nobody_writes_are_found() -> None:
    (found,) = never([], ["Okonkwo", "Dr. Ngozi"], "call a conqueror", "call dr ngozi")
    assert found.got == "1 of 2 spoken phrases never written"
    assert "'Okonkwo'" in found.where


def test_phrases_in_a_transcript_or_an_n_best_list_are_no_finding() -> None:
    assert never(["Okonkwo"], ["Okonkwo", "Dr. Ngozi"], "call Okonkwo!", "call dr ngozi") == []


def test_phrases_in_a_text_without_spaces_are_written() -> None:
    (found,) = never([], ["青溪镇", "王薇", "陈强"], "导航到青溪镇的医院", "发email给王薇", "mandarin")
    assert found.got == "1 of 3 spoken phrases never written"
    assert "'陈强'" in found.where


# -- scores


def nbest(values: list[float], source: str = "ctc", kind: str = "log_prob") -> pa.Table:
    hypotheses = [Hypothesis(text=str(v), scores=[Score(source=source, kind=kind, log_prob=v)]) for v in values]
    return hypotheses_table([NBest(utterance_id="u", hypotheses=hypotheses)])


def scores(source: str, values: list[float | None]) -> pa.Table:
    return scores_table(["u"], [[SourceScores(source=source, log_probs=values)]])


def test_a_boost_counted_twice_under_two_names_is_found() -> None:
    (found,) = detectors.counted_twice("boost", nbest([1.0, 2.0], "list", "bonus"), [scores("list_again", [1.0, 2.0])])
    assert "'list' and 'list_again'" in found.where
    (scaled,) = detectors.counted_twice("boost", nbest([1.0, 2.0]), [scores("other", [0.5, 1.0])])
    assert "factor 2" in scaled.got


def test_one_source_in_two_places_is_found() -> None:
    (found,) = detectors.counted_twice("rescoring", nbest([1.0, 2.0]), [scores("ctc", [3.0, 4.0])])
    assert "source 'ctc' stands in the recogniser's own scores" in found.got


def test_different_scores_missing_scores_and_constants_are_no_finding() -> None:
    assert not list(detectors.counted_twice("a", nbest([-1.0, -2.0, -3.0]), [scores("lm", [-1.0, -2.0, -4.0])]))
    assert not list(detectors.counted_twice("a", nbest([-1.0, -2.0]), [scores("lm", [None, None])]))
    assert not list(detectors.counted_twice("a", nbest([0.0, 0.0]), [scores("lm", [0.0, 0.0])]))


# -- the report


def test_findings_stand_on_the_page_in_json_and_on_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = made_run(12)
    short = {**run.transcripts, "lm_rescoring": run.transcripts["lm_rescoring"].slice(0, 9)}
    extra = findings.Finding(
        severity="note", name="audit", what="<b>said</b>", where="x", got="y", expected="z", remedy="."
    )
    with caplog.at_level(logging.WARNING, logger="ctxasr_ray"):
        write_report(tmp_path, title="x", **(run.arguments() | {"transcripts": short}), findings=[extra])
    assert "A system leaves utterances out (system 'lm_rescoring'" in caplog.text
    page = (tmp_path / "index.html").read_text()
    assert "A system leaves utterances out" in page
    assert "&lt;b&gt;said" in page
    names = [row["name"] for row in json.loads((tmp_path / "findings.json").read_text())]
    assert {"audit", "left_out"} <= set(names)


def test_a_run_without_faults_has_no_section_of_findings(tmp_path: Path) -> None:
    run = made_run(12)
    perfect = {
        name: made_transcripts(run.utterances["utterance_id"].to_pylist(), run.utterances["reference"].to_pylist())
        for name in run.transcripts
    }
    page = write_report(tmp_path, title="x", **(run.arguments() | {"transcripts": perfect})).read_text()
    assert 'id="findings"' not in page
    assert json.loads((tmp_path / "findings.json").read_text()) == []


def test_phrases_of_a_list_that_can_never_match_are_named(tmp_path: Path) -> None:
    path = tmp_path / "phrases.txt"
    path.write_text("zimbrato\n:-)\n?!\n!!!\n!!\nnew york\nnew york\n", "utf-8")
    config = ContextConfig(catalogue=str(path))
    (found,) = odd_phrases([config, config, object()])
    assert (found.severity, found.got) == ("warning", "4 lost_in_normalising")
    assert found.where == f"{path}: ':-)', '?!', '!!!', ..."
    path.write_text("zimbrato\n", "utf-8")
    assert odd_phrases([config]) == []


def test_phrases_that_a_recogniser_cannot_write_are_named_once_for_steps_that_lack_the_same() -> None:
    def receipt(step: str, *phrases: str) -> dict[str, Any]:
        costs = Costs()
        costs.name("unwritable_phrases", phrases)
        costs.name("unwritable_phrases", phrases)
        table = pa.table({"utterance_id": ["a"]})
        return {"step": step, **make_receipt(table, costs, load_s=0.0, attempt=0)}

    six = [f"\N{CYRILLIC SMALL LETTER ZHE}{n}" for n in range(6)]
    found = unwritable_phrases(
        [receipt("one"), receipt("boost", "灯"), receipt("boost", *six), receipt("copy", *six), receipt("other", "灯")]
    )
    shown = ", ".join(repr(one) for one in six[:5])
    assert [(f.severity, f.where, f.got) for f in found] == [
        ("warning", f"steps 'boost', 'copy': {shown}, ...", "6 phrases in one shard"),
        ("warning", "step 'other': '灯'", "1 phrase in one shard"),
    ]
