"""Exact weight search: brute force over all corners, grids, resampling, and the fit's way back into fusion."""

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctxasr_ray.fusion.landscape import landscape
from ctxasr_ray.fusion.line_search import Landscape, TuningSet
from ctxasr_ray.fusion.log_linear import LogLinearConfig
from ctxasr_ray.fusion.objective import Counts, parse_objective
from ctxasr_ray.fusion.scoring import Features
from ctxasr_ray.fusion.weight_search import WeightSearch
from ctxasr_ray.fusion.weights import WeightsConfig
from ctxasr_ray.metrics.error_rate import ErrorCountsConfig
from ctxasr_ray.metrics.nbest_errors import NbestErrorsConfig
from ctxasr_ray.nbest import Hypothesis, NBest, Score, SourceScores, hypotheses_table, scores_table
from ctxasr_ray.schema import FITS, NBEST_ERRORS, UTTERANCES, ContractError, conform
from ctxasr_ray.stage import Costs

WER = "wer|word|basic|all"
F1 = "f1_loss|phrase|basic|keyword"
Floats = npt.NDArray[np.float64]


def random_set(
    seed: int, *, utterances: int = 30, longest: int = 6, dimensions: int = 2, objective: str = WER, ragged: bool = True
) -> TuningSet:
    """Scores that know something of the errors, in lists of 0 to `longest` hypotheses."""
    random = np.random.default_rng(seed)
    lengths = random.integers(0 if ragged else longest, longest + 1, size=utterances)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    terms = parse_objective(objective)
    columns = sum(len(term.columns) for term in terms)
    counts_HM = random.poisson(2.0, size=(offsets[-1], columns)).astype(np.float64)
    values_HD = random.normal(size=(offsets[-1], dimensions)) - 0.5 * counts_HM[:, :1]
    counts = Counts(
        terms,
        counts_HM,
        np.where(lengths[:, None] == 0, 3.0, np.zeros((1, columns))),
        np.full((utterances, len(terms)), 10.0),
    )
    return TuningSet(Features([f"s{d}" for d in range(dimensions)], offsets, np.asfortranarray(values_HD)), counts)


def crossings(tuning_set: TuningSet, axis: int) -> Floats:
    """All positions where any two hypotheses of a list tie when weight `axis` moves and weight 0 is 1."""
    found = []
    offsets, values = tuning_set.features.offsets, tuning_set.features.values
    for begin, end in itertools.pairwise(offsets):
        for i, j in itertools.combinations(range(begin, end), 2):
            if values[i, axis] != values[j, axis]:
                found.append((values[j, 0] - values[i, 0]) / (values[i, axis] - values[j, axis]))
    return np.unique(found)


def bounded(*free: tuple[float, float]) -> Floats:
    return np.array([(1.0, 1.0), *free])


@pytest.mark.parametrize("objective", [WER, F1, f"0.3*{WER} + 0.7*{F1}"])
@pytest.mark.parametrize("low", [-np.inf, 0.0])
@pytest.mark.parametrize("seed", range(6))
def test_in_one_dimension_the_search_equals_brute_force_over_all_corners(seed: int, low: float, objective: str) -> None:
    tuning_set = random_set(seed, objective=objective)
    corners = crossings(tuning_set, 1)
    corners = corners[corners > low]
    edges = np.concatenate([[corners[0] - 1 if low == -np.inf else low], corners, [corners[-1] + 1]])
    middles = (edges[:-1] + edges[1:]) / 2
    brute = np.array([tuning_set.evaluate(np.array([1.0, m])) for m in middles])
    optimum = WeightSearch(tuning_set=tuning_set, bounds=bounded((low, np.inf))).run()
    assert optimum.value == pytest.approx(brute.min(), abs=1e-12)
    # the whole landscape, not its lowest point only
    landscape = WeightSearch(tuning_set=tuning_set, bounds=bounded((low, np.inf))).axis_landscape(np.array([1.0, 0]), 1)
    at = np.searchsorted(landscape.edges, middles, side="right") - 1  # nothing changes beyond the outer edges
    np.testing.assert_allclose(landscape.values[np.clip(at, 0, len(landscape.values) - 1)], brute, atol=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_the_cell_is_the_whole_optimal_stretch_and_the_weight_its_middle(seed: int) -> None:
    tuning_set = random_set(seed)
    optimum = WeightSearch(tuning_set=tuning_set, bounds=bounded((0.0, 5.0))).run()
    cell = optimum.cells[1]
    assert optimum.weights[1] == pytest.approx(cell.centre)
    for position in np.linspace(cell.low, cell.high, 9)[1:-1]:
        assert tuning_set.evaluate(np.array([1.0, position])) == pytest.approx(optimum.value, abs=1e-12)
    for outside in (cell.low - 1e-9, cell.high + 1e-9):
        if 0 < outside < 5:
            assert tuning_set.evaluate(np.array([1.0, outside])) > optimum.value
    assert optimum.flat[1].low <= cell.low
    assert optimum.flat[1].high >= cell.high


def test_separate_optimal_stretches_are_counted_and_the_widest_is_taken() -> None:
    landscape = Landscape(np.array([0.0, 1.0, 2.0, 2.5, 5.0]), np.array([2.0, 1.0, 3.0, 1.0]))
    best, ties = landscape.best()
    assert ties == 2
    assert (best.low, best.high, best.centre) == (2.5, 5.0, 3.75)
    assert landscape.around(1.5, 1.0).high == 2.0
    assert (landscape.around(1.5, 2.0).low, landscape.around(1.5, 3.0).high) == (0.0, 5.0)


@pytest.mark.parametrize("seed", range(10))
def test_no_grid_along_an_axis_finds_less(seed: int) -> None:
    tuning_set = random_set(seed, utterances=200, longest=20, dimensions=4, ragged=False)
    search = WeightSearch(tuning_set=tuning_set, bounds=bounded((0.0, 2.0), (0.0, 2.0), (-2.0, 2.0)))
    weights_D = np.array([1.0, 0.3, 0.2, -0.1])
    for axis in (1, 2, 3):
        grid = []
        for position in np.linspace(search.bounds[axis, 0], search.bounds[axis, 1], 201):
            moved_D = weights_D.copy()
            moved_D[axis] = position
            grid.append(tuning_set.evaluate(moved_D))
        assert search.axis_landscape(weights_D, axis).best()[0].value <= min(grid) + 1e-12


@pytest.mark.parametrize("seed", range(5))
def test_in_many_dimensions_the_search_beats_a_grid_that_descends_along_axes(seed: int) -> None:
    tuning_set = random_set(seed, utterances=200, longest=20, dimensions=4)
    bounds = bounded((0.0, 2.0), (0.0, 2.0), (-2.0, 2.0))
    weights_D = np.array([1.0, 0.0, 0.0, 0.0])
    value = tuning_set.evaluate(weights_D)
    for axis in (1, 2, 3) * 5:
        for position in np.linspace(bounds[axis, 0], bounds[axis, 1], 201):
            moved_D = weights_D.copy()
            moved_D[axis] = position
            if tuning_set.evaluate(moved_D) < value:
                weights_D, value = moved_D, tuning_set.evaluate(moved_D)
    optimum = WeightSearch(tuning_set=tuning_set, bounds=bounds).run()
    assert optimum.value <= value
    assert optimum.value == tuning_set.evaluate(optimum.weights)
    assert (optimum.weights >= bounds[:, 0]).all()
    assert (optimum.weights <= bounds[:, 1]).all()


def test_a_search_is_never_worse_than_the_first_pass_and_repeats_itself() -> None:
    tuning_set = random_set(3, dimensions=3, utterances=100)
    bounds = bounded((0.0, np.inf), (-np.inf, np.inf))
    first, second = (WeightSearch(tuning_set=tuning_set, bounds=bounds, seed=5).run() for _ in range(2))
    assert first.value <= first.start_value
    np.testing.assert_array_equal(first.weights, second.weights)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_a_constant_per_utterance_changes_nothing(seed: int) -> None:
    tuning_set = random_set(seed)
    features = tuning_set.features
    shifts_U = np.random.default_rng(seed).integers(-8, 8, size=(len(features.offsets) - 1, 2)).astype(np.float64)
    whole = np.round(features.values * 64) / 64  # exact in binary, so that ties stay ties
    moved = whole + np.repeat(shifts_U, np.diff(features.offsets), axis=0)
    bounds = bounded((0.0, 4.0))
    first, second = (
        WeightSearch(
            tuning_set=TuningSet(Features(features.names, features.offsets, values), tuning_set.counts),
            bounds=bounds,
        ).axis_landscape(np.array([1.0, 0.0]), 1)
        for values in (whole, moved)
    )
    np.testing.assert_allclose(first.edges, second.edges, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(first.values, second.values)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_reordered_hypotheses_give_the_same_landscape(seed: int) -> None:
    tuning_set = random_set(seed)
    random = np.random.default_rng(seed)
    order = np.concatenate(
        [np.arange(0), *(b + random.permutation(e - b) for b, e in itertools.pairwise(tuning_set.features.offsets))]
    ).astype(int)
    features, counts = tuning_set.features, tuning_set.counts
    mixed = TuningSet(
        Features(features.names, features.offsets, np.asfortranarray(features.values[order])),
        Counts(counts.terms, counts.per_hypothesis[order], counts.constant, counts.references),
    )
    first, second = (
        WeightSearch(tuning_set=t, bounds=bounded((-1.0, 1.0))).axis_landscape(np.array([1.0, 0.0]), 1)
        for t in (tuning_set, mixed)
    )
    np.testing.assert_array_equal(first.edges, second.edges)
    np.testing.assert_array_equal(first.values, second.values)


def test_a_source_in_other_units_gets_the_reciprocal_weight() -> None:
    tuning_set = random_set(1, dimensions=3, utterances=100)
    features = tuning_set.features
    scaled = TuningSet(
        Features(features.names, features.offsets, features.values * np.array([1.0, 4.0, 0.5])), tuning_set.counts
    )
    bounds = bounded((0.0, np.inf), (0.0, np.inf))
    first, second = (WeightSearch(tuning_set=t, bounds=bounds).run() for t in (tuning_set, scaled))
    assert first.value == second.value
    np.testing.assert_allclose(first.weights, second.weights * [1.0, 4.0, 0.5], rtol=1e-6)


def test_a_source_that_says_nothing_keeps_weight_zero() -> None:
    tuning_set = random_set(2, dimensions=3)
    tuning_set.features.values[:, 2] = -1.0
    optimum = WeightSearch(tuning_set=tuning_set, bounds=bounded((0.0, np.inf), (0.0, np.inf))).run()
    assert optimum.weights[2] == 0.0


def test_identical_hypotheses_leave_the_first_pass_alone() -> None:
    tuning_set = random_set(2)
    tuning_set.features.values[:] = -1.0
    optimum = WeightSearch(tuning_set=tuning_set, bounds=bounded((0.0, np.inf))).run()
    assert optimum.value == optimum.start_value
    assert optimum.weights.tolist() == [1.0, 0.0]


def test_lists_with_a_missing_score_keep_their_first_hypothesis() -> None:
    tuning_set = random_set(4, ragged=False)
    begin, end = tuning_set.features.offsets[[3, 4]]
    tuning_set.features.values[end - 1, 1] = np.nan
    tuning_set.counts.per_hypothesis[begin:end] = 0.0
    tuning_set.counts.per_hypothesis[begin] = 1000.0
    landscape = WeightSearch(tuning_set=tuning_set, bounds=bounded((0.0, 9.0))).axis_landscape(np.array([1.0, 0.0]), 1)
    assert landscape.values.min() > 1000.0 / tuning_set.counts.references.sum()


def test_a_fixed_weight_stays_where_it_is() -> None:
    tuning_set = random_set(5, dimensions=3)
    optimum = WeightSearch(tuning_set=tuning_set, bounds=bounded((0.25, 0.25), (0.0, np.inf))).run()
    assert optimum.weights[1] == 0.25
    assert (optimum.cells[1].low, optimum.cells[1].high) == (0.25, 0.25)


def test_f1_is_the_ratio_of_totals_not_a_mean_of_ratios() -> None:
    counts = Counts(
        parse_objective(F1), np.array([[1.0, 0.0, 3.0], [1.0, 2.0, 0.0]]), np.zeros((2, 3)), np.ones((2, 1))
    )
    total = counts.per_hypothesis.sum(0)
    assert counts.value(total, np.ones(1)) == pytest.approx(1 - 2 * 2 / (2 * 2 + 2 + 3))
    assert counts.value(np.zeros(3), np.ones(1)) == 0.0


def test_resampling_keeps_blocks_together_and_covers_the_optimum() -> None:
    tuning_set = random_set(6, utterances=200, longest=10)
    search = WeightSearch(tuning_set=tuning_set, bounds=bounded((0.0, 5.0)))
    optimum = search.run()
    replicates_RD = search.bootstrap(optimum.weights, np.arange(200), 100)
    assert np.quantile(replicates_RD[:, 1], 0.025) <= optimum.weights[1] <= np.quantile(replicates_RD[:, 1], 0.975)
    # one block holds everything: every replicate is the tuning set itself
    whole_RD = search.bootstrap(optimum.weights, np.zeros(200, dtype=np.int64), 5)
    np.testing.assert_allclose(whole_RD, np.tile(optimum.weights, (5, 1)))


def test_a_replicate_is_tuned_as_if_its_utterances_stood_there_twice() -> None:
    tuning_set = random_set(7, utterances=40, ragged=False)
    random = np.random.default_rng(0)
    drawn = random.integers(40, size=40)
    features, counts = tuning_set.features, tuning_set.counts
    rows = np.concatenate([np.arange(*features.offsets[[u, u + 1]]) for u in drawn])
    lengths = np.diff(features.offsets)[drawn]
    repeated = TuningSet(
        Features(features.names, np.concatenate([[0], np.cumsum(lengths)]), np.asfortranarray(features.values[rows])),
        Counts(counts.terms, counts.per_hypothesis[rows], counts.constant[drawn], counts.references[drawn]),
    )
    line = (np.array([1.0, 0.0]), np.array([0.0, 1.0]), 0.0, 4.0)
    expected = repeated.corners(*line).landscape()
    multiplicity_U = np.bincount(drawn, minlength=40).astype(np.float64)
    got = tuning_set.corners(*line).landscape(multiplicity_U)
    np.testing.assert_allclose(got.edges, expected.edges)
    np.testing.assert_allclose(got.values, expected.values)
    assert tuning_set.evaluate(np.array([1.0, 0.7]), multiplicity_U) == pytest.approx(
        repeated.evaluate(np.array([1.0, 0.7]))
    )


# --- the stage -------------------------------------------------------------------------------------------------------


def dev_tables(seed: int = 0, utterances: int = 60) -> tuple[pa.Table, pa.Table, pa.Table]:
    """HYPOTHESES, SCORES and NBEST_ERRORS: an empty list, a failed scorer, a row without reference among them."""
    random = np.random.default_rng(seed)
    nbests, sources, reasons, counts = [], [], [], []
    for u in range(utterances):
        size = 0 if u == 1 else int(random.integers(1, 6))
        errors = random.poisson(1.5, size=size)
        words = random.integers(1, 6, size=size)
        ctc, lm = random.normal(size=(2, size)) - 0.4 * errors - 2 * words
        nbests.append(
            NBest(
                utterance_id=f"u{u}",
                hypotheses=[
                    Hypothesis(text="w " * words[i], scores=(Score(source="ctc", kind="log_prob", log_prob=ctc[i]),))
                    for i in range(size)
                ],
                error_type=None if size else "audio",
                error=None if size else "u.wav: truncated",
            )
        )
        failed = u == 2
        own = SourceScores(source="lm", log_probs=lm.tolist(), eos_log_probs=random.normal(size=size).tolist())
        sources.append([] if failed else [own])
        reasons.append(("model_limit", "too long") if failed else None)
        known = u != 3
        matches = random.integers(0, 3, size=(3, size))
        counts.append(
            {
                "utterance_id": f"u{u}",
                "counts": [
                    {
                        "unit": unit,
                        "normaliser": "basic",
                        "word_class": word_class,
                        "reference_length": 5 if known else None,
                        "errors": errors.tolist() if known and word_class == "all" else None,
                        "num_units": words.tolist(),
                        "true_positives": matches[0].tolist() if known and word_class == "keyword" else None,
                        "false_positives": matches[1].tolist() if known and word_class == "keyword" else None,
                        "false_negatives": matches[2].tolist() if known and word_class == "keyword" else None,
                    }
                    for unit, word_class in (("word", "all"), ("phrase", "keyword"))
                ],
            }
        )
    ids = [n.utterance_id for n in nbests]
    errors_table = conform(pa.Table.from_pylist(counts, schema=NBEST_ERRORS), "nbest_errors")
    return hypotheses_table(nbests), scores_table(ids, sources, reasons), errors_table


def utterances(ids: list[str], split: str = "dev") -> pa.Table:
    rows = [
        {
            "utterance_id": name,
            "corpus": "made",
            "split": split,
            "speaker_id": f"speaker{i % 12}",
            "audio_uri": "x.wav",
            "start_s": 0.0,
        }
        for i, name in enumerate(ids)
    ]
    return conform(pa.Table.from_pylist(rows, schema=UTTERANCES), "utterances")


def fit(*tables: pa.Table, costs: Costs | None = None, **fields: Any) -> pa.Table:
    config = WeightsConfig(normaliser="basic", **{"objective": WER, "num_bootstrap": 20, **fields})
    result = config.build()(*tables, costs=costs or Costs())
    assert result.schema == FITS
    return result


@pytest.mark.filterwarnings("ignore:fewer than 10 speakers")
@pytest.mark.parametrize("objective", [WER, F1, f"0.5*{WER} + 2*{F1}"])
def test_a_fit_taken_into_fusion_gives_the_errors_that_it_promised(objective: str) -> None:
    hypotheses, scores, nbest_errors = dev_tables()
    fits = fit(hypotheses, scores, nbest_errors, objective=objective)
    promised = fits.to_pylist()[0]
    result = LogLinearConfig(normaliser="basic").build()(hypotheses, scores, fits, costs=Costs())
    chosen = result["hypothesis_index"].to_pylist()
    totals = np.zeros(5)  # errors, reference words, true positives, false positives, false negatives
    for index, row in zip(chosen, nbest_errors.to_pylist(), strict=True):
        words, keywords = row["counts"]
        if words["reference_length"] is None:
            continue
        totals[1] += words["reference_length"]
        if index is None:  # nothing was recognised: every word and every phrase is missing
            totals += [words["reference_length"], 0, 0, 0, keywords["reference_length"]]
            continue
        totals[0] += words["errors"][index]
        totals[2:] += [keywords[k][index] for k in ("true_positives", "false_positives", "false_negatives")]
    wer, f1_loss = totals[0] / totals[1], 1 - 2 * totals[2] / (2 * totals[2] + totals[3] + totals[4])
    expected = {WER: wer, F1: f1_loss}.get(objective, 0.5 * wer + 2 * f1_loss)
    assert promised["objective_value"] == pytest.approx(expected, abs=1e-12)
    assert result["num_unscored"].to_pylist()[2] == 1
    assert chosen[2] == 0


@pytest.mark.filterwarnings("ignore:fewer than 10 speakers")
def test_the_fit_says_what_it_is() -> None:
    costs = Costs()
    rows = {row["name"]: row for row in fit(*dev_tables(), costs=costs).to_pylist()}
    assert list(rows) == ["weights", "weights/flat", "weights/ties", "weights/bootstrap"]
    main = rows["weights"]
    values, interval = dict(main["values"]), dict(main["interval"])
    assert list(values) == ["ctc", "lm", "length_bonus"]
    assert values["ctc"] == 1.0
    for name, value in values.items():
        assert interval[name][0] <= value <= interval[name][1]
        assert np.isfinite(interval[name]).all()
    assert main["objective"] == WER
    assert main["split"] == "dev"
    assert main["parents"] == ["hypotheses", "scores:lm", "nbest_errors"]
    assert sum(row["num_configurations"] for row in rows.values()) == 1
    assert costs.counters["unmovable"] == 2
    assert costs.counters["num_lines"] > 0


def test_speakers_are_resampled_as_blocks() -> None:
    tables = dev_tables()
    ids = tables[0]["utterance_id"].to_pylist()
    costs = Costs()
    fit(*tables, utterances(ids), costs=costs)
    assert costs.counters["num_blocks"] == 12


def test_test_data_are_refused_for_tuning() -> None:
    # trap 12: tuned on test
    with pytest.raises(ValueError, match="never on what is reported"):
        WeightsConfig(splits=("dev", "test"))
    tables = dev_tables()
    with pytest.raises(ValueError, match=r"splits \['test'\]"):
        fit(*tables, utterances(tables[0]["utterance_id"].to_pylist(), split="test"))


@pytest.mark.filterwarnings("ignore:fewer than 10 speakers")
def test_bounds_hold_and_free_the_end_of_sequence() -> None:
    row = fit(*dev_tables(), bounds={"lm": (0.2, 0.4), "lm/eos": (0.0, 0.0)}).to_pylist()[0]
    values = dict(row["values"])
    assert list(values) == ["ctc", "lm", "lm/eos", "length_bonus"]
    assert 0.2 <= values["lm"] <= 0.4
    assert values["lm/eos"] == 0.0


@pytest.mark.filterwarnings("ignore:fewer than 10 speakers")
def test_any_source_may_be_the_fixed_one() -> None:
    values = dict(fit(*dev_tables(), fixed_source="lm", fit_length_bonus=False).to_pylist()[0]["values"])
    assert list(values) == ["lm", "ctc"]
    assert values["lm"] == 1.0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"objective": "wer|word|basic|rare"}, r"no utterance has the counts 'word\|basic\|rare'"),
        ({"bounds": {"llm": (0.0, 1.0)}}, r"bounds are given for \['llm'\]"),
        ({"fixed_source": "llm"}, "'llm' is no source"),
    ],
    ids=["objective", "bounds", "fixed source"],
)
def test_names_that_no_table_has_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, ContractError), match=message):
        fit(*dev_tables(), **fields)


@pytest.mark.parametrize("bounds", [(1.0, 0.0), (0.0, float("inf")), (float("nan"), None)])
def test_bounds_without_room_or_end_are_refused_at_construction(bounds: tuple[float, float | None]) -> None:
    with pytest.raises(ValueError, match="bounds of 'lm'"):
        WeightsConfig(bounds={"lm": bounds})


def test_short_names_of_objectives_are_written_out() -> None:
    terms = parse_objective("0.5*wer + keyword_f1_loss + 2*cer|character|mandarin|all", "basic")
    assert [str(term) for term in terms] == [
        "0.5*wer|word|basic|all",
        "f1_loss|phrase|basic|keyword",
        "2.0*cer|character|mandarin|all",
    ]
    assert parse_objective(" + ".join(map(str, terms))) == terms


@pytest.mark.parametrize(
    "objective",
    [
        "mer",
        "",
        "wer wer",
        "wer|word|basic",
        "mer|word|basic|all",
        "wer|character|basic|all",
        "wer|word|basic|all, f1",
        "x*wer|word|basic|all",
    ],
)
def test_objectives_of_another_form_are_refused_at_construction(objective: str) -> None:
    with pytest.raises(ValueError, match="objective"):
        WeightsConfig(objective=objective)


def test_errors_of_other_hypotheses_are_refused() -> None:
    hypotheses, scores, nbest_errors = dev_tables()
    other = dev_tables(seed=1)[2]
    with pytest.raises(ContractError, match=r"errors for \d hypotheses|num_units for \d hypotheses"):
        fit(hypotheses, scores, other)
    with pytest.raises(ContractError, match="ids differ from hypotheses"):
        fit(hypotheses, scores, nbest_errors.take(list(range(59, -1, -1))))


@pytest.mark.filterwarnings("ignore:fewer than 10 speakers")
def test_the_landscape_of_a_fit_is_lowest_at_the_fit() -> None:
    tables = dev_tables()
    config = WeightsConfig(normaliser="basic", objective=WER, num_bootstrap=0)
    fits = config.build()(*tables, costs=Costs())
    main = fits.to_pylist()[0]
    for name in ("lm", "length_bonus"):
        line = landscape(config, fits, name, *tables)
        here = int(np.searchsorted(line.edges, dict(main["values"])[name], side="right")) - 1
        assert line.values[here] == pytest.approx(main["objective_value"])
        assert line.values[here] == line.values.min()
        assert dict(main["interval"])[name] == pytest.approx(line.edges[here : here + 2].tolist())
    with pytest.raises(ValueError, match=r"'ctc' is no free value.*choose one of \['lm', 'length_bonus'\]"):
        landscape(config, fits, "ctc", *tables)
    with pytest.raises(ValueError, match=r"weighs \['ctc', 'lm', 'length_bonus'\], and the tables"):
        landscape(config, fits, "ctc", tables[0], tables[2])


def test_many_evaluations_at_once_equal_single_ones() -> None:
    tuning_set = random_set(8, dimensions=3)
    begin, end = tuning_set.features.offsets[[3, 4]]
    tuning_set.features.values[begin:end, 2] = np.nan
    weights_BD = np.random.default_rng(0).normal(size=(70, 3))
    weights_BD[::7, 2] = 0.0
    expected = [tuning_set.evaluate(weights_D) for weights_D in weights_BD]
    assert tuning_set.evaluate_many(weights_BD).tolist() == expected


@pytest.mark.filterwarnings("ignore:fewer than 10 speakers")
def test_the_line_from_lists_to_error_counts_keeps_the_promise() -> None:
    hypotheses, scores, _ = dev_tables()
    ids = hypotheses["utterance_id"].to_pylist()
    rows = utterances(ids).to_pylist()
    for u, row in enumerate(rows):
        row["reference"] = None if u == 4 else "w w w"
    known = conform(pa.Table.from_pylist(rows, schema=UTTERANCES), "utterances")
    nbest_errors = NbestErrorsConfig(normaliser="basic").build()(hypotheses, known, costs=Costs())
    fits = fit(hypotheses, scores, nbest_errors, known, num_bootstrap=0)
    transcripts = LogLinearConfig(normaliser="basic").build()(hypotheses, scores, fits, costs=Costs())
    counts = ErrorCountsConfig(normaliser="basic").build()(known, transcripts, costs=Costs()).to_pylist()
    words = [c for row in counts for c in row["counts"] if c["unit"] == "word"]
    errors = sum(c["substitutions"] + c["deletions"] + c["insertions"] for c in words)
    assert fits["objective_value"][0].as_py() == pytest.approx(errors / sum(c["reference_length"] for c in words))


def test_a_dev_set_without_references_is_refused() -> None:
    hypotheses, scores, nbest_errors = (table.slice(3, 1) for table in dev_tables())
    with pytest.raises(ValueError, match="none of the 1 utterances has a reference"):
        fit(hypotheses, scores, nbest_errors)
