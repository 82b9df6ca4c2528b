"""The report folder: what it holds, that its numbers are the tables', and that nothing from outside can break it."""

import io
import json
import re
import time
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_run import (
    made_costs,
    made_fits,
    made_results,
    made_run,
    made_transcripts,
    made_utterances,
    result,
    results_table,
    write_made_run,
    write_tone,
)
from rich.console import Console

from ctxasr_ray.report import cells, curves, figures, frames, pareto, tables, terminal
from ctxasr_ray.report.changes import Changes, audio_source, most_changed
from ctxasr_ray.report.comparison import compare
from ctxasr_ray.report.costs import by_step
from ctxasr_ray.report.fits import fitted_chart, fitted_values
from ctxasr_ray.report.markdown import results_markdown
from ctxasr_ray.report.overview import corpora_as_settings
from ctxasr_ray.report.page import json_for_script, way_of, write_report
from ctxasr_ray.report.slices import slices
from ctxasr_ray.report.word_errors import word_errors
from ctxasr_ray.schema import TABLES, ContractError


class Elements(HTMLParser):
    """The elements of a page with their attributes, and the text of its data element."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.data = ""
        self._in_data = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self._in_data = dict(attrs).get("id") == "changes"

    def handle_endtag(self, tag: str) -> None:
        self._in_data = False

    def handle_data(self, data: str) -> None:
        if self._in_data:
            self.data += data

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(tmp_path_factory.mktemp("run") / "report", title="Made run", **made_run(60).arguments()).parent


def printed(table: Any, width: int) -> str:
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


# -- the folder


def test_the_folder_holds_page_json_markdown_and_figures(report: Path) -> None:
    names = {path.name for path in report.iterdir()}
    assert {"index.html", "results.json", "results.md", "error_rates.png", "error_kinds.png"} <= names
    assert not [name for name in names if name.endswith(".part")]
    for path in report.glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG"), path


def test_results_json_is_every_row_of_results_with_maps_as_objects(report: Path) -> None:
    records = json.loads((report / "results.json").read_text())
    assert records == tables.results_records(made_results())
    assert records[0]["counts"]["reference_length"] == 800
    assert records[0]["condition"] == {}


def test_the_page_loads_nothing_from_elsewhere(report: Path) -> None:
    page = (report / "index.html").read_text()
    elements = Elements(page)
    loads = [a.get(name) for _, a in elements.found for name in ("src", "href", "xlink:href", "srcset", "data")]
    links = [link for link in loads if link and not link.startswith("#")]
    assert set(links) <= {
        "data:,",
        "results.json",
        "results.md",
        "findings.json",
        *(path.name for path in report.glob("*.png")),
    }
    assert "url(" not in re.sub(r"url\(#\w+\)", "", page)
    assert "@import" not in page


def test_every_chart_has_title_axes_legend_and_says_how_many_utterances() -> None:
    rows = tables.lines(tables.results_records(made_results()))
    steps = by_step(made_costs())
    charts = [
        figures.error_rates(rows),
        figures.error_kinds(rows),
        figures.seconds_by_step(steps),
        pareto.against_real_time_factor(rows),
    ]
    for chart in charts:
        assert chart is not None
        axes = chart.figure.axes[0]
        assert axes.get_title(loc="left")
        assert axes.get_xlabel()
        assert axes.get_ylabel()
        assert axes.get_legend() is not None
        assert re.search(r"N = \d", chart.caption)


def test_drawings_follow_the_colour_of_the_page_and_hold_no_style_element() -> None:
    chart = figures.error_rates(tables.lines(tables.results_records(made_results())))
    assert chart is not None
    drawing = chart.svg()
    assert "currentColor" in drawing
    assert "<style" not in drawing
    assert "#010203" not in drawing
    assert "#000000" not in drawing


def test_dollar_signs_in_names_are_drawn_as_they_are(tmp_path: Path) -> None:
    rows = tables.lines(tables.results_records(results_table([result("test", "first_pass/$x^{$", "wer", 0.2)])))
    chart = figures.error_rates(rows)
    assert chart is not None
    assert "first_pass/$x^{$" in chart.svg()
    assert chart.png(tmp_path).exists()


def test_numeric_conditions_become_curves() -> None:
    rows = [
        result("test", "lm_rescoring", "wer", 0.2 - size / 1000, condition=[("list_size", str(size)), ("lm", name)])
        for size in (10, 50, 20)
        for name in ("small", "large")
    ]
    (chart,) = curves.by_setting(tables.lines(tables.results_records(results_table(rows))))
    assert chart.name == "sweep_list_size"
    axes = chart.figure.axes[0]
    assert axes.get_legend_handles_labels()[1] == ["lm_rescoring (lm=small)", "lm_rescoring (lm=large)"]
    assert axes.lines[0].get_ydata() == pytest.approx([19.0, 18.0, 15.0])
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["10", "20", "50"]


def test_corpora_that_differ_in_noise_become_curves_of_confident_mistakes_with_a_paragraph() -> None:
    rows = []
    for level, wrong in (("20", 0.02), ("0", 0.11), ("10", 0.05)):
        for system, repaired in (("first_pass", None), ("lm_rescoring", wrong * 2)):
            corpus = {"corpus": f"noisy_snr_db_{level}"}
            rows.append(result("test", system, "confidently_wrong", wrong) | corpus)
            if repaired is not None:
                rows.append(result("test", system, "confidently_wrong_repaired", repaired) | corpus)
    rows.append(result("test", "first_pass", "wer", 0.2) | {"corpus": "plain_2"})
    found = corpora_as_settings(tables.lines(tables.results_records(results_table(rows))))
    assert {(line.corpus, line.condition["snr_db"]) for line in found} == {("noisy", n) for n in ("0", "10", "20")}
    (chart,) = curves.confident_by_setting(found)
    assert chart.name == "confident_snr_db"
    assert chart.figure.axes[0].lines[0].get_ydata() == pytest.approx([11.0, 5.0, 2.0])
    assert chart.caption.startswith(
        "At SNR (dB) 0 and 20, first_pass: share of written words that are confidently wrong 11.0 % and 2.0 %. "
        "Share of its confident mistakes that others have right: lm_rescoring 22.0 % and 4.0 %."
    )


def test_a_run_without_transcripts_costs_and_fits_still_makes_a_page(tmp_path: Path) -> None:
    page = write_report(
        tmp_path,
        title="Little",
        results=results_table([result("test", "first_pass", "wer", 0.2, ci_low=None, ci_high=None)]),
        utterances=made_utterances(3),
        transcripts={},
        hypotheses=None,
        costs=[],
        fits=None,
        provenance={},
    ).read_text()
    assert "nothing to compare" in page
    assert "Cost of each step" not in page


def test_empty_results_make_a_page_that_says_nothing_wrong(tmp_path: Path) -> None:
    run = made_run(9).arguments() | {"results": results_table([])}
    page = write_report(tmp_path, title="Empty", **run).read_text()
    assert json.loads((tmp_path / "results.json").read_text()) == []
    assert "Utterances that changed most" in page


def test_results_that_break_the_schema_are_refused(tmp_path: Path) -> None:
    run = made_run(9).arguments() | {"results": pa.table({"system": ["first_pass"]})}
    with pytest.raises(ContractError, match="results"):
        write_report(tmp_path, title="Broken", **run)


# -- nothing from outside can break the page

EVIL = [
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '" onmouseover="alert(1)" x="',
    "<!-- <script>",
    "{{ 7*7 }} {% for %}",
    "a\u2028b \u0000 \u202e rtl",
]


def test_no_text_from_outside_becomes_an_element_or_an_attribute(tmp_path: Path) -> None:
    run = made_run(12)
    table = run.utterances.to_pylist()
    for row, evil in zip(table, EVIL, strict=False):
        row |= {"reference": evil, "speaker_id": evil, "corpus": evil, "attributes": [(evil, evil)], "audio_uri": evil}
        row["utterance_id"] += evil
    utterances = pa.Table.from_pylist(table, schema=run.utterances.schema)
    ids = utterances["utterance_id"].to_pylist()
    texts = (EVIL * 2)[: len(ids)]
    records = [
        result("test", f"first_pass/{evil}", "wer", 0.2, corpus=evil, signature=evil, condition=[(evil, evil)])
        for evil in EVIL
    ]
    costs = [{**cost, "step": EVIL[0], "device": EVIL[1], "counters": {EVIL[2]: 1}} for cost in made_costs(1)]
    arguments = run.arguments() | {
        "utterances": utterances,
        "transcripts": {evil: made_transcripts(ids, texts, failed=frozenset(ids[:2])) for evil in EVIL[:3]},
        "results": results_table(records),
        "costs": costs,
        "hypotheses": None,
        "provenance": {EVIL[0]: EVIL[1], EVIL[2]: {EVIL[0]: EVIL}},
    }
    page = write_report(tmp_path, title=EVIL[0], **arguments).read_text()
    elements = Elements(page)
    scripts = elements.named("script")
    assert [script.get("id") for script in scripts] == ["changes", None]
    assert not elements.named("img")
    assert not [name for _, attributes in elements.found for name in attributes if name.startswith("on")]
    assert "{{ 7*7 }}" in page
    shown = json.loads(elements.data)
    assert shown["systems"] == EVIL[:3]
    assert {u["reference"] for u in shown["utterances"]} >= set(EVIL)


def test_json_in_a_script_element_says_the_same_and_closes_nothing() -> None:
    text = json_for_script(EVIL)
    assert not re.search(r"[<>&\u2028\u2029]", text)
    assert json.loads(text) == EVIL


def test_the_policy_admits_the_page_s_own_script_only(report: Path) -> None:
    import base64
    import hashlib

    page = (report / "index.html").read_text()
    script = page[page.rindex("<script>") + 8 : page.rindex("</script>")]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = next(a["content"] for a in Elements(page).named("meta") if a.get("http-equiv"))
    assert policy is not None
    assert f"script-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")


def test_markdown_cells_break_no_table() -> None:
    rows = [result("test", f"first_pass/{evil}", "wer", 0.2) for evil in (*EVIL, "a|b\nc")]
    page = results_markdown(results_table(rows), title="Made | run")
    body = [line for line in page.splitlines() if line.startswith("| synthetic")]
    assert len(body) == len(rows)
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in body} == {11}
    assert not re.search(r"(?<!\\)<", page)


# -- tables for people


def test_the_terminal_table_fits_80_columns_and_explains_itself() -> None:
    text = printed(terminal.terminal_tables(made_results()), 80)
    assert max(map(len, text.splitlines())) <= 80
    assert "test, N=200" in text
    assert "192/55/28" in text
    assert "[15.82,18.58]" in text
    assert "lower is better" in text
    assert "oracle: the best hypothesis" in text


def test_wide_terminals_keep_a_rate_and_its_interval_on_one_line() -> None:
    text = printed(terminal.terminal_tables(made_results()), 100)
    assert re.search(r"lm_rescoring +17\.20 \[15\.82,18\.58\] +-4\.10 \[-4\.90,-3\.30\] +<0\.001", text)


def test_square_brackets_in_names_are_no_markup() -> None:
    text = printed(terminal.terminal_tables(results_table([result("test", "lm_rescoring/[red]x", "wer", 0.2)])), 100)
    assert "lm_rescoring/[red]x" in text


def test_what_went_wrong_stands_beside_its_system() -> None:
    rows = [result("test", "first_pass", "wer", 0.2, num_failed=3, counts=[("missing_utterances", 2)], num_unscored=1)]
    text = printed(terminal.terminal_tables(results_table(rows)), 120)
    assert "first_pass (3 failed, 2 missing, 1 unscored)" in text
    assert "charged as all deleted" in text


def test_systems_whose_keywords_were_counted_stand_in_a_second_table() -> None:
    rows = [result("test", name, "wer", 0.2) for name in ("first_pass", "oracle")]
    assert "keyword" not in printed(terminal.terminal_tables(results_table(rows)), 80)
    assert "recall" not in printed(terminal.terminal_tables(results_table(rows)), 80)
    values = {"biased_wer": 0.5, "keyword_recall": 0.75, "keyword_precision": 0.6, "keyword_f1": 0.6667}
    rows += [result("test", "first_pass", metric, value) for metric, value in values.items()]
    rows += [result("test", "first_pass", "distractor_false_alarms", 4.0)]
    text = printed(terminal.terminal_tables(results_table(rows)), 80)
    assert max(map(len, text.splitlines())) <= 80
    second = text.partition("B-WER %")[2]
    assert re.search(r"recall % +precision % +F1 % +false alarms", second)
    assert re.search(r"first_pass +50\.00.* +75\.00.* +60\.00.* +66\.67 +4\.000", second)
    assert "oracle" not in second


def test_a_long_table_leaves_the_oracles_of_further_lists_to_the_page() -> None:
    names = [f"list_{n}" for n in range(20)]
    shown = [*(f"first_pass/{name}" for name in names), "oracle", "oracle/compositional"]
    left = [f"oracle/{name}{more}" for name in names for more in ("", "/compositional")]
    rows = [result("test", system, "wer", 0.2) for system in [*shown, *left]]
    text = printed(terminal.terminal_tables(results_table(rows)), 100)
    assert all(f" {system} " in text for system in shown)
    assert "oracle/list_0" not in text
    assert f"{len(left)} lines more stand on the page." in text
    short = printed(terminal.terminal_tables(results_table(rows[-8:])), 100)
    assert all(system in short for system in left[-8:])


def test_the_legend_says_what_the_bootstrap_drew_and_warns_of_single_utterances() -> None:
    rows = [
        result("dev", "first_pass", "wer", 0.2, num_blocks=40, signature="wer|block:utterance|split:dev"),
        result("test", "first_pass", "wer", 0.2, num_blocks=30, signature="wer|block:session|split:test"),
    ]
    said = " ".join(tables.legend(tables.lines(tables.results_records(results_table(rows)))))
    assert "40 utterances (dev, too few speakers are known: perhaps too narrow); 30 sessions (test)." in said


def test_the_headline_compares_the_best_system_with_its_baseline() -> None:
    (sentence,) = tables.headlines(tables.results_records(made_results()))
    assert sentence == (
        "synthetic, test: lm_rescoring makes 17.20 % WER (95 % interval [15.82, 18.58]), 4.10 points fewer than "
        "first_pass, 19.2 % relative, paired 95 % interval [-4.90, -3.30], p <0.001; 200 utterances."
    )


def test_the_oracle_is_never_the_best_system() -> None:
    rows = tables.lines(tables.results_records(made_results()))
    best = [row for row in cells.results(rows, [])["rows"] if row["best"]]
    assert [[cell["text"] for cell in row["cells"][:2]] for row in best] == [
        ["dev", "lm_rescoring"],
        ["test", "lm_rescoring"],
    ]


def test_character_error_rate_leads_where_there_is_no_word_error_rate() -> None:
    rows = tables.lines(tables.results_records(results_table([result("test", "first_pass", "cer", 0.08)])))
    assert tables.primary_metric(rows) == "cer"
    assert "reference characters" in " ".join(tables.legend(rows))


def test_ratios_are_not_shown_in_percent() -> None:
    assert tables.number("real_time_factor", 0.0312) == "0.031"
    assert tables.number("wer", 0.0312) == "3.12"
    assert tables.number("wer", -0.01, signed=True) == "-1.00"


def test_words_are_compared_the_way_that_the_signatures_name() -> None:
    assert way_of([{"signature": "wer|norm:librispeech.v1|align:nist|n:3"}]) == ("librispeech", "nist")
    assert way_of([{"signature": "wer"}]) == ("whisper_english", "unit")


# -- costs


def test_costs_add_up_over_shards_and_peaks_are_the_largest() -> None:
    steps = {step.step: step for step in by_step(made_costs(3))}
    scores = steps["lm_scores"]
    assert scores.num_shards == 3
    assert scores.rows == 300
    assert scores.counters["tokens"] == 3 * 52_020
    assert scores.counters["peak_logits_bytes"] == 4_000_002
    assert scores.seconds["llm"] == pytest.approx(13.2)
    assert scores.wall_s == pytest.approx(16.2)
    assert scores.warm_s == pytest.approx(16.2 - 2.4)
    assert scores.other_s == pytest.approx(0.6)


def test_what_utterances_cost_stands_on_the_page_in_a_table_of_its_own() -> None:
    receipt = {"step": "fused", "table": "hypotheses", "rows": 2, "seconds": {"busy": 1.0}, "counters": {}}
    own = [{"llm_calls": [4, 6], "kv_bytes": [2_000_000, 4_000_000]}, {"llm_calls": [8, None]}]
    steps = by_step([{**receipt, "utterances": each} for each in own])
    rows = [[each["text"] for each in row] for row in cells.utterance_costs(steps)]
    assert rows == [
        ["fused", "llm calls", "3", "6.0", "6.0", "7.8", "8.0"],
        ["fused", "kv (MB)", "2", "3.00", "3.00", "3.90", "4.00"],
    ]


def test_receipts_of_the_store_are_taken_as_they_are() -> None:
    receipt = {
        "step": "lm_scores",
        "table": "scores",
        "shard": None,
        "rows": 10,
        "seconds": {"busy": 5.0, "load": 2.0, "llm": 4.0},
        "counters": {},
        "device": "cpu",
        "peak_host_bytes": 7,
        "peak_device_bytes": 0,
    }
    (step,) = by_step([receipt, {**receipt, "peak_host_bytes": 9, "seconds": {"busy": 1.0}}])
    assert step.wall_s == 8.0
    assert step.warm_s == 6.0
    assert step.other_s == 2.0
    assert dict(step.seconds) == {"load": 2.0, "llm": 4.0}
    assert dict(step.counters) == {"peak_host_bytes": 9}


def test_fitted_values_gather_what_their_companion_rows_say() -> None:
    weight, bonus = fitted_values(made_fits())
    assert (weight.fit, weight.name, weight.value) == ("weights", "causal_lm", 0.62)
    assert (weight.optimal, weight.flat, weight.bootstrap) == ((0.605, 0.635), (0.51, 0.78), (0.44, 0.93))
    assert (weight.num_optima, bonus.num_optima) == (1, 2)
    (row, _) = cells.fits([weight, bonus])
    assert (row["optimal"], row["flat"], row["bootstrap"]) == ("[0.605, 0.635]", "[0.51, 0.78]", "[0.44, 0.93]")
    assert row["objective"] == "wer|word|whisper_english|all = 0.1714"


def test_fits_without_companions_or_intervals_are_shown_and_not_drawn() -> None:
    rows = [{**row, "interval": []} for row in made_fits().to_pylist()[:1]]
    values = fitted_values(pa.Table.from_pylist(rows, schema=TABLES["fits"]))
    assert [value.optimal for value in values] == [None, None]
    assert [row["bootstrap"] for row in cells.fits(values)] == ["-", "-"]
    assert fitted_chart(values, {}) is None


# -- changed utterances


def changes(references: Sequence[str | None], systems: dict[str, list[str]], **more: Any) -> Changes:
    rows = made_utterances(len(references)).to_pylist()
    for row, reference in zip(rows, references, strict=True):
        row["reference"] = reference
    utterances = pa.Table.from_pylist(rows, schema=made_utterances(1).schema)
    ids = [row["utterance_id"] for row in rows]
    transcripts = {name: made_transcripts(ids, texts) for name, texts in systems.items()}
    return most_changed(compare(utterances, transcripts, normaliser="basic"), directory=Path(), **more)


def test_sums_count_every_utterance_and_the_largest_change_comes_first() -> None:
    found = changes(
        ["a b c", "a b c", "a b c", "a b c", None],
        {"first": ["a b c", "a x y", "x y z", "a b x", "?"], "second": ["a b", "a b y", "a b c", "a b y", "?"]},
    )
    assert found.pairs == [[0, 1, 2, 1, 1, 0]]
    assert found.utterances[0]["id"] == "utt-00002"
    assert found.num_scored == 4
    assert any("1 utterances without a reference" in note for note in found.notes)


def test_words_are_compared_after_normalising_and_raw_text_is_kept() -> None:
    found = changes(["Hello, World!"], {"first": ["hello world"]})
    assert aligned(found.utterances[0])["errors"] == 0
    assert found.utterances[0]["reference"] == "Hello, World!"


def test_deletions_substitutions_and_insertions_stand_where_they_happen() -> None:
    found = changes(["a b c"], {"first": ["a x q c d"]})
    heard = aligned(found.utterances[0])
    assert heard["heard"][0] == 1
    assert heard["heard"][2] == 1
    assert sorted([heard["heard"][1], heard["inserted"][0][1]]) == ["q", "x"]
    assert heard["inserted"][-1] == (3, "d")
    assert heard["errors"] == 3


def spoken(utterance: Mapping[str, Any]) -> list[str]:
    words: list[str] = []
    heard = aligned(utterance)
    for position in range(len(heard["heard"]) + 1):
        words += [word for place, word in heard["inserted"] if place == position]
        if position < len(heard["heard"]) and heard["heard"][position] is not None:
            word = heard["heard"][position]
            words.append(utterance["words"][position] if word == 1 else word)
    return words


def aligned(utterance: Mapping[str, Any], system: int = 0) -> dict[str, Any]:
    """What the page shows of one system."""
    found: dict[str, Any] = utterance["variants"][utterance["of"][system]]
    return found


@settings(deadline=None)  # the machine may be busy with others
@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=8), st.lists(st.sampled_from("abcd"), max_size=8))
def test_the_aligned_words_are_the_hypothesis_in_its_order(reference: list[str], hypothesis: list[str]) -> None:
    found = changes([" ".join(reference)], {"first": [" ".join(hypothesis)]})
    assert spoken(found.utterances[0]) == hypothesis


def test_systems_that_say_the_same_share_one_alignment() -> None:
    found = changes(["a b"], {"first": ["a x"], "second": ["A x!"], "third": ["a b"]})
    (utterance,) = found.utterances
    assert utterance["of"] == [0, 0, 1]
    assert [variant["errors"] for variant in utterance["variants"]] == [1, 0]
    assert found.start == [0, 2]


def test_the_words_of_true_keywords_are_marked_wherever_they_stand() -> None:
    rows = made_utterances(1).to_pylist()
    rows[0] |= {"reference": "Call Dr Okonkwo, then Okonkwo's dr okonkwo", "keywords": ["dr Okonkwo", "not said"]}
    utterances = pa.Table.from_pylist(rows, schema=made_utterances(1).schema)
    said = {"first": made_transcripts(["utt-00000"], ["call"])}
    (shown,) = most_changed(compare(utterances, said, normaliser="basic"), directory=Path()).utterances
    assert [shown["words"][index] for index in shown["keywords"]] == ["dr", "okonkwo", "dr", "okonkwo"]


def test_a_missing_row_and_a_failed_row_are_named_and_charged() -> None:
    utterances = made_utterances(3)
    ids = utterances["utterance_id"].to_pylist()
    transcripts = {
        "first": made_transcripts(ids, utterances["reference"].to_pylist(), failed=frozenset(ids[:1])),
        "second": made_transcripts(ids[1:], utterances["reference"].to_pylist()[1:]),
    }
    found = most_changed(compare(utterances, transcripts, normaliser="basic"), directory=Path())
    failed = next(u for u in found.utterances if u["id"] == ids[0])
    assert failed["failures"]["0"].endswith("zero-length file")
    assert failed["failures"]["1"] == "this system has no row for the utterance"
    assert aligned(failed)["errors"] == len(failed["words"])
    assert any("1 transcripts are missing" in note for note in found.notes)


def test_the_page_says_how_many_of_how_many_it_holds() -> None:
    found = changes(["a b"] * 30, {"first": ["a"] * 30, "second": ["a b"] * 30}, max_utterances=10)
    assert len(found.utterances) == 10
    assert found.notes[0] == "This page holds the 10 most changed of 30 utterances with a reference."
    assert found.pairs == [[0, 1, 30, 0, 0, 0]]


def test_every_pair_of_systems_finds_its_own_changes_on_the_page() -> None:
    references = ["a b c d"] * 40
    systems = {
        "first": ["a b c d"] * 40,
        "second": ["x y z w"] * 30 + ["a b c d"] * 10,
        "third": ["a b c d"] * 39 + ["a b c x"],
    }
    found = changes(references, systems, max_utterances=6)
    assert "utt-00039" in {u["id"] for u in found.utterances}


def test_the_most_frequent_errors_are_counted_for_every_system() -> None:
    found = changes(["a b c", "a b d", "x"], {"first": ["a q c", "a q d e", "x"], "second": ["a c", "a q d", "x"]})
    assert ["sub", "b", "q", [2, 1]] in found.confusions
    assert ["ins", "", "e", [1, 0]] in found.confusions
    assert ["del", "b", "", [0, 1]] in found.confusions
    assert len(found.confusions) == 3


def test_a_failed_row_with_a_text_still_counts_as_all_deleted() -> None:
    utterances = made_utterances(2)
    ids = utterances["utterance_id"].to_pylist()
    table = made_transcripts(ids, utterances["reference"].to_pylist(), failed=frozenset(ids[:1]))
    table = table.set_column(1, table.schema.field("text"), [utterances["reference"].to_pylist()])
    compared = compare(utterances, {"first": table}, normaliser="basic")
    assert compared.errors.tolist() == [[compared.num_words[0], 0]]


def test_slices_add_up_errors_and_words_and_leave_out_names() -> None:
    rows = made_utterances(30).to_pylist()
    for index, row in enumerate(rows):
        row["split"] = "test"
        row["attributes"] = [("snr_db", ["10", "5", "clean"][index % 3]), ("voice", f"voice-{index}")]
    utterances = pa.Table.from_pylist(rows, schema=made_utterances(1).schema)
    said = ["" if index % 3 == 1 else row["reference"] for index, row in enumerate(rows)]
    ids = [row["utterance_id"] for row in rows]
    found = slices(compare(utterances, {"first": made_transcripts(ids, said)}, normaliser="basic"))
    assert [row.condition for row in found] == [{"snr_db": "5"}, {"snr_db": "10"}, {"snr_db": "clean"}]
    assert [row.value("wer") for row in found] == [1.0, 0.0, 0.0]
    assert {row.metrics["wer"]["num_utterances"] for row in found} == {10}
    (chart,) = curves.by_setting(found)
    axes = chart.figure.axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["5", "10", "clean"]
    assert axes.get_xlabel() == "SNR (dB)"


def test_right_to_left_and_combining_scripts_stay_whole() -> None:
    found = changes(["\u0634\u0643\u0631\u0627 \u0644\u0643"], {"first": ["\u0634\u0643\u0631\u0627"]})
    assert aligned(found.utterances[0])["heard"] == [1, None]


def test_audio_is_linked_relative_to_the_page_or_says_why_not(tmp_path: Path) -> None:
    (tmp_path / "report").mkdir()
    tone = write_tone(tmp_path / "a b#1.wav", seconds=0.01)
    assert audio_source(str(tone), tmp_path / "report") == ("../a%20b%231.wav", None)
    assert audio_source(tone.as_uri(), tmp_path / "report") == ("../a%20b%231.wav", None)
    assert audio_source("https://example.org/a.wav", tmp_path) == ("https://example.org/a.wav", None)
    source, reason = audio_source("shards/a.tar#a.wav", tmp_path)
    assert source is None
    assert reason is not None
    assert "archive" in reason
    for uri in ("javascript:alert(1)", "missing.wav", "s3://bucket/a.wav", "data:text/html,x"):
        assert audio_source(uri, tmp_path)[0] is None, uri


def test_5000_utterances_make_a_small_page_quickly(tmp_path: Path) -> None:
    run = made_run(5000)
    start = time.process_time()  # of this process: the machine may be busy with others
    page = write_report(tmp_path, title="Large", **run.arguments())
    assert time.process_time() - start < 15
    assert page.stat().st_size < 1_000_000
    assert "200 most changed of 5,000" in page.read_text()


# -- frames


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_made_run(tmp_path_factory.mktemp("made") / "run", 60)


@pytest.mark.parametrize("name", TABLES)
def test_every_column_is_documented_and_has_one_dtype_whatever_its_rows_hold(name: str) -> None:
    empty = frames.frame(TABLES[name].empty_table(), name)
    assert list(empty.attrs["columns"]) == list(empty.columns) == TABLES[name].names
    assert all(empty.attrs["columns"].values())


def test_missing_integers_stay_integers_and_maps_are_dictionaries() -> None:
    rows = frames.frame(made_utterances(3), "utterances")
    assert str(rows["channel"].dtype) == "Int32"
    assert str(rows["start_s"].dtype) == "float64"
    assert rows["attributes"][0].keys() == {"snr_db"}


def test_results_of_a_report_folder_are_those_of_the_run(run_folder: Path) -> None:
    found = frames.results(run_folder / "report")
    direct = frames.table(run_folder, "results")
    measured = found["metric"] == "real_time_factor"
    pd.testing.assert_frame_equal(found[~measured], direct)
    assert measured.sum() == 4
    assert found["num_utterances"].dtype == "Int64"


def test_a_step_s_table_holds_all_its_shards(run_folder: Path) -> None:
    steps = frames.steps(run_folder).set_index("step")
    assert steps.loc["errors_first_pass", "table"] == "errors"
    assert steps.loc["errors_first_pass", "inputs"] == ["utterances", "transcripts_first_pass"]
    ids = frames.table(run_folder, "utterances")["utterance_id"]
    assert sorted(ids) == made_utterances(60)["utterance_id"].to_pylist()
    assert sorted(frames.table(run_folder, "errors_first_pass")["utterance_id"]) == sorted(ids)
    with pytest.raises(ValueError, match="no step 'errors'"):
        frames.table(run_folder, "errors")


def test_items_of_a_list_column_add_up_to_the_results(run_folder: Path) -> None:
    counts = frames.items(frames.table(run_folder, "errors_first_pass"), "counts")
    words = counts[counts["metric"] == "wer"]
    errors = (words["substitutions"] + words["deletions"] + words["insertions"]).sum()
    results = frames.results(run_folder / "report")
    rows = results[(results["metric"] == "wer") & (results["system"] == "first_pass")]
    assert errors == sum(row[k] for row in rows["counts"] for k in ("substitutions", "deletions", "insertions"))


def test_costs_have_one_row_per_committed_file(run_folder: Path) -> None:
    costs = frames.costs(run_folder)
    assert costs.groupby("step")["rows"].sum()["first_pass"] == 60
    assert (costs["busy_s"] >= 0).all()
    assert sum(counters["rows"] for counters in costs[costs["step"] == "first_pass"]["counters"]) == 60


def test_costs_of_utterances_have_one_row_per_utterance_and_step_that_counts_them(run_folder: Path) -> None:
    costs = frames.utterance_costs(run_folder)
    ids = frames.table(run_folder, "utterances")["utterance_id"]
    counted = costs[costs["step"] == "first_pass"]
    assert sorted(counted["utterance_id"]) == sorted(ids)
    assert (counted["letters"] == counted["utterance_id"].str.len()).all()


def test_lines_of_a_frame_are_those_of_its_table(run_folder: Path) -> None:
    found = frames.lines(frames.results(run_folder / "report"))
    direct = tables.lines(json.loads((run_folder / "report" / "results.json").read_text()))
    assert [(row.label, row.split, dict(row.metrics)) for row in found] == [
        (row.label, row.split, dict(row.metrics)) for row in direct
    ]


def test_a_landscape_read_from_a_run_has_its_best_at_the_fit(run_folder: Path) -> None:
    fit = frames.table(run_folder, "weights_lm_rescoring").set_index("name").loc["lm_rescoring"]
    seen = frames.landscape(run_folder, "weights_lm_rescoring", "causal_lm")
    weight = fit["values"]["causal_lm"]
    here = seen[(seen["low"] <= weight) & (weight <= seen["high"])]["objective"].iloc[0]
    assert here == pytest.approx(fit["objective_value"]) == seen["objective"].min()
    assert len(frames.landscape(run_folder, "weights_lm_rescoring", "causal_lm", "test")) > 1
    with pytest.raises(ValueError, match="no fit"):
        frames.landscape(run_folder, "first_pass", "causal_lm")


def test_aligned_words_add_up_to_the_errors_and_carry_confidence(run_folder: Path) -> None:
    words = word_errors(
        frames.table(run_folder, "utterances"), frames.table(run_folder, "transcripts_first_pass"), "whisper_english"
    )
    counts = frames.items(frames.table(run_folder, "errors_first_pass"), "counts")
    wer = counts[counts["metric"] == "wer"]
    for op, column in (("substitution", "substitutions"), ("deletion", "deletions"), ("insertion", "insertions")):
        assert (words["op"] == op).sum() == wer[column].sum()
    written = words[words["word"].notna()]
    assert written["confidence"].between(0, 1).mean() > 0.95
    assert words[words["op"] == "deletion"]["confidence"].isna().all()


def test_a_folder_without_a_finished_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"provenance\.json"):
        frames.steps(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"results\.json"):
        frames.results(tmp_path)
