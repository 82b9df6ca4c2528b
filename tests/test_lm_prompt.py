"""An LM in a search that is told each utterance's phrases and what was said before."""

from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest
import tiny_fusion
import tiny_seq2seq
import torch
from test_first_pass_attention import recordings, utterances  # noqa: F401  (fixture)

from ctxasr_ray.first_pass.attention import AttentionConfig
from ctxasr_ray.first_pass.attention_fused import AttentionFusedConfig
from ctxasr_ray.first_pass.attention_keywords import AttentionKeywordsConfig
from ctxasr_ray.first_pass.gate_traces import GateTraceConfig
from ctxasr_ray.first_pass.phrase_copy import PhraseCopyConfig
from ctxasr_ray.models.lm_prompt import LmPrompt, Told
from ctxasr_ray.models.text_tokens import TextTokens
from ctxasr_ray.nbest import NBest, read_nbest
from ctxasr_ray.schema import CONTEXT, conform
from ctxasr_ray.scorers.causal_lm import CausalLmConfig
from ctxasr_ray.stage import Costs, identity

torch.set_num_threads(1)
TEMPLATE = "bad {keywords} o {history} a "


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> PhraseCopyConfig:
    """A gated search whose LM is told, and nothing else is done with the phrases."""
    folder = tmp_path_factory.mktemp("told")
    made = tiny_seq2seq.make("whisper", folder / "asr", ends_like="o")
    lm = tiny_fusion.make_lm(folder / "lm", tiny_seq2seq.tokenizer())
    recogniser = AttentionConfig(model=str(made), beam_size=6, num_hypotheses=4, max_tokens=20, batch_size=4)
    search = AttentionFusedConfig(first_pass=recogniser, lm=CausalLmConfig(model=str(lm)), lm_prompt=TEMPLATE)
    return PhraseCopyConfig(search=search, confidence=1.0)


def fused(config: PhraseCopyConfig) -> AttentionFusedConfig:
    """The search inside."""
    assert isinstance(config.search, AttentionFusedConfig)
    return config.search


def context(table: pa.Table, told: list[Told]) -> pa.Table:
    rows = [
        {
            "utterance_id": one,
            "num_distractors": 0,
            "phrase_ids": [-1] * len(known.phrases),
            "phrases": known.phrases,
            "weights": [1.0] * len(known.phrases),
            "origins": ["list"] * len(known.phrases),
            "history": known.history,
        }
        for one, known in zip(table["utterance_id"].to_pylist(), told, strict=True)
    ]
    return conform(pa.Table.from_pylist(rows, schema=CONTEXT), "context")


def searched(config: Any, *tables: pa.Table) -> tuple[list[NBest], dict[str, int]]:
    costs = Costs()
    return read_nbest(config.build()(*tables, costs=costs)), costs.counters


def test_each_utterance_is_searched_as_with_its_own_fixed_prompt(
    config: PhraseCopyConfig,
    recordings: list[str],  # noqa: F811
) -> None:
    table = utterances(recordings[:3])
    told = [Told(["badge", "pop"], "dab a"), Told(["a"], None), Told([], "o o")]
    prompts = ["bad badge, pop o dab a a ", "bad a o  a ", "bad  o o o a "]
    found, _ = searched(config, table, context(table, told))
    plain = replace(fused(config), lm_prompt=None)
    without, _ = searched(plain, table)
    for place, (row, prompt) in enumerate(zip(found, prompts, strict=True)):
        fixed = replace(plain, lm=replace(plain.lm, prompt=prompt))
        (expected,), _ = searched(fixed, table.slice(place, 1))
        assert [h.token_ids for h in row.hypotheses] == [h.token_ids for h in expected.hypotheses]
        for got, wanted in zip(row.hypotheses, expected.hypotheses, strict=True):
            assert [s.log_prob for s in got.scores] == pytest.approx([s.log_prob for s in wanted.scores], abs=1e-3)
        assert row.hypotheses[0].search_score != pytest.approx(without[place].hypotheses[0].search_score, abs=1e-3)


def test_nothing_to_tell_is_the_search_without_a_prompt_to_the_bit(
    config: PhraseCopyConfig,
    recordings: list[str],  # noqa: F811
) -> None:
    table = utterances(recordings)
    nothing = context(table, [Told()] * len(recordings))
    plain = replace(fused(config), lm_prompt=None)
    without = plain.build()(table, costs=Costs())
    assert config.build()(table, nothing, costs=Costs()).equals(without)
    phrases = context(table, [Told(["badge"], "pop")] * len(recordings))
    assert replace(config, search=plain).build()(table, phrases, costs=Costs()).equals(without)
    untold = replace(config, search=replace(fused(config), lm_prompt="o {history} a"))
    assert untold.build()(table, context(table, [Told(["badge"])] * len(recordings)), costs=Costs()).equals(without)


def test_the_oldest_words_of_a_history_go_where_the_context_ends() -> None:
    texts, costs = TextTokens(tiny_seq2seq.tokenizer()), Costs()

    def told(room: int | None, history: str) -> str:
        prefix = LmPrompt(texts, "{keywords} o {history} o ", room).prefix(Told(["pop"], history), costs)
        return str(texts.tokenizer.decode(prefix.tolist(), skip_special_tokens=True))

    assert told(None, "a b c d") == "pop o a b c d o "
    assert costs.counters["context_slides"] == 0
    num_whole = len(LmPrompt(texts, "{history} ", None).prefix(Told((), "a b c d"), costs))
    prefix = LmPrompt(texts, "{history} ", num_whole - 1).prefix(Told((), "a b c d"), costs)
    assert texts.tokenizer.decode(prefix.tolist(), skip_special_tokens=True) == "b c d "
    assert costs.counters["context_slides"] == 1
    assert told(3, "a b") == "pop o  o ", "phrases never go: the search then does without the LM"
    assert costs.counters["context_slides"] == 2


def test_phrases_that_do_not_fit_leave_the_search_without_its_lm_and_are_counted(
    config: PhraseCopyConfig,
    recordings: list[str],  # noqa: F811
) -> None:
    table = utterances(recordings[:2])
    many = Told(["badge"] + ["ab" * n for n in range(1, 12)])
    found, counters = searched(config, table, context(table, [many, Told(["badge"], "o " * 60)]))
    assert found[0].error_type is None
    assert found[0].error is not None
    assert found[0].error.startswith("searched without causal_lm: ")
    assert found[0].error.endswith("tokens with the prefix, but the model takes 64")
    assert found[1].error is None
    assert (counters["utterances_unfused"], counters["context_slides"]) == (1, 1)


def test_a_prompt_that_nobody_fills_is_refused_and_one_that_tells_is_in_the_hash(config: PhraseCopyConfig) -> None:
    search = fused(config)
    assert str(identity(replace(search, lm_prompt="{keywords} "))) != str(identity(search))
    with pytest.raises(ValueError, match=r"has neither \{keywords\} nor \{history\}"):
        replace(search, lm_prompt="names: ")
    with pytest.raises(ValueError, match="are both set"):
        replace(search, lm=replace(search.lm, prompt="a"))
    for refused in (search.build, lambda: AttentionKeywordsConfig(first_pass=search)):
        with pytest.raises(ValueError, match="put the search into a PhraseCopyConfig"):
            refused()
    with pytest.raises(ValueError, match="trace a search without lm_prompt"):
        GateTraceConfig(search=search)
