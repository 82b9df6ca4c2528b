"""The CTC first pass with an LM inside its search: lists, scores apart, and utterances that the LM cannot serve."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
import transformers as tf
from test_first_pass_ctc import parakeet, recordings, utterances  # noqa: F401  (fixtures)
from test_scorer_causal_lm import bpe, saved
from tiny_causal_lms import widen
from tokenizers import Tokenizer, models

from ctxasr_ray.first_pass.ctc import CtcConfig
from ctxasr_ray.first_pass.ctc_fused import CtcFusedConfig
from ctxasr_ray.first_pass.search_lms import FirstPassLm
from ctxasr_ray.fusion.log_linear import LogLinearConfig
from ctxasr_ray.nbest import NBest, read_nbest
from ctxasr_ray.schema import ContractError
from ctxasr_ray.scorers.causal_lm import CausalLmConfig
from ctxasr_ray.stage import AsksLm, Costs, StageConfig, identity
from ctxasr_ray.training.vocabulary import CHARACTERS, character_lm_tokenizer

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved(tmp_path_factory.mktemp("lm"), bpe())[0]


@pytest.fixture
def config(parakeet: Path, lm: str) -> CtcFusedConfig:  # noqa: F811
    recogniser = CtcConfig(model=str(parakeet), beam_size=8, num_hypotheses=5, batch_size=2)
    return CtcFusedConfig(
        first_pass=recogniser,
        lm=CausalLmConfig(model=lm, utterances_per_forward=3),
        interval=4,
        lm_weight=0.3,
        length_bonus=0.5,
        utterances_in_lockstep=3,
    )


def run(config: CtcFusedConfig, table: pa.Table) -> tuple[pa.Table, Costs]:
    costs = Costs()
    return config.build()(table, costs=costs), costs


def test_every_hypothesis_has_the_scores_of_recogniser_and_lm_apart(
    config: CtcFusedConfig,
    recordings: list[Path],  # noqa: F811
) -> None:
    table = utterances([*recordings, Path("nowhere.wav")])
    hypotheses, costs = run(config, table)
    plain = config.first_pass.build()(table, costs=Costs())
    again = config.lm.build()(hypotheses, costs=Costs()).column("sources").to_pylist()
    assert read_nbest(hypotheses)[-1].error_type == "audio"
    known = {(row.utterance_id, h.text): h.scores[0].log_prob for row in read_nbest(plain) for h in row.hypotheses}
    found = 0
    for row, scored in zip(read_nbest(hypotheses)[:-1], again, strict=False):
        assert 1 <= len(row.hypotheses) <= 5
        sums = []
        for n, h in enumerate(row.hypotheses):
            assert [s.source for s in h.scores] == ["ctc", "causal_lm", "causal_lm/eos"]
            ctc, log_prob, eos = (s.log_prob for s in h.scores)
            assert [log_prob, eos] == pytest.approx(
                [scored[0]["log_probs"][n], scored[0]["eos_log_probs"][n]], abs=1e-4
            )
            found += (row.utterance_id, h.text) in known
            assert ctc == pytest.approx(known.get((row.utterance_id, h.text), ctc), abs=1e-4)
            sums.append(ctc + 0.3 * (log_prob + eos) + 0.5 * len(h.text.split()))
            assert h.search_score is not None
            assert h.search_score <= sums[-1] + 1e-4
        assert sums == sorted(sums, reverse=True)
    assert found > 0
    counters = costs.counters
    assert counters["llm_calls"] < counters["lm_asks"], "utterances share calls"
    assert counters["nodes"] < counters["tokens_flat"]
    assert counters["utterances_unfused"] == 0


def test_a_small_lm_is_heard_at_every_word_beside_the_main_one(
    config: CtcFusedConfig,
    recordings: list[Path],  # noqa: F811
) -> None:
    small = FirstPassLm(lm=replace(config.lm, source="small"), lm_weight=0.2, length_bonus=0.1)
    both = replace(config, first_pass_lm=small)
    hypotheses, _ = run(both, utterances(recordings[:2]))
    weights = {"ctc": 1.0, "causal_lm": 0.3, "causal_lm/eos": 0.3, "small": 0.2, "small/eos": 0.2}
    for row in read_nbest(hypotheses):
        sums = []
        for h in row.hypotheses:
            scores = {s.source: s.log_prob for s in h.scores}
            assert list(scores) == list(weights)
            assert scores["small"] == pytest.approx(scores["causal_lm"], abs=1e-4), "it is the same model"
            sums.append(sum(weights[name] * scores[name] for name in weights) + 0.6 * len(h.text.split()))
        assert sums == pytest.approx(sorted(sums, reverse=True))
    assert set(config.fingerprint()) < set(both.fingerprint())
    with pytest.raises(ValueError, match=r"first_pass_lm\.lm\.source is 'causal_lm', which another score has"):
        replace(config, first_pass_lm=FirstPassLm(lm=config.lm))


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved(tmp_path_factory.mktemp("letters"), character_lm_tokenizer(CHARACTERS))[0]


@pytest.mark.parametrize("change", [{"fusion": "shallow"}, {"interval": 1, "scored": "own_last_word"}, {"interval": 4}])
def test_an_lm_of_the_same_characters_is_heard_label_by_label(
    config: CtcFusedConfig,
    recordings: list[Path],  # noqa: F811
    letters: str,
    change: dict[str, object],
) -> None:
    lm = CausalLmConfig(model=letters, source="characters")
    config = replace(config, units="labels", lm=lm, length_bonus=1.5, **change)
    hypotheses, costs = run(config, utterances(recordings[:3]))
    scored = lm.build()(hypotheses, costs=Costs()).column("sources").to_pylist()
    pieces = config.first_pass.load().vocabulary.pieces
    compared = 0
    for row, own in zip(read_nbest(hypotheses), scored, strict=True):
        sums = []
        for n, h in enumerate(row.hypotheses):
            ctc, log_prob, eos = (s.log_prob for s in h.scores)
            assert h.token_ids is not None
            sums.append(ctc + 0.3 * (log_prob + eos) + 1.5 * len(h.token_ids))
            if "".join(pieces[token] for token in h.token_ids) == h.text:  # no space at an end, none doubled
                expected = [own[0]["log_probs"][n], own[0]["eos_log_probs"][n]]
                assert [log_prob, eos] == pytest.approx(expected, abs=1e-4)
                compared += 1
        assert sums == sorted(sums, reverse=True)
    assert compared > 0
    assert costs.counters["utterances_unfused"] == 0


def test_what_shares_no_vocabulary_is_refused_in_words(config: CtcFusedConfig, letters: str, tmp_path: Path) -> None:
    few, _ = saved(tmp_path, character_lm_tokenizer("abc"))
    with pytest.raises(ValueError, match="vocabulary lacks 24 of 28 labels of the recogniser, the first is 'd'"):
        replace(config, units="labels", lm=CausalLmConfig(model=few)).build()
    with pytest.raises(ValueError, match="an LM that shares the labels reads them as raw"):
        replace(config, units="labels", lm=CausalLmConfig(model=letters, text_form="upper")).build()
    small = FirstPassLm(lm=replace(config.lm, source="small"))
    with pytest.raises(ValueError, match="first_pass_lm and label_prior go with words"):
        replace(config, units="labels", first_pass_lm=small)


def test_fusion_refuses_to_add_the_same_lm_twice(config: CtcFusedConfig, recordings: list[Path]) -> None:  # noqa: F811
    hypotheses, _ = run(config, utterances(recordings[:2]))
    scores = config.lm.build()(hypotheses, costs=Costs())
    fuse = LogLinearConfig(weights={"causal_lm": 0.3}).build()
    with pytest.raises(ContractError, match="the recogniser's own scores; it would be added twice"):
        fuse(hypotheses, scores, costs=Costs())
    assert fuse(hypotheses, costs=Costs()).column("num_unscored").to_pylist() == [0, 0]


def test_an_utterance_that_the_lm_cannot_serve_keeps_its_list_and_the_reason(
    config: CtcFusedConfig,
    recordings: list[Path],  # noqa: F811
) -> None:
    built = replace(config, fusion="shallow").build()
    lm = built._lms[0].host.lm  # type: ignore[attr-defined]
    lm.head = Sick(lm.head)
    costs = Costs()
    hypotheses = built(utterances(recordings[:3]), costs=costs)
    plain = read_nbest(config.first_pass.build()(utterances(recordings[:3]), costs=Costs()))
    for row, other in zip(read_nbest(hypotheses), plain, strict=True):
        assert row.error_type is None
        assert row.error is not None
        assert row.error.startswith("searched without causal_lm: the model gave ")
        assert "nan" in row.error
        assert [(h.text, [s.source for s in h.scores]) for h in row.hypotheses] == [
            (h.text, ["ctc"]) for h in other.hypotheses
        ]
    assert costs.counters["utterances_unfused"] == 3
    assert LogLinearConfig().build()(hypotheses, costs=Costs()).column("num_unscored").to_pylist() == [1, 1, 1]


def few_letters() -> tf.PreTrainedTokenizerFast:
    """Knows the letter a, has nothing for any other and drops them without a word."""
    tokenizer = Tokenizer(models.BPE(vocab={"</s>": 0, "<s>": 1, "a": 2}, merges=[]))
    return tf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", bos_token="<s>")


def faulty(folder: Path, fault: str) -> str:
    """Saves an LM whose tokenizer drops letters, that takes 9 tokens, or whose mask is not to be trusted."""
    directory, model = saved(folder, few_letters() if fault == "no token" else bpe())
    if fault == "no room":
        model.config.max_position_embeddings = 9
        model.config.save_pretrained(directory)
    if fault == "no tree":
        widen(tf.BloomForCausalLM(tf.BloomConfig(vocab_size=300, hidden_size=32, n_layer=2, n_head=4))).save_pretrained(
            directory
        )
    return directory


@pytest.mark.parametrize("fault", ["no token", "no room", "no tree"])
def test_an_lm_that_cannot_write_a_text_is_left_out_and_counted_and_one_without_a_tree_serves(
    config: CtcFusedConfig,
    recordings: list[Path],  # noqa: F811
    tmp_path: Path,
    fault: str,
) -> None:
    config = replace(config, lm=CausalLmConfig(model=faulty(tmp_path, fault)), interval=4)
    table = utterances(recordings[2:5])
    hypotheses, costs = run(config, table)
    rows = read_nbest(hypotheses)
    said = LogLinearConfig().build()(hypotheses, costs=Costs())
    if fault == "no tree":
        assert config.lm.host().position_bytes == 0
        assert [row.error for row in rows] == [None] * 3
        scored = config.lm.build()(hypotheses, costs=Costs()).column("sources").to_pylist()
        found = [[h.scores[1].log_prob for h in row.hypotheses] for row in rows]
        for one, (source,) in zip(found, scored, strict=True):
            assert one == pytest.approx(source["log_probs"], abs=1e-4)
        assert said.column("num_unscored").to_pylist() == [0] * 3
        return
    reason = {"no token": "the tokenizer has no token for", "no room": "has no room in the model's 9"}[fault]
    assert all(reason in (row.error or "") and row.error_type is None for row in rows)
    plain = read_nbest(config.first_pass.build()(table, costs=Costs()))
    assert [[h.text for h in row.hypotheses] for row in rows] == [[h.text for h in row.hypotheses] for row in plain]
    assert said.column("num_unscored").to_pylist() == [1] * 3
    assert costs.counters["utterances_unfused"] == 3


class Sick:
    """An LM head of a model whose activations have overflowed."""

    def __init__(self, head: object) -> None:
        self.head = head

    def __getattr__(self, name: str) -> object:
        return getattr(self.head, name)

    def read(self, *args: object) -> tuple[np.ndarray, np.ndarray]:
        picks, normalisers = self.head.read(*args)  # type: ignore[attr-defined]
        return picks * np.nan, normalisers


def same(one: list[NBest], other: list[NBest]) -> None:
    assert [[h.text for h in row.hypotheses] for row in one] == [[h.text for h in row.hypotheses] for row in other]
    for a, b in zip(one, other, strict=True):
        for g, h in zip(a.hypotheses, b.hypotheses, strict=True):
            assert [s.log_prob for s in g.scores] == pytest.approx([s.log_prob for s in h.scores], abs=1e-3)


@pytest.mark.parametrize("fusion", ["shallow", "delayed"])
def test_what_goes_side_by_side_changes_nothing(
    config: CtcFusedConfig,
    recordings: list[Path],  # noqa: F811
    fusion: str,
) -> None:
    table = utterances(recordings)
    config = replace(config, fusion=fusion)
    together, apart = (run(replace(config, utterances_in_lockstep=n), table)[0] for n in (5, 1))
    same(read_nbest(together), read_nbest(apart))
    single = read_nbest(run(config, table.slice(2, 1))[0])
    same(single, read_nbest(together)[2:3])


def test_the_hash_holds_what_changes_numbers(config: CtcFusedConfig, tmp_path: Path) -> None:
    assert isinstance(config, StageConfig)
    assert isinstance(config, AsksLm)
    known = str(identity(config))
    assert str(identity(replace(config, utterances_in_lockstep=9, lm=replace(config.lm, device="cpu")))) == known
    for change in ({"interval": 5}, {"fusion": "shallow"}, {"lm_weight": 0.1}, {"trigger": "shortest_hypothesis"}):
        assert str(identity(replace(config, **change))) != known
    prior = tmp_path / "prior.npy"
    digests = []
    for scale in (1.0, 2.0):
        np.save(prior, np.full(33, -scale))
        digests.append(replace(config, label_prior=str(prior), prior_weight=0.3).fingerprint())
    assert digests[0]["label_prior"] != digests[1]["label_prior"]
    assert digests[0]["lm_model"] != digests[0]["model"]


def test_settings_that_cannot_be_meant_are_refused_in_words(config: CtcFusedConfig, tmp_path: Path) -> None:
    for change, message in (
        ({"fusion": "cold"}, "fusion is 'cold'; expected delayed or shallow"),
        ({"trigger": "often"}, "trigger is 'often'"),
        ({"interval": 0}, "interval is 0"),
        ({"units": "letters"}, "units is 'letters'"),
        ({"prior_weight": 0.3}, "give both or none"),
        ({"lm": replace(config.lm, source="ctc")}, "give them two names"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(config, **change)
    np.save(tmp_path / "prior.npy", np.zeros(3))
    with pytest.raises(ValueError, match=r"got shape \(3,\), float64; expected \(32,\) finite"):
        replace(config, label_prior=str(tmp_path / "prior.npy"), prior_weight=0.1).build()
