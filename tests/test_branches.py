"""Experiments with several N-best lists: every list has its 1-best, its oracle and its own rescorings."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_speech_lm import saved_speech_lm

from ctxasr_ray import layout
from ctxasr_ray.candidates.top import TopConfig
from ctxasr_ray.candidates.union import UnionConfig
from ctxasr_ray.cli import main
from ctxasr_ray.experiment import Branch, Experiment, Rescoring, asset
from ctxasr_ray.first_pass.ctc import CtcConfig
from ctxasr_ray.fusion.weights import WeightsConfig
from ctxasr_ray.models.checkpoint import fingerprint
from ctxasr_ray.models.speech_lm import QUANTISER
from ctxasr_ray.models.speech_units import Quantiser
from ctxasr_ray.nbest import Hypothesis, NBest, hypotheses_table, read_nbest
from ctxasr_ray.recipes.evaluation import quickstart
from ctxasr_ray.scorers.causal_lm import CausalLmConfig
from ctxasr_ray.scorers.speech_lm import SpeechLmConfig
from ctxasr_ray.scorers.speech_units import SpeechUnitsConfig
from ctxasr_ray.stage import Costs

LM = CausalLmConfig(model=asset("lm"))
FAST = WeightsConfig(num_bootstrap=0)


def branched() -> Experiment:
    """Two searches of one model, their union, and lists of two lengths rescored."""
    main_pass = CtcConfig(model=asset("ctc"), beam_size=8, num_hypotheses=6)
    narrow = CtcConfig(model=asset("ctc"), beam_size=2, num_hypotheses=2, source="ctc_narrow")
    return replace(
        quickstart(),
        first_pass=main_pass,
        weights=FAST,
        rescorings={"lm_rescoring/n2": Rescoring(scorers=(LM,), weights=FAST, num_hypotheses=2)},
        branches={
            "first_pass/narrow": Branch(nbest=narrow),
            "union": Branch(
                nbest=UnionConfig(own_scores="record"),
                of=("first_pass", "first_pass/narrow"),
                rescorings={"lm_rescoring/union": Rescoring(scorers=(LM,), fixed_weights={"causal_lm": 1})},
            ),
        },
    )


def test_every_list_has_its_best_its_oracle_and_its_rescorings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("espeakng_loader")
    monkeypatch.chdir(tmp_path)
    words = ["evaluate", "test_branches:branched", "--root", "run", "--json", "--executor", "inline"]
    words += ["--synthetic.num-dev", "5", "--synthetic.num-test", "5", "--num-replicates", "100"]
    assert main(words) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    wer = {r["system"]: r["value"] for r in records if (r["metric"], r["split"]) == ("wer", "test")}
    expected = ["first_pass", "oracle", "oracle/compositional", "lm_rescoring", "lm_rescoring/n2"]
    expected += ["first_pass/narrow", "oracle/narrow", "oracle/narrow/compositional"]
    assert list(wer) == [*expected, "union", "oracle/union", "oracle/union/compositional", "lm_rescoring/union"]
    for of in ("", "/narrow", "/union"):
        assert wer[f"oracle{of}/compositional"] <= wer[f"oracle{of}"]
    assert wer["oracle/union"] <= min(wer["oracle"], wer["oracle/narrow"])
    assert wer["union"] == wer["first_pass"], "the union begins with the best of its first list"
    timed = {r["system"] for r in records if r["metric"] == "real_time_factor"}
    assert timed == {system for system in wer if not system.startswith("oracle")}
    assert (tmp_path / "run" / "report" / "index.html").is_file()


def test_steps_that_two_systems_share_are_run_once() -> None:
    experiment = replace(
        branched(), rescorings={f"lm_rescoring/{x}": Rescoring(scorers=(LM,), weights=FAST) for x in "ab"}
    )
    line = layout.line(experiment)
    assert sum(step.config == LM and step.inputs == (line.lists["first_pass"],) for step in line.steps) == 1
    above = [step.name for step in line.above("lm_rescoring/union")]
    assert sorted(above) == [
        *("first_pass", "first_pass/narrow", "scores_causal_lm_of_union", "transcripts_lm_rescoring/union", "union")
    ]


@pytest.mark.parametrize(
    ("branches", "said"),
    [
        ({"union": Branch(nbest=UnionConfig(), of=("first_pass", "second"))}, "is made of"),
        ({"lm_rescoring": Branch(nbest=CtcConfig(model=asset("ctc")))}, "stand more than once"),
        ({"first_pass": Branch(nbest=CtcConfig(model=asset("ctc")))}, "stands twice"),
    ],
)
def test_a_tangled_experiment_is_refused(branches: dict[str, Branch], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        layout.line(replace(branched(), branches=branches))


def test_the_first_hypotheses_of_each_list_are_kept() -> None:
    lists = [
        NBest(utterance_id="a", hypotheses=[Hypothesis(text=t) for t in "xyz"]),
        NBest(utterance_id="b", hypotheses=[Hypothesis(text="x")]),
        NBest(utterance_id="c", error_type="audio", error="c.wav: gone"),
    ]
    costs = Costs()
    top = TopConfig(num_hypotheses=2).build()(hypotheses_table(lists), costs=costs)
    kept = read_nbest(top)
    assert [[h.text for h in nbest.hypotheses] for nbest in kept] == [["x", "y"], ["x"], []]
    assert kept[2].error == "c.wav: gone"
    assert costs.counters["left_out"] == 1
    with pytest.raises(ValueError, match="at least 1"):
        TopConfig(num_hypotheses=0)


def heard(directory: str) -> Experiment:
    """The lists rescored by a speech-text LM in both orders, and by its text side alone."""
    units = SpeechUnitsConfig(encoder=asset("ctc"), quantiser=f"{directory}/{QUANTISER}")
    first, second = (
        SpeechLmConfig(model=directory, order=order, source=order)
        for order in ("speech_first", "text_first")  # type: ignore[arg-type]  # literals
    )
    return replace(
        branched(),
        scorers=(),
        branches={},
        rescorings={
            "speech_first": Rescoring(scorers=(first,), units=units, weights=FAST),
            "text_first": Rescoring(scorers=(second,), units=units, weights=FAST),
            "text_alone": Rescoring(scorers=(CausalLmConfig(model=directory),), weights=FAST),
        },
    )


def test_a_speech_text_lm_hears_the_units_of_the_corpus(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("espeakng_loader")
    directory, _, _ = saved_speech_lm(tmp_path / "lm", num_units=9)
    Quantiser(
        centroids=np.random.default_rng(0).standard_normal((9, 128)).astype(np.float32),
        encoder=fingerprint(asset("ctc"), None)["model"],
        layer=3,
        seed=0,
        num_frames=9,
    ).save(tmp_path / "lm" / QUANTISER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("test_branches.heard_here", lambda: heard(directory), raising=False)
    words = ["evaluate", "test_branches:heard_here", "--root", "run", "--json", "--executor", "inline"]
    words += ["--synthetic.num-dev", "4", "--synthetic.num-test", "2", "--num-replicates", "100"]
    assert main(words) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    timed = {r["system"]: r["value"] for r in records if (r["metric"], r["split"]) == ("real_time_factor", "test")}
    assert {"speech_first", "text_first", "text_alone"} <= timed.keys()
    line = layout.line(heard(directory))
    assert [step.name for step in line.steps if step.config.WRITES == "units"] == ["units_1"], "made once for both"
    assert "units_1" in [step.name for step in line.above("speech_first")], "its time counts"
    assert "units_1" not in [step.name for step in line.above("text_alone")]


def test_units_of_another_quantiser_than_the_one_beside_the_model_are_refused(tmp_path: Path) -> None:
    directory, _, _ = saved_speech_lm(tmp_path / "lm", num_units=9)
    own = Quantiser(
        centroids=np.zeros((9, 128), np.float32),
        encoder=fingerprint(asset("ctc"), None)["model"],
        layer=3,
        seed=0,
        num_frames=9,
    )
    own.save(tmp_path / "lm" / QUANTISER)
    replace(own, centroids=np.ones((9, 128), np.float32)).save(tmp_path / "other.safetensors")
    units = SpeechUnitsConfig(encoder=asset("ctc"), quantiser=str(tmp_path / "other.safetensors"))
    rescoring = Rescoring(scorers=(SpeechLmConfig(model=directory),), units=units, weights=FAST)
    experiment = replace(branched(), branches={}, rescorings={"heard": rescoring})
    with pytest.raises(ValueError, match=r"lm/units\.safetensors.*made with .*other\.safetensors.*Make the units with"):
        layout.line(experiment)
    replace(own, seed=4).save(tmp_path / "other.safetensors")  # the same centroids mean the same sounds
    layout.line(experiment)


def test_a_speech_text_lm_without_units_is_refused_with_the_remedy() -> None:
    deaf = Rescoring(scorers=(SpeechLmConfig(model="anywhere"),))
    with pytest.raises(ValueError, match=r"scores_speech_lm' hears speech units.*Set `units`.*units.safetensors"):
        layout.line(replace(branched(), branches={}, rescorings={"deaf": deaf}))
