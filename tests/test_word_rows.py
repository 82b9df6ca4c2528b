"""An LM with a tokenizer of its own inside the attention beam: enumeration, lists beside others, scores apart."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_seq2seq
import torch
from test_first_pass_attention import recordings, utterances  # noqa: F401  (fixture)
from test_first_pass_ctc_fused import Sick, faulty
from test_label_fusion import END, by_hand, found_by, texts_of
from test_lm_fusion import NEVER, PREFIX, Letters
from test_scorer_causal_lm import bpe, saved
from tiny_causal_lms import EOS, one_by_one, tiny

from ctxasr_ray.first_pass.attention import AttentionConfig
from ctxasr_ray.first_pass.attention_words import AttentionWordsConfig
from ctxasr_ray.fusion.log_linear import LogLinearConfig
from ctxasr_ray.models.causal_lm import CausalLm
from ctxasr_ray.models.checkpoint import resolve
from ctxasr_ray.models.seq2seq import Seq2SeqModel
from ctxasr_ray.models.tree_sessions import TreeSessions
from ctxasr_ray.models.word_boundaries import WordBoundaries
from ctxasr_ray.nbest import read_nbest
from ctxasr_ray.scorers.causal_lm import CausalLmConfig
from ctxasr_ray.search.delayed_fusion import FixedInterval, ShortestHypothesis
from ctxasr_ray.search.label_synchronous import LabelSynchronousSearch
from ctxasr_ray.search.lm_fusion import Trigger
from ctxasr_ray.search.lm_texts import FusedLm
from ctxasr_ray.search.shallow_fusion import EveryWord
from ctxasr_ray.search.word_rows import WordRows
from ctxasr_ray.stage import AsksLm, Costs, StageConfig, identity

torch.set_num_threads(1)
TRIGGERS: dict[str, Trigger] = {
    "shallow": EveryWord(),
    "every 2 tokens": FixedInterval(frames=2),
    "every 2 tokens, own words": FixedInterval(frames=2, scope="own_last_word"),
    "shortest": ShortestHypothesis(),
    "never": NEVER,
}


class World:
    """A tiny attention recogniser and a random LM that writes words in its own way."""

    def __init__(self, folder: Path, letters: str, ctc_head: bool = False, **options: Any) -> None:
        made = tiny_seq2seq.make("whisper", folder, letters=letters, **options)
        if ctc_head:
            tiny_seq2seq.add_ctc_head(made)
        self.model = Seq2SeqModel(resolve(str(made)))
        self.boundaries = WordBoundaries.of_attention(self.model.tokens)
        self.judge = tiny("llama")
        self.costs = Costs()

    def rows(
        self, trigger: Trigger, num: int = 1, bonus: float = 0.9, weight: float = 0.6, end_within: float = math.inf
    ) -> WordRows:
        lm = CausalLm(self.judge, eos_token_id=EOS, utterances_per_forward=4)
        self.costs = Costs()
        fused = FusedLm(
            scorer=TreeSessions(lm, self.costs),
            spelling=Letters(),
            prefix=PREFIX,
            eos_token_id=EOS,
            max_positions=lm.max_positions,
            position_bytes=lm.position_bytes,
            costs=self.costs,
        )
        return WordRows(
            fused,
            self.boundaries,
            trigger,
            eos_id=END,
            lm_weight=weight,
            length_bonus=bonus,
            end_within=end_within,
            num_utterances=num,
        )

    def lm(self, text: np.ndarray) -> tuple[float, float, int]:
        """What the plain model says of a whole text and of its end, and the number of its words."""
        words = self.boundaries.words(text.tolist())
        ids = Letters().extend(words).tolist() if words else []
        return (*one_by_one(self.judge, PREFIX.tolist(), ids), len(words))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("small"), "abc", ends_like="a", widen=0.6)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("large"), "abcdefgh", ends_like="c")


@pytest.mark.parametrize("trigger", TRIGGERS)
def test_a_wide_beam_is_exhaustive_enumeration_whenever_the_model_is_asked(small: World, trigger: str) -> None:
    states = small.model.encode(tiny_seq2seq.noises([1.0]))[0]
    longest = 3
    texts = [text for text in texts_of(small.model, longest) if len(text) < longest]
    expected = {}
    for text in texts:
        own = by_hand(small.model, states, text, longest, lambda log_probs, n, token: float(log_probs[token]))
        log_prob, eos, num_words = small.lm(text)
        expected[tuple(text.tolist())] = own + 0.6 * (log_prob + eos) + 0.9 * num_words
    rows = small.rows(TRIGGERS[trigger])
    every = found_by(small.model, states, rows, 2 * len(texts_of(small.model, longest)), longest)
    found = {tuple(h.token_ids.tolist()): h.score for h in every if h.ended}
    assert found == pytest.approx(expected, abs=1e-4)
    for one, scores in zip(every, rows.scores([every])[0], strict=True):
        assert [s.source for s in scores] == ["causal_lm", "causal_lm/eos"]
        assert [s.log_prob for s in scores] == pytest.approx(small.lm(one.token_ids)[:2], abs=1e-4)
    assert not rows.reasons


@pytest.mark.parametrize("trigger", TRIGGERS)
def test_utterances_searched_together_are_as_alone(large: World, trigger: str) -> None:  # T5
    states = large.model.encode(tiny_seq2seq.noises([0.3, 0.7, 1.1, 1.5]))
    search, prompt = LabelSynchronousSearch(large.model, beam_size=5, max_tokens=16), large.model.tokens.prompt(None)
    rows = large.rows(TRIGGERS[trigger], 4)
    together = search.search(torch.cat(states), prompt, fusion=rows)
    calls = large.costs.counters["llm_calls"]
    alone = 0
    for place, (one, expected) in enumerate(zip(states, together, strict=True)):
        single = large.rows(TRIGGERS[trigger])
        found = search.search(one, prompt, fusion=single)[0]
        assert [h.token_ids.tolist() for h in found] == [h.token_ids.tolist() for h in expected]
        assert [h.score for h in found] == pytest.approx([h.score for h in expected], abs=1e-4)
        assert single.work == [rows.work[place]]
        alone += large.costs.counters["llm_calls"]
    assert calls < alone


def test_a_weight_of_zero_changes_nothing(large: World) -> None:
    states = large.model.encode(tiny_seq2seq.noises([1.5]))[0]
    search, prompt = LabelSynchronousSearch(large.model, beam_size=5, max_tokens=16), large.model.tokens.prompt(None)
    plain = search.search(states, prompt)[0]
    found = search.search(states, prompt, fusion=large.rows(EveryWord(), bonus=0.0, weight=0.0))[0]
    assert [h.token_ids.tolist() for h in found] == [h.token_ids.tolist() for h in plain]
    assert [h.score for h in found] == pytest.approx([h.score for h in plain], abs=1e-6)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> AttentionWordsConfig:
    folder = tmp_path_factory.mktemp("words")
    made = tiny_seq2seq.make("whisper", folder / "asr", ends_like="o")
    lm, _ = saved(folder / "lm", bpe())
    recogniser = AttentionConfig(model=str(made), beam_size=6, num_hypotheses=4, max_tokens=20, batch_size=4)
    return AttentionWordsConfig(first_pass=recogniser, lm=CausalLmConfig(model=lm, prompt="a time"), end_within=50.0)


@pytest.mark.parametrize(
    "change", [{"fusion": "shallow"}, {"interval": 3}, {"trigger": "shortest_hypothesis"}], ids=str
)
def test_every_score_stands_apart_and_the_list_is_in_the_order_of_the_search(  # T4, among others
    config: AttentionWordsConfig,
    recordings: list[str],  # noqa: F811
    change: dict[str, Any],
) -> None:
    config = replace(config, lm_weight=0.4, length_bonus=0.5, **change)
    table, costs = utterances([*recordings, "nowhere.wav"]), Costs()
    hypotheses = config.build()(table, costs=costs)
    rows = read_nbest(hypotheses)
    assert rows[-1].error_type == "audio"
    scored = config.lm.build()(hypotheses, costs=Costs()).column("sources").to_pylist()
    compared = 0
    for row, own in zip(rows[:-1], scored, strict=False):
        assert row.error is None
        ranks = [h.search_score for h in row.hypotheses]
        assert ranks == sorted(ranks, reverse=True)  # type: ignore[type-var]
        for n, h in enumerate(row.hypotheses):
            scores = {s.source: s.log_prob for s in h.scores}
            assert scores.pop(f"attention_{config.fusion}") == h.search_score
            if h.text != " ".join(h.text.split()):
                continue  # words are written with single spaces
            assert scores["causal_lm"] == pytest.approx(own[0]["log_probs"][n], abs=1e-4)
            assert scores["causal_lm/eos"] == pytest.approx(own[0]["eos_log_probs"][n], abs=1e-4)
            if h.token_ids is not None and len(h.token_ids) < config.first_pass.max_tokens:
                total = scores["attention"] + scores["attention/eos"]
                total += 0.4 * (scores["causal_lm"] + scores["causal_lm/eos"]) + 0.5 * len(h.text.split())
                assert h.search_score == pytest.approx(total, abs=1e-4)
            compared += 1
    assert compared > 0
    assert set(costs.utterances) == {row.utterance_id for row in rows[:-1]}
    assert costs.counters["nodes"] == sum(one["nodes"] for one in costs.utterances.values())


def test_an_utterance_that_the_lm_cannot_serve_keeps_its_list_and_the_reason(
    config: AttentionWordsConfig,
    recordings: list[str],  # noqa: F811
) -> None:
    built = config.build()
    lm = built._find._host.lm  # type: ignore[attr-defined]
    lm.head = Sick(lm.head)
    table = utterances(recordings[:3])
    hypotheses = built(table, costs=Costs())
    plain = read_nbest(config.first_pass.build()(table, costs=Costs()))
    for row, other in zip(read_nbest(hypotheses), plain, strict=True):
        assert row.error_type is None
        assert "searched without causal_lm: the model gave nan" in (row.error or "")
        assert [h.text for h in row.hypotheses] == [h.text for h in other.hypotheses]
    said = LogLinearConfig().build()(hypotheses, costs=Costs())
    assert said.column("num_unscored").to_pylist() == [1] * 3


@pytest.mark.parametrize("fault", ["no token", "no room", "no tree"])
def test_an_lm_that_cannot_write_a_text_is_left_out_and_counted_and_one_without_a_tree_serves(
    config: AttentionWordsConfig,
    recordings: list[str],  # noqa: F811
    tmp_path: Path,
    fault: str,
) -> None:
    lm = faulty(tmp_path, fault)
    config = replace(config, lm=CausalLmConfig(model=lm))
    table, costs = utterances([*recordings[:3], "nowhere.wav"]), Costs()
    hypotheses = config.build()(table, costs=costs)
    *rows, unheard = read_nbest(hypotheses)
    assert unheard.error_type == "audio"
    said = LogLinearConfig().build()(hypotheses.slice(0, 3), costs=Costs()).column("num_unscored").to_pylist()
    if fault == "no tree":
        assert config.lm.host().position_bytes == 0
        assert all(row.error is None and "causal_lm" in {s.source for s in row.hypotheses[0].scores} for row in rows)
        assert said == [0] * 3
        return
    reason = {"no token": "the tokenizer has no token for", "no room": "has no room in the model's 9"}[fault]
    assert all(reason in (row.error or "") and row.error_type is None for row in rows)
    plain = read_nbest(config.first_pass.build()(table, costs=Costs()))
    assert [[h.text for h in row.hypotheses] for row in rows] == [[h.text for h in row.hypotheses] for row in plain[:3]]
    assert said == [1] * 3
    assert costs.counters["utterances_unfused"] == 3


def test_settings_that_cannot_be_meant_are_refused_in_words(config: AttentionWordsConfig) -> None:
    assert isinstance(config, StageConfig)
    assert isinstance(config, AsksLm)
    assert str(identity(replace(config, interval=9))) != str(identity(config))
    for change, message in (
        ({"fusion": "cold"}, "fusion is 'cold'; expected delayed or shallow"),
        ({"trigger": "often"}, "trigger is 'often'"),
        ({"scored": "all"}, "scored is 'all'"),
        ({"end_within": -1.0}, "end_within -1"),
        ({"lm": replace(config.lm, source="attention")}, "give them two names"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(config, **change)
