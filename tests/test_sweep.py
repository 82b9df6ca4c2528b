"""Sweeps: axes are fields, trials share tables, dev decides, a kill costs nothing that was committed."""

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ctxasr_ray import sweep
from ctxasr_ray.axes import Axis, grid, only, override, parse_axes
from ctxasr_ray.distributed.tuner import Range, tune
from ctxasr_ray.experiment import Branch, asset
from ctxasr_ray.first_pass.ctc import CtcConfig
from ctxasr_ray.recipes.evaluation import keyword_methods, quickstart
from ctxasr_ray.storage.store import Shard
from ctxasr_ray.sweep import Outcome, SweepConfig
from ctxasr_ray.sweep_command import say_failed

EXPERIMENT = replace(
    quickstart(), branches={"first_pass/wide": Branch(nbest=CtcConfig(model=asset("ctc"), source="ctc_wide"))}
)


@pytest.mark.parametrize(
    ("axis", "expected"),
    [
        ("first_pass.beam_size=100, 200", Axis("first_pass.beam_size", (100, 200))),
        ("first_pass.blank_skip_prob=0.99,None", Axis("first_pass.blank_skip_prob", (0.99, None))),
        ("branches.first_pass/wide.nbest.beam_size=50,60", Axis("branches.first_pass/wide.nbest.beam_size", (50, 60))),
        ("first_pass.beam_size=100..200", Axis("first_pass.beam_size", (), 100, 200, True)),
        ("first_pass.beam_threshold=5..20.5", Axis("first_pass.beam_threshold", (), 5, 20.5, False)),
    ],
)
def test_an_axis_is_any_field_of_the_experiment(axis: str, expected: Axis) -> None:
    assert parse_axes(EXPERIMENT, [axis]) == (expected,)


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        ([], "search space is empty"),
        (["first_pass.beam_size"], "has no values"),
        (["first_pass.beam_size="], "has no values"),
        (["first_pass.beam_sise=1,2"], "Did you mean 'beam_size'"),
        (["first_pas.beam_size=1,2"], "Did you mean 'first_pass'"),
        (["first_pass.beam_size.more=1,2"], "it is a plain value"),
        (["first_pass.beam_size=100,wide"], "got 'wide', expected int"),
        (["first_pass.beam_threshold=1,nan"], "got 'nan', expected float"),
        (["first_pass.beam_size=200..100"], "expected a lower and a higher number"),
        (["first_pass.source=a..b"], "is no number"),
        (["first_pass.beam_size=100,200", "first_pass.beam_size=300"], "stand twice"),
        (["scorers.0.utterances_per_forward=1,2"], "changes no number"),
        (["system=lm_rescoring,first_pass/wide,union"], "'union' is none of this recipe's"),
        (["system=lm_rescorin"], "Did you mean 'lm_rescoring'"),
    ],
)
def test_an_axis_that_means_nothing_is_refused_in_words(axes: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_axes(EXPERIMENT, axes)


def test_a_grid_holds_every_combination_once() -> None:
    axes = parse_axes(EXPERIMENT, ["first_pass.beam_size=100,200", "first_pass.beam_threshold=5,10,15"])
    found = grid(axes)
    assert len({tuple(setting.values()) for setting in found}) == len(found) == 6
    changed = override(EXPERIMENT, found[-1])
    assert isinstance(changed.first_pass, CtcConfig)
    assert (changed.first_pass.beam_size, changed.first_pass.beam_threshold) == (200, 15.0)
    assert changed.branches == EXPERIMENT.branches
    with pytest.raises(ValueError, match="which a grid cannot hold"):
        grid(parse_axes(EXPERIMENT, ["first_pass.beam_size=100..200"]))


def test_a_trial_runs_what_its_system_needs_and_nothing_else() -> None:
    axes = parse_axes(EXPERIMENT, ["system=lm_rescoring,first_pass/wide", "first_pass.beam_size=100,200"])
    rescored, *_, wide = (override(EXPERIMENT, setting) for setting in grid(axes))
    assert rescored.branches == {}
    assert rescored.scorers == EXPERIMENT.scorers
    assert list(wide.branches) == ["first_pass/wide"]
    assert wide.scorers == ()
    assert wide.first_pass.beam_size == 200
    methods = keyword_methods()
    cut = only(methods, "keyword_candidates")
    assert list(cut.branches) == ["keyword_candidates"], "the first pass that it is made of stays"
    assert cut.branches["keyword_candidates"].rescorings == {}
    assert list(only(methods, "keyword_candidates/rescored").branches["keyword_candidates"].rescorings) == [
        "keyword_candidates/rescored"
    ]


def shard(name: str, split: str) -> Shard:
    return Shard(name=name, corpus="c", split=split, num_rows=1, audio_s=1.0, uri=name)


def test_rungs_read_ever_more_dev_shards_and_never_test() -> None:
    shards = [*(shard(f"dev{i}", "dev") for i in range(8)), shard("test0", "test")]
    found = sweep.rungs(SweepConfig(axes=("x",), rungs=(0.2, 0.5)), shards)
    assert [len(rung) for rung in found] == [2, 4, 8]
    assert {s.split for rung in found for s in rung} == {"dev"}
    for shares in ((0.5, 0.2), (0.0,), (1.0,)):
        with pytest.raises(ValueError, match="growing shares"):
            sweep.rungs(SweepConfig(axes=("x",), rungs=shares), shards)
    with pytest.raises(ValueError, match="tunes on dev"):
        sweep.rungs(SweepConfig(axes=("x",)), shards[-1:])


def outcome(wer: float, rtf: float, **fields: Any) -> Outcome:
    return Outcome({"x": wer}, {"wer": wer, "real_time_factor": rtf}, **{"is_complete": True, **fields})


def test_the_front_holds_what_no_other_setting_beats() -> None:
    outcomes = [outcome(0.2, 1.0), outcome(0.1, 2.0), outcome(0.2, 2.0), outcome(0.1, 2.0), outcome(0.0, 0.0)]
    outcomes[4] = replace(outcomes[4], is_complete=False)
    assert sweep.pareto(outcomes, ("wer", "real_time_factor")) == [True, True, False, True, False]
    assert sweep.best(outcomes, "wer") is outcomes[1], "of equal ones the first; a stopped one never"
    with pytest.raises(ValueError, match="no trial finished; the first failed with: out of memory"):
        sweep.best([outcome(0.1, 1.0, error="out of memory")], "wer")


def one_by_one(directory: Path, num_rungs: int) -> dict[str, Any]:
    """Options of `tune` for a grid whose trials run one after another."""
    search = {"search": "grid", "num_trials": 0, "metric": "wer", "num_rungs": num_rungs, "seed": 1}
    place = {"directory": directory, "name": "s", "address": None, "max_concurrent": 1}
    return {**search, **place, "num_cpus": 1.0, "is_inline": True}


@pytest.mark.slow
def test_tune_stops_the_worse_half_and_a_second_call_repeats_nothing(tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    calls.mkdir()

    def trial(setting: Any) -> Any:
        for rung in (1, 2, 3):
            (calls / f"{setting['x']}-{rung}").touch()
            yield {"wer": abs(setting["x"] - 5) / rung}

    options = one_by_one(tmp_path / "state", num_rungs=3)
    found = tune(trial, [{"x": x} for x in (4, 5, 9, 1)], **options)
    assert {t.setting["x"]: t.num_reports for t in found}[5] == 3
    assert min(t.num_reports for t in found) < 3
    assert min(found, key=lambda t: t.figures["wer"]).setting == {"x": 5}
    for path in calls.iterdir():
        path.unlink()
    again = tune(trial, [{"x": x} for x in (4, 5, 9, 1)], **options)
    assert [t.setting for t in again] == [t.setting for t in found]
    assert not list(calls.iterdir())


@pytest.mark.slow
def test_a_setting_that_fails_is_named_in_its_own_words_and_tried_again(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def trial(setting: Any) -> Any:
        if setting["x"] == 2 and not (tmp_path / "mended").exists():
            raise ValueError("the model is gone.\nPut it back.")
        if setting["x"] == 3 and not (tmp_path / "mended").exists():
            os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does for memory
        yield {"wer": float(setting["x"])}

    options = one_by_one(tmp_path / "state", num_rungs=1)
    one, two, three = tune(trial, [{"x": x} for x in (1, 2, 3)], **options)
    assert (one.figures["wer"], one.error) == (1.0, None)
    assert two.error == "the model is gone.\nPut it back."
    assert three.error == "its process was killed from outside (most often for memory) or crashed in a library."
    outcomes = [Outcome(each.setting, each.figures, each.error is None, each.error) for each in (one, two, three)]
    capfd.readouterr()
    console = Console(stderr=True, width=200)
    assert say_failed(outcomes, console) == 1
    said = capfd.readouterr().err
    assert "2 of 3 settings failed, so the choice is among the others:" in said
    assert "x 2: the model is gone." in said
    assert say_failed(outcomes[:1], console) == 0
    (tmp_path / "mended").touch()
    assert [each.error for each in tune(trial, [{"x": x} for x in (1, 2, 3)], **options)] == [None] * 3


@pytest.mark.slow
def test_optuna_draws_within_the_ranges(tmp_path: Path) -> None:
    found = tune(
        lambda setting: [{"wer": (setting["a"] - 0.5) ** 2 + setting["n"]}],
        {"a": Range(0.0, 1.0, False), "n": Range(1, 3, True), "kind": ["x", "y"]},
        **{"search": "optuna", "num_trials": 5, "metric": "wer", "num_rungs": 1, "max_concurrent": 2},
        **{"num_cpus": 1.0, "is_inline": False, "seed": 1, "directory": tmp_path / "state", "name": "s"},
        address=None,
    )
    assert len(found) == 5
    assert all(0 <= t.setting["a"] <= 1 and t.setting["n"] in (1, 2, 3) and t.setting["kind"] in "xy" for t in found)
