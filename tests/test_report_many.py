"""The report of many systems: its tables, its figures, and that the page stays small."""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from made_run import made_fits, made_showcase, result, results_table

from ctxasr_ray.fusion.weights import WeightsConfig
from ctxasr_ray.metrics.nbest_errors import NbestErrorsConfig
from ctxasr_ray.nbest import Hypothesis, NBest, Score, SourceScores, hypotheses_table, scores_table
from ctxasr_ray.report import curves, figures, pareto, systems, tables
from ctxasr_ray.report.fits import fitted_values
from ctxasr_ray.report.landscapes import Tuned, weight_landscapes
from ctxasr_ray.report.overview import condition_tables, overview, value_cell
from ctxasr_ray.report.page import write_report
from ctxasr_ray.schema import UTTERANCES
from ctxasr_ray.stage import Costs


def lines_of(rows: list[dict[str, object]]) -> list[tables.Line]:
    return tables.lines(tables.results_records(results_table(rows)))


@pytest.fixture(scope="module")
def showcase(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = made_showcase(40, 60)
    return write_report(tmp_path_factory.mktemp("run") / "report", title="Showcase", **run.arguments()).parent


# -- names


@pytest.mark.parametrize(
    ("system", "expected"),
    [
        ("keyword_boost/list_1000", ("keyword_boost", "list_size", "1000")),
        ("lm_rescoring/n16", ("lm_rescoring", "num_hypotheses", "16")),
        ("delayed_fusion/interval_32", ("delayed_fusion", "interval", "32")),
        ("a/b/beam_10", ("a/b", "beam", "10")),
        ("first_pass", None),
        ("oracle/attention", None),
        ("gated_fusion/v2", None),
    ],
)
def test_a_number_in_a_variant_is_a_setting(system: str, expected: tuple[str, str, str] | None) -> None:
    assert systems.setting(system) == expected


def test_an_oracle_of_any_branch_is_a_bound_and_never_the_best_system() -> None:
    rows = lines_of([result("test", "oracle/union", "wer", 0.1), result("test", "first_pass", "wer", 0.2)])
    (sentence,) = tables.headlines(tables.results_records(results_table([result("test", "oracle/x", "wer", 0.1)]))) or [
        ""
    ]
    assert sentence == ""
    assert [systems.is_bound(row.system) for row in rows] == [True, False]


@pytest.mark.parametrize(
    ("metric", "higher", "percent"),
    [
        ("wer", False, True),
        ("keyword_f1", True, True),
        ("recall@64", True, True),
        ("distractor_false_alarms", False, False),
        ("real_time_factor", False, False),
        ("confidence_nce", True, False),
        ("confidence_ece", False, True),
        ("harmful_edits", False, True),
        ("oracle_gap_closed", True, True),
    ],
)
def test_every_metric_knows_which_way_is_better_and_its_unit(metric: str, higher: bool, percent: bool) -> None:
    assert systems.higher_is_better(metric) == higher
    assert systems.is_percent(metric) == percent


# -- tables


def test_the_overview_has_every_metric_in_the_reader_s_order_and_a_mark_beside_each_value() -> None:
    rows = lines_of(made_showcase(6, 30).results.to_pylist())
    found = overview(tables.main_lines(rows))
    heads = [head["text"] for head in found["heads"]]
    assert heads[:6] == ["split", "system", "WER %", "R-WER %", "CER %", "B-WER %"]
    assert heads[-1] == "RTF"
    first = found["rows"][0]["cells"]
    assert "<svg" in first[2]["mark"]
    assert first[2]["help"].startswith("21.30 [19.60, 23.00]")


@pytest.mark.parametrize(
    ("metric", "low", "high", "tone"),
    [
        ("wer", -0.03, -0.01, "good"),
        ("wer", 0.01, 0.03, "bad"),
        ("wer", -0.01, 0.03, ""),
        ("keyword_f1", 0.01, 0.03, "good"),
        ("keyword_f1", -0.03, -0.01, "bad"),
    ],
)
def test_a_value_is_green_only_where_the_paired_interval_leaves_out_zero(
    metric: str, low: float, high: float, tone: str
) -> None:
    more = {"baseline": "first_pass", "delta": (low + high) / 2, "delta_ci_low": low, "delta_ci_high": high}
    (row,) = lines_of([result("test", "lm_rescoring", metric, 0.2, **more)])
    assert value_cell(row.metrics[metric], metric, (0.0, 1.0))["tone"] == tone


def test_conditions_and_settings_in_names_make_tables_with_one_column_per_value() -> None:
    rows = [result("test", f"keyword_boost/list_{n}", "biased_wer", 0.3 - n / 1e5) for n in (1000, 10, 100)]
    rows += [result("test", "first_pass", "wer", 0.2, condition=[("snr_db", level)]) for level in ("clean", "5", "10")]
    by_list, by_snr = condition_tables(lines_of(rows))
    assert by_list.title == "By list size"
    assert [head["text"] for head in by_list.heads] == ["metric", "split", "system", "10", "100", "1000"]
    assert [cell["text"] for cell in by_list.rows[0]["cells"]][:4] == ["B-WER %", "test", "keyword_boost", "29.99"]
    assert [head["text"] for head in by_snr.heads][3:] == ["5", "10", "clean"]


def test_lines_by_condition_stay_out_of_the_leading_tables_and_reliability_out_of_all() -> None:
    rows = [
        result("test", "first_pass", "wer", 0.2),
        result("test", "first_pass", "wer", 0.1, condition=[("snr", "5")]),
    ]
    rows += [result("test", "first_pass", "reliability", 0.1, condition=[("bin", "1"), ("mean_confidence", "0.5")])]
    found = lines_of(rows)
    assert len(found) == 2
    assert [row.condition for row in tables.main_lines(found)] == [{}]
    assert tables.headlines(tables.results_records(results_table(rows)))[0].startswith(
        "synthetic, test: first_pass makes 20"
    )


# -- figures


def test_the_frontier_is_what_no_other_system_beats_in_both() -> None:
    (row,) = lines_of([result("test", "first_pass", "wer", 0.2)])
    points = [pareto.Point(row, cost, rate) for cost, rate in ((1, 20), (2, 15), (3, 17), (4, 15), (2, 18), (5, 10))]
    assert [(p.cost, p.rate) for p in pareto.frontier(points)] == [(1, 20), (2, 15), (5, 10)]


def test_numbers_on_a_crowded_frontier_do_not_stand_on_each_other_and_the_best_has_one() -> None:
    costs = {f"system_{n:02}": 1.0 + 0.5 * (n // 4) + 0.001 * n for n in range(20)}
    rows = lines_of([result("test", s, "wer", 0.4 - 0.001 * n) for n, s in enumerate(costs)])
    chart = pareto.against(rows, {(rows[0].corpus, s): cost for s, cost in costs.items()}, "costs", "seconds", "s")
    assert chart is not None
    marks = [text.xy for text in chart.figure.axes[0].texts]
    assert [round(x, 3) for x, _ in marks] == [costs[f"system_{n:02}"] for n in (3, 7, 11, 15, 19)]
    assert "On the frontier, among others: 1 system_03, 2 system_07," in chart.caption


def test_calls_are_counted_per_utterance_over_all_steps_of_a_system() -> None:
    rows = lines_of([result("test", s, "wer", 0.2, num_utterances=50) for s in ("first_pass", "lm_rescoring")])
    cost = {"step": "scores", "table": "scores", "rows": 1, "seconds": {}}
    calls = [(60, "test"), (40, "test"), (999, "dev")]
    receipts = {
        "first_pass": [{**cost, "counters": {}, "split": "test"}],
        "lm_rescoring": [{**cost, "counters": {"llm_calls": number}, "split": split} for number, split in calls],
    }
    chart = pareto.against_calls(rows, receipts)
    assert chart is not None
    assert "N = 50" in chart.caption
    drawn = {
        line.get_label(): np.asarray(line.get_xydata())[0, 0]
        for line in chart.figure.axes[0].lines
        if line.get_marker() != "None"
    }
    assert drawn == {"first_pass": 0.0, "lm_rescoring": 2.0}
    far = {**receipts, "third": [{**cost, "counters": {"llm_calls": 5000}, "split": "test"}]}
    chart = pareto.against_calls([*rows, *lines_of([result("test", "third", "wer", 0.1, num_utterances=50)])], far)
    assert chart is not None
    chart.figure.canvas.draw()
    assert [tick.get_text() for tick in chart.figure.axes[0].get_xticklabels()] == ["0", "10", "100"]
    assert pareto.against_calls(rows, {"first_pass": receipts["first_pass"]}) is None


def test_reliability_is_drawn_from_its_bins_in_order_of_confidence() -> None:
    rows = [
        result("test", "first_pass", "reliability", c - 0.1, condition=[("bin", b), ("mean_confidence", str(c))])
        for b, c in (("01", 0.9), ("00", 0.5))
    ]
    chart = curves.reliability(tables.results_records(results_table(rows)))
    assert chart is not None
    assert np.asarray(chart.figure.axes[0].lines[1].get_xydata()).ravel() == pytest.approx([50, 40, 90, 80])
    assert "N = 200" in chart.caption
    assert curves.reliability([]) is None


def test_list_sizes_draw_every_metric_that_moves_and_none_that_stands_still() -> None:
    rows = []
    for size in (10, 100, 1000):
        for metric, value in {"wer": 0.2 + size / 1e5, "keyword_f1": 0.5, "recall@64": 1 - size / 1e4}.items():
            rows.append(result("test", "keyword_boost", metric, value, condition=[("list_size", str(size))]))
    (chart,) = curves.by_setting(lines_of(rows))
    labels = [axes.get_ylabel() for axes in chart.figure.axes]
    assert labels == ["WER (%)\nlower is better", "recall@64 (%)\nhigher is better"]
    assert chart.figure.axes[0].get_xscale() == "log"


def test_forty_systems_draw_the_reported_split_and_few_curves() -> None:
    rows = lines_of(made_showcase(40, 30).results.to_pylist())
    chart = figures.error_rates(rows)
    assert chart is not None
    assert "(test)" in chart.caption
    assert "(dev)" not in chart.caption
    for each in curves.by_setting(rows):
        assert len(each.figure.axes[0].get_legend_handles_labels()[1]) <= curves.MAX_CURVES


def tuned() -> Tuned:
    utterances = pa.Table.from_pylist(
        [
            {
                "utterance_id": f"u{i}",
                "corpus": "c",
                "split": "dev",
                "audio_uri": "a",
                "start_s": 0.0,
                "reference": "a b",
            }
            for i in range(12)
        ],
        schema=UTTERANCES,
    )
    lists, scores = [], []
    for i in range(12):
        texts = ("a x", "a b")
        own = [Score(source="ctc", kind="log_prob", log_prob=-float(rank)) for rank in range(2)]
        lists.append(
            NBest(
                utterance_id=f"u{i}",
                hypotheses=[Hypothesis(text=t, scores=[s]) for t, s in zip(texts, own, strict=True)],
            )
        )
        scores.append([SourceScores(source="causal_lm", log_probs=[-2.0 - 0.1 * i, -1.0])])
    hypotheses = hypotheses_table(lists)
    table = scores_table([f"u{i}" for i in range(12)], scores)
    errors = NbestErrorsConfig().build()(hypotheses, utterances, costs=Costs())
    config = WeightsConfig(fit_length_bonus=False, num_bootstrap=20)
    fits = config.build()(hypotheses, table, errors, costs=Costs())
    return Tuned(system="lm_rescoring", config=config, fits=fits, tables={"dev": (hypotheses, table, errors)})


def test_a_landscape_is_the_objective_at_every_weight() -> None:
    chart = weight_landscapes(tuned())
    assert chart is not None
    axes = chart.figure.axes[0]
    assert axes.get_title(loc="left") == "Weight landscape of lm_rescoring"
    (stairs,) = [patch for patch in axes.patches if hasattr(patch, "get_data")][:1]
    values = stairs.get_data().values
    assert values[0] == 50.0  # weight 0: the first pass, one wrong word of two everywhere
    assert values[-1] == 0.0  # a large weight: the language model, which is always right
    assert "N = 12 utterances (dev)" in chart.caption
    assert axes.get_legend() is not None


def test_fits_of_several_systems_keep_their_system_s_name() -> None:
    values = fitted_values({"a": made_fits(), "b": made_fits()})
    assert [(value.fit, value.name) for value in values] == [
        ("a", "causal_lm"),
        ("a", "length_bonus"),
        ("b", "causal_lm"),
        ("b", "length_bonus"),
    ]


# -- the page


def test_the_page_of_forty_systems_holds_all_of_them_and_stays_small(showcase: Path) -> None:
    page = (showcase / "index.html").read_text()
    assert len(page.encode()) < 3_500_000
    data = json.loads(re.search(r'id="changes">(.*?)</script>', page, re.DOTALL)[1])  # type: ignore[index]
    assert len(data["systems"]) == 40
    assert len(data["pairs"]) == 40 * 39 // 2
    assert "keyword_boost/list_10000" in page
    assert "By list size" in page


def test_every_figure_has_title_axes_legend_and_number(showcase: Path) -> None:
    page = (showcase / "index.html").read_text()
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", page, re.DOTALL)
    assert len(captions) >= 7
    for caption in captions:
        assert re.search(r"N( = \d| by value)", caption), caption
    names = set(re.findall(r'id="figure-(\w+)"', page))
    assert {"error_rates", "error_against_cost", "sweep_list_size", "reliability", "seconds_by_step"} <= names
    assert names == {path.stem for path in showcase.glob("*.png")}


def test_embedded_utterances_end_where_the_page_would_grow_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    from ctxasr_ray.report import changes
    from ctxasr_ray.report.comparison import compare

    run = made_showcase(4, 60)
    compared = compare(run.utterances, run.transcripts, normaliser="basic")
    whole = changes.most_changed(compared, directory=Path())
    monkeypatch.setattr(changes, "MAX_BYTES", 5000)
    cut = changes.most_changed(compared, directory=Path())
    assert len(json.dumps(cut.utterances)) < 6000
    assert 0 < len(cut.utterances) < len(whole.utterances)
    assert f"holds the {len(cut.utterances)} most changed of 60" in cut.notes[0]
    assert cut.pairs == whole.pairs
