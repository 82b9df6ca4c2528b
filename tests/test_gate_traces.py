"""What the gate did at each token: the search's own numbers, read back as a frame."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tiny_fusion
import tiny_seq2seq
import torch
from test_first_pass_attention import recordings, utterances  # noqa: F401  (fixture)
from test_first_pass_ctc_fused import Sick

from ctxasr_ray import layout
from ctxasr_ray.cli import main
from ctxasr_ray.experiment import Branch, Experiment
from ctxasr_ray.first_pass.attention import AttentionConfig
from ctxasr_ray.first_pass.attention_fused import AttentionFusedConfig
from ctxasr_ray.first_pass.gate_traces import TOP, GateTraceConfig
from ctxasr_ray.first_pass.phrase_copy import PhraseCopyConfig
from ctxasr_ray.nbest import read_nbest
from ctxasr_ray.recipes.showcase import showcase
from ctxasr_ray.report import frames
from ctxasr_ray.report.columns import GATE_TRACE
from ctxasr_ray.schema import ContractError
from ctxasr_ray.scorers.causal_lm import CausalLmConfig
from ctxasr_ray.stage import Costs

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> AttentionFusedConfig:
    folder = tmp_path_factory.mktemp("traced")
    made = tiny_seq2seq.make("whisper", folder / "asr", ends_like="o")
    lm = tiny_fusion.make_lm(folder / "lm", tiny_seq2seq.tokenizer())
    recogniser = AttentionConfig(model=str(made), beam_size=6, num_hypotheses=4, max_tokens=20, batch_size=4)
    return AttentionFusedConfig(first_pass=recogniser, lm=CausalLmConfig(model=str(lm), prompt="a b"))


def traces(config: AttentionFusedConfig, table: pa.Table) -> tuple[pa.Table, list[list[dict[str, Any]]]]:
    """The lists of a search, and what the gate did at the tokens of their 1-best."""
    lists = config.build()(table, costs=Costs())
    found = GateTraceConfig(search=config).build()(table, lists, costs=Costs())
    return lists, [[json.loads(one) for one in row] for row in found["traces"].to_pylist()]


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"min_weight": 0.4},
        {"leader": "lm"},
        {"uncertainty": "margin", "temperature": 0.7, "lm_temperature": 1.3},
        {"min_weight": 0.5, "score_hypotheses": False},
    ],
    ids=str,
)
def test_fused_log_probs_add_up_to_what_the_search_ranked_by(
    config: AttentionFusedConfig,
    recordings: list[str],  # noqa: F811
    change: dict[str, Any],
) -> None:
    searched = replace(config, **change)
    lists, rows = traces(searched, utterances([*recordings, "nowhere.wav"]))
    assert rows.pop() == []
    for row, nbest in zip(rows, read_nbest(lists), strict=False):
        best = nbest.hypotheses[0]
        assert [one["token_id"] for one in row][: len(best.token_ids or ())] == best.token_ids
        assert sum(one["fused_log_prob"] for one in row) == pytest.approx(best.search_score, abs=1e-4)
        for one in row:
            assert_one_decision(one, searched.min_weight)


def assert_one_decision(one: dict[str, Any], min_weight: float) -> None:
    """A token's numbers agree among themselves."""
    p, q = np.exp(one["recogniser_log_prob"]), np.exp(one["lm_log_prob"])
    leader, helper = (q, p) if one["leader"] == "lm" else (p, q)
    w, open_w = one["w"], 1 / (1 + np.exp(-one["u"])) - 0.5
    assert w == pytest.approx(open_w if open_w >= min_weight else 0.0, abs=1e-6)
    assert one["lm_asked"] == (w > 0 or one["leader"] == "lm")
    assert np.exp(one["fused_log_prob"]) == pytest.approx((leader + w * helper) / (1 + w), rel=1e-4)
    for name in ("recogniser", "lm", "fused"):
        tops, rank = one[f"{name}_top"], one[f"{name}_rank"]
        probabilities = [probability for _, probability in tops]
        assert len(tops) == TOP
        assert probabilities == sorted(probabilities, reverse=True)
        if rank <= TOP:
            assert tops[rank - 1] == [one["token"], pytest.approx(np.exp(one[f"{name}_log_prob"]), rel=1e-5)]
        else:
            assert np.exp(one[f"{name}_log_prob"]) <= probabilities[-1]


def test_a_trace_tells_the_text_before_the_word_and_the_end(
    config: AttentionFusedConfig,
    recordings: list[str],  # noqa: F811
) -> None:
    lists, rows = traces(config, utterances(recordings))
    num_ended = 0
    for row, nbest in zip(rows, read_nbest(lists), strict=True):
        best = nbest.hypotheses[0]
        tokens = best.token_ids or ()
        ended = len(tokens) < config.first_pass.max_tokens
        num_ended += ended
        assert len(row) == len(tokens) + ended, "the search did not reach the end of a text that it had to leave"
        assert row[0]["text"] == ""
        assert best.text.startswith(row[-1]["text"])
        if ended:
            assert (row[-1]["text"], row[-1]["token_id"], row[-1]["word"]) == (best.text, tiny_seq2seq.END, None)
        words = [-1 if one["word"] is None else one["word"] for one in row]
        assert words[: len(tokens)] == list(best.token_words or ())
    assert num_ended


def test_an_utterance_whose_search_had_no_lm_has_no_gate(
    config: AttentionFusedConfig,
    recordings: list[str],  # noqa: F811
) -> None:
    table = utterances(recordings[:2])
    lists = config.build()(table, costs=Costs())
    built = GateTraceConfig(search=config).build()
    built._find._host.lm.head = Sick(built._find._host.lm.head)  # type: ignore[attr-defined]
    found = built(table, lists, costs=Costs())
    assert found["traces"].to_pylist() == [[], []]
    assert found["error_type"].to_pylist() == [None, None]
    assert "searched without causal_lm: the model gave a log-prob of nan" in found["error"][0].as_py()


def test_what_has_no_gate_to_see_is_refused_in_words(
    config: AttentionFusedConfig,
    recordings: list[str],  # noqa: F811
) -> None:
    for change, message in (
        ({"fusion": "shallow"}, "fusion is 'shallow', which has no gate"),
        ({"opened_by": "best_row", "min_weight": 0.2}, "depends on other rows of the beam"),
    ):
        with pytest.raises(ValueError, match=message):
            GateTraceConfig(search=replace(config, **change))  # type: ignore[arg-type]
    for name, message in (("nobody", "there is no list 'nobody'"), ("first_pass", "comes from ctc, which has no gate")):
        with pytest.raises(ValueError, match=message):
            layout.line(replace(showcase(), traces=(name,)))
    lists = pa.Table.from_pylist([{"utterance_id": "u0", "hypotheses": [{"text": "a", "scores": []}]}])
    with pytest.raises(ContractError, match="the 1-best has no token_ids"):
        GateTraceConfig(search=config).build()(utterances(recordings[:1]), lists, costs=Costs())


def test_both_grains_are_traced_by_the_gate_inside() -> None:
    line = layout.line(replace(showcase(), traces=("multi_grained/list_100", "gated_fusion")))
    found = {step.name: step for step in line.steps if step.config.WRITES == "traces"}
    assert list(found) == ["traces_multi_grained/list_100", "traces_gated_fusion"]
    copying = line.lists["multi_grained/list_100"]
    assert isinstance(copying.config, PhraseCopyConfig)
    assert found["traces_multi_grained/list_100"].config == GateTraceConfig(search=copying.config.search)  # type: ignore[arg-type]
    assert found["traces_gated_fusion"].inputs == (line.corpus, line.lists["gated_fusion"])
    assert not [step for step in layout.line(showcase()).steps if step.config.WRITES == "traces"]


def gated() -> Experiment:
    """The showcase's gated fusion with the shipped models, and the same beside a CTC head."""
    shown = showcase()
    first_pass = shown.branches["gated_fusion"].nbest
    assert isinstance(first_pass, AttentionFusedConfig)
    joint = replace(first_pass.first_pass, source="joint", ctc_weight=0.3)
    return Experiment(
        first_pass=replace(first_pass, min_weight=0.1),
        synthetic=shown.synthetic,
        branches={"joint": Branch(nbest=replace(first_pass, first_pass=joint))},
    )


def test_a_run_keeps_traces_on_request_and_a_frame_reads_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("espeakng_loader")
    monkeypatch.chdir(tmp_path)
    words = ["evaluate", "test_gate_traces:gated", "--root", "run", "--executor", "inline", "--num-replicates", "10"]
    words += ["--synthetic.num-dev", "0", "--synthetic.num-test", "3", "--traces", "first_pass", "joint"]
    assert main(words) == 0
    seen = frames.gate_traces("run")
    assert list(seen.columns) == list(GATE_TRACE) == list(seen.attrs["columns"])
    assert set(seen["step"]) == {"traces_first_pass", "traces_joint"}
    assert seen["lm_asked"].mean() < 1
    sums = seen.groupby(["step", "utterance_id"])["fused_log_prob"].sum()
    for list_name in ("first_pass", "joint"):
        for _, row in frames.table("run", list_name).iterrows():
            best = row["hypotheses"][0]
            total, scores = sums[f"traces_{list_name}", row["utterance_id"]], {s["source"]: s for s in best["scores"]}
            if list_name == "joint":
                total = 0.7 * total + 0.3 * scores["joint_ctc"]["log_prob"]
            assert total == pytest.approx(best["search_score"], abs=1e-4)
