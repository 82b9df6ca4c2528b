"""The gate's algebra, and the first pass with an LM inside the attention beam: scores apart, reasons kept."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import soundfile
import tiny_fusion
import tiny_seq2seq
import torch
from test_first_pass_attention import LENGTHS_S, recordings, run, utterances  # noqa: F401  (fixture)
from test_first_pass_ctc_fused import Sick

from ctxasr_ray.first_pass.attention import AttentionConfig
from ctxasr_ray.first_pass.attention_fused import AttentionFusedConfig
from ctxasr_ray.fusion.log_linear import LogLinearConfig
from ctxasr_ray.models.checkpoint import resolve
from ctxasr_ray.models.seq2seq import Seq2SeqModel
from ctxasr_ray.nbest import NBest, read_nbest, score_matrix
from ctxasr_ray.schema import ContractError
from ctxasr_ray.scorers.causal_lm import CausalLmConfig
from ctxasr_ray.search.token_gate import TokenGate, calibrated, fused
from ctxasr_ray.stage import AsksLm, Costs, StageConfig, identity

torch.set_num_threads(1)
GATES = [TokenGate(), TokenGate(entropy_scale="log_vocab"), TokenGate(uncertainty="margin")]


def peaked(sharpness: float, size: int = 50) -> torch.Tensor:
    """A distribution that goes from uniform to one token as it gets sharper."""
    return (sharpness * torch.linspace(1, 0, size, dtype=torch.float64)).log_softmax(-1)


@pytest.mark.parametrize("gate", GATES)
def test_a_leader_that_is_sure_hears_nobody_and_the_weight_grows_with_its_doubt(gate: TokenGate) -> None:
    certain = torch.full((50,), -torch.inf, dtype=torch.float64)
    certain[3] = 0.0
    assert gate.weights(certain).item() == 0.0
    weights = [gate.weights(peaked(sharpness)).item() for sharpness in (400.0, 200.0, 100.0, 30.0, 10.0, 3.0)]
    assert weights == sorted(weights)
    assert len(set(weights)) == len(weights)
    assert 0 <= weights[0] < 0.05 < weights[-1] < 0.5


def test_weights_are_those_that_uadf_gives_in_nats() -> None:
    for nats, weight in ((1.0, 0.231), (2.0, 0.381), (3.0, 0.453)):
        num = round(np.exp(nats))
        uniform = torch.full((num,), -np.log(num), dtype=torch.float64)
        assert TokenGate().weights(uniform).item() == pytest.approx(1 / (1 + 1 / num) - 0.5)
        assert TokenGate().weights(uniform).item() == pytest.approx(weight, abs=0.02)
        assert TokenGate(entropy_scale="log_vocab").weights(uniform).item() == pytest.approx(0.231, abs=1e-3)


def test_the_fused_distribution_sums_to_one_and_is_the_leader_without_weight() -> None:
    torch.manual_seed(0)
    leader, helper = (torch.randn(4, 9, 50).mul(6).log_softmax(-1) for _ in range(2))
    weights = TokenGate(min_weight=0.2).weights(leader)
    assert 0 < int((weights == 0).sum()) < weights.numel()
    mixed = fused(leader, helper, weights)
    torch.testing.assert_close(mixed.exp().sum(-1), torch.ones(4, 9))
    assert torch.equal(mixed[weights == 0], leader[weights == 0])
    p = (leader.exp() + weights[..., None] * helper.exp()) / (1 + weights[..., None])
    torch.testing.assert_close(mixed.exp(), p)
    assert torch.equal(calibrated(leader, 1.0), leader)
    torch.testing.assert_close(calibrated(leader, 2.0).exp().sum(-1), torch.ones(4, 9))


def test_what_is_rounded_to_nothing_is_neither_nan_nor_a_gate() -> None:
    leader = torch.tensor([[0.0, -200.0, -torch.inf]])
    helper = torch.tensor([[-torch.inf, 0.0, -torch.inf]])
    assert torch.equal(fused(leader, helper, TokenGate().weights(leader)), leader)
    mixed = fused(leader, helper, torch.tensor([0.25]))
    assert mixed.exp()[0].tolist() == pytest.approx([0.8, 0.2, 0.0])


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> AttentionFusedConfig:
    folder = tmp_path_factory.mktemp("fused")
    made = tiny_seq2seq.make("whisper", folder / "asr", ends_like="o")
    lm = tiny_fusion.make_lm(folder / "lm", tiny_seq2seq.tokenizer())
    recogniser = AttentionConfig(model=str(made), beam_size=6, num_hypotheses=4, max_tokens=20, batch_size=4)
    return AttentionFusedConfig(first_pass=recogniser, lm=CausalLmConfig(model=str(lm), prompt="a b"))


@pytest.mark.parametrize(
    "change",
    [{}, {"min_weight": 0.4}, {"min_weight": 0.4, "opened_by": "best_row"}, {"leader": "lm"}, {"fusion": "shallow"}],
    ids=str,
)
def test_every_score_stands_apart_and_the_list_is_in_the_order_of_the_search(
    config: AttentionFusedConfig,
    recordings: list[str],  # noqa: F811
    change: dict[str, Any],
) -> None:
    config, table = replace(config, **change), utterances([*recordings, "nowhere.wav"])
    costs = Costs()
    hypotheses = config.build()(table, costs=costs)
    nbests = read_nbest(hypotheses)
    assert nbests[-1].error_type == "audio"
    again = config.lm.build()(hypotheses, costs=Costs()).column("sources").to_pylist()
    model = Seq2SeqModel(resolve(config.first_pass.model))
    prompt, spelled_alike = model.tokens.prompt(None), 0
    for row, path, lm in zip(nbests[:-1], recordings, again[:-1], strict=True):
        assert row.error is None
        assert len(row.hypotheses) > 1
        ranks = [h.search_score for h in row.hypotheses]
        assert ranks == sorted(ranks, reverse=True)  # type: ignore[type-var]
        states = model.encode([soundfile.read(path, dtype="float32")[0]])[0]
        forced = model.forced_scores(states, prompt, [np.array(h.token_ids, np.int32) for h in row.hypotheses])
        for n, h in enumerate(row.hypotheses):
            scores = {s.source: (s.kind, s.log_prob) for s in h.scores}
            total = scores.pop(f"attention_{config.fusion}")
            assert total == ("search", h.search_score)
            expected = {
                "attention": forced.log_probs[n],
                "attention/eos": forced.eos_log_probs[n],
                "causal_lm": lm[0]["log_probs"][n],
                "causal_lm/eos": lm[0]["eos_log_probs"][n],
            }
            if h.text != " ".join(h.text.split()) or model.tokens.encode([h.text])[0].tolist() != h.token_ids:
                del expected["causal_lm"], expected["causal_lm/eos"]  # outer spaces are tokens, and no part of a text
                scores = {name: scores[name] for name in expected}
            spelled_alike += "causal_lm" in expected
            assert {kind for kind, _ in scores.values()} == {"log_prob"}
            assert {name: value for name, (_, value) in scores.items()} == pytest.approx(expected, abs=1e-3)
    assert spelled_alike > 3
    assert sorted(score_matrix(hypotheses, []).sources) == ["attention", "attention/eos", "causal_lm", "causal_lm/eos"]
    counters = costs.counters
    assert counters["lm_rows"] > 0
    assert (counters.get("lm_rows_skipped", 0) > 0) == ("min_weight" in change)
    assert counters.get("utterances_unfused", 0) == 0


def test_fusion_refuses_to_add_the_same_lm_twice(config: AttentionFusedConfig, recordings: list[str]) -> None:  # noqa: F811
    hypotheses = config.build()(utterances(recordings[:2]), costs=Costs())
    scores = config.lm.build()(hypotheses, costs=Costs())
    with pytest.raises(ContractError, match="the recogniser's own scores; it would be added twice"):
        LogLinearConfig(weights={"causal_lm": 0.3}).build()(hypotheses, scores, costs=Costs())
    best = LogLinearConfig().build()(hypotheses, costs=Costs())
    assert best.column("hypothesis_index").to_pylist() == [0, 0]


def test_no_rows_give_no_rows(config: AttentionFusedConfig) -> None:
    assert config.build()(utterances([]), costs=Costs()).num_rows == 0


def listed(nbests: list[NBest]) -> list[Any]:
    return [(h.text, h.token_ids, h.token_log_probs, h.search_score) for row in nbests for h in row.hypotheses]


def test_a_gate_that_never_opens_is_the_first_pass_to_the_bit_and_asks_nobody(
    config: AttentionFusedConfig,
    recordings: list[str],  # noqa: F811
) -> None:
    plain, _ = run(config.first_pass, utterances(recordings))
    shut = replace(config, min_weight=0.5, score_hypotheses=False)
    found, costs = run(shut, utterances(recordings))  # type: ignore[arg-type]
    assert listed(found) == listed(plain)
    assert costs.counters.get("llm_calls", 0) == 0
    assert costs.counters["lm_rows_skipped"] > 0
    for row in found:
        assert all([s.source for s in h.scores][2:] == ["attention_gated"] for h in row.hypotheses)
    off, _ = run(replace(config, fusion="shallow", lm_weight=0.0), utterances(recordings))  # type: ignore[arg-type]
    assert listed(off) == listed(plain)


def test_how_many_go_side_by_side_changes_nothing(config: AttentionFusedConfig, recordings: list[str]) -> None:  # noqa: F811
    lists = []
    for size in (1, 3):
        sized = replace(config, first_pass=replace(config.first_pass, batch_size=size))
        lists.append(run(sized, utterances(recordings))[0])  # type: ignore[arg-type]
    for one, other in zip(*lists, strict=True):
        assert [h.text for h in one.hypotheses] == [h.text for h in other.hypotheses]
        for g, h in zip(one.hypotheses, other.hypotheses, strict=True):
            assert [s.log_prob for s in g.scores] == pytest.approx([s.log_prob for s in h.scores], abs=1e-3)


@pytest.mark.parametrize("fusion", ["gated", "shallow"])
def test_an_utterance_that_the_lm_cannot_serve_keeps_its_list_and_the_reason(
    config: AttentionFusedConfig,
    recordings: list[str],  # noqa: F811
    fusion: Literal["gated", "shallow"],
) -> None:
    alone = replace(config.first_pass, batch_size=1)  # rounding differs with the width of a pass
    built = replace(config, fusion=fusion, first_pass=alone).build()
    host = built._find._host  # type: ignore[attr-defined]
    host.lm.head = Sick(host.lm.head)
    costs = Costs()
    nbests = read_nbest(built(utterances(recordings), costs=costs))
    plain, _ = run(alone, utterances(recordings))
    assert listed(nbests) == listed(plain)
    for row in nbests:
        assert row.error_type is None
        assert row.error == "searched without causal_lm: the model gave a log-prob of nan; try dtype float32"
        assert all([s.source for s in h.scores] == ["attention", "attention/eos"] for h in row.hypotheses)
    assert costs.counters["utterances_unfused"] == len(LENGTHS_S)


def test_the_hash_holds_what_changes_numbers(config: AttentionFusedConfig) -> None:
    assert isinstance(config, StageConfig)
    assert isinstance(config, AsksLm)
    known = str(identity(config))
    faster = replace(config, first_pass=replace(config.first_pass, batch_size=9), lm=replace(config.lm, device="cpu"))
    assert str(identity(faster)) == known
    for change in (
        {"fusion": "shallow"},
        {"min_weight": 0.1},
        {"temperature": 1.2},
        {"leader": "lm"},
        {"opened_by": "best_row"},
    ):
        assert str(identity(replace(config, **change))) != known
    assert config.fingerprint()["lm_model"] != config.fingerprint()["model"]


def test_settings_that_cannot_be_meant_are_refused_in_words(config: AttentionFusedConfig, tmp_path: Path) -> None:
    for change, message in (
        ({"fusion": "cold"}, "fusion is 'cold'; expected gated or shallow"),
        ({"leader": "nobody"}, "leader is 'nobody'"),
        ({"opened_by": "all"}, "opened_by is 'all'"),
        ({"uncertainty": "doubt"}, "uncertainty is 'doubt'"),
        ({"entropy_scale": "bits"}, "entropy_scale is 'bits'"),
        ({"min_weight": float("nan")}, "min_weight is nan"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"lm": replace(config.lm, source="attention")}, "give them two names"),
        ({"lm": replace(config.lm, text_form="upper")}, "text_form is 'upper'.*set it to raw"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(config, **change)
    other = tiny_fusion.make_lm(tmp_path, tiny_seq2seq.tokenizer("abcd"))
    with pytest.raises(ValueError, match="does not write with the recogniser's pieces"):
        replace(config, lm=CausalLmConfig(model=str(other))).build()
