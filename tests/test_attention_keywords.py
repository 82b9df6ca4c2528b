"""The keyword boost in the attention beam: enumeration, lists beside others, and language models beside it."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_seq2seq
import torch
from test_first_pass_attention import recordings, utterances  # noqa: F401  (fixture)
from test_first_pass_ctc_fused import Sick
from test_label_fusion import by_hand, found_by, texts_of
from test_scorer_causal_lm import bpe, saved
from test_word_rows import TRIGGERS, World

from ctxasr_ray.first_pass.attention import AttentionConfig
from ctxasr_ray.first_pass.attention_fused import AttentionFusedConfig
from ctxasr_ray.first_pass.attention_keywords import AttentionKeywordsConfig
from ctxasr_ray.first_pass.attention_words import AttentionWordsConfig
from ctxasr_ray.keywords.automaton import build, spellings, word_shape
from ctxasr_ray.keywords.automaton_kernels import earned
from ctxasr_ray.keywords.context import ContextConfig
from ctxasr_ray.nbest import NBest, read_nbest
from ctxasr_ray.scorers.causal_lm import CausalLmConfig
from ctxasr_ray.search.boost_rows import Automata, BoostRows, Together
from ctxasr_ray.search.label_synchronous import LabelSynchronousSearch
from ctxasr_ray.stage import Costs, Resources, StageConfig, identity

torch.set_num_threads(1)
END = tiny_seq2seq.END


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("small"), "abc", ends_like="a", widen=0.6)


def automata(world: World, *own: str, shared: tuple[str, ...] = ("ab",), nats: float = 1.5) -> Automata:
    pieces = world.boundaries.pieces
    shape = word_shape(pieces)
    made = []
    for phrases in (shared, own):
        ids = [[np.array([pieces.index(letter) for letter in phrase], np.int32)] for phrase in phrases]
        made.append(build(spellings(ids), np.full(len(phrases), nats), shape))
    return made[0], made[1]


@pytest.mark.parametrize("trigger", [None, "shallow", "every 2 tokens"])
def test_a_wide_boosted_beam_is_exhaustive_enumeration(small: World, trigger: str | None) -> None:
    states, longest = small.model.encode(tiny_seq2seq.noises([1.0]))[0], 3
    phrases = automata(small, "c", "bb")
    expected = {}
    for text in texts_of(small.model, longest):
        if len(text) < longest:
            own = by_hand(small.model, states, text, longest, lambda log_probs, n, token: float(log_probs[token]))
            own += sum(float(earned(automaton, text)) for automaton in phrases)
            if trigger is not None:
                log_prob, eos, num_words = small.lm(text)
                own += 0.6 * (log_prob + eos) + 0.9 * num_words
            expected[tuple(text.tolist())] = own
    rows: Any = BoostRows([phrases], END)
    if trigger is not None:
        rows = Together(small.rows(TRIGGERS[trigger]), rows)
    found = found_by(small.model, states, rows, 2 * len(texts_of(small.model, longest)), longest)
    assert {tuple(h.token_ids.tolist()): h.score for h in found if h.ended} == pytest.approx(expected, abs=1e-4)


def test_utterances_with_lists_of_their_own_are_as_alone(small: World) -> None:
    states = small.model.encode(tiny_seq2seq.noises([0.3, 0.7, 1.1, 1.5]))
    search, prompt = LabelSynchronousSearch(small.model, beam_size=5, max_tokens=12), small.model.tokens.prompt(None)
    lists = [automata(small, *own) for own in (("ca",), (), ("bb", "cab"), ("b",))]
    together = search.search(torch.cat(states), prompt, fusion=BoostRows(lists, END))
    for one, own, expected in zip(states, lists, together, strict=True):
        found = search.search(one, prompt, fusion=BoostRows([own], END))[0]
        assert [h.token_ids.tolist() for h in found] == [h.token_ids.tolist() for h in expected]
        assert [h.score for h in found] == pytest.approx([h.score for h in expected], abs=1e-4)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> AttentionKeywordsConfig:
    folder = tmp_path_factory.mktemp("keywords")
    made = tiny_seq2seq.make("whisper", folder / "asr", ends_like="o")
    recogniser = AttentionConfig(model=str(made), beam_size=6, num_hypotheses=6, max_tokens=12, batch_size=4)
    (folder / "names.txt").write_text("ab\nhi jo\n\u6771\u4eac\n")
    return AttentionKeywordsConfig(first_pass=recogniser, catalogue=str(folder / "names.txt"), boost=3.0)


def lists(config: AttentionKeywordsConfig, paths: list[str], built: Any = None) -> tuple[list[NBest], Costs]:
    table = utterances(paths, keywords=[[]] * len(paths))
    context = ContextConfig(catalogue=config.catalogue, num_distractors=3).build()(table, costs=Costs())
    costs = Costs()
    return read_nbest((built or config.build())(table, context, costs=costs)), costs


def test_the_bonus_stands_apart_and_no_boost_is_the_run_without(
    config: AttentionKeywordsConfig,
    recordings: list[str],  # noqa: F811
) -> None:
    assert isinstance(config.first_pass, AttentionConfig)
    plain = read_nbest(config.first_pass.build()(utterances(recordings), costs=Costs()))
    without, costs = lists(replace(config, boost=0.0), [*recordings, "nowhere.wav"])
    assert list(costs.named["unwritable_phrases"]) == ["\u6771\u4eac"]
    assert without.pop().error_type == "audio"
    for one, other in zip(without, plain, strict=True):
        assert [(h.text, h.search_score, h.scores[:2]) for h in one.hypotheses] == [
            (h.text, h.search_score, h.scores) for h in other.hypotheses
        ]
    boosted, _ = lists(config, recordings)
    bonuses = []
    for row in boosted:
        ranks = [h.search_score or 0.0 for h in row.hypotheses]
        assert ranks == sorted(ranks, reverse=True)
        for h in row.hypotheses:
            assert [(s.source, s.kind) for s in h.scores[2:]] == [("keyword_boost", "bonus")]
            bonuses.append(h.scores[2].log_prob)
            if h.token_ids is not None and len(h.token_ids) < 12:
                assert h.search_score == pytest.approx(math.fsum(s.log_prob for s in h.scores), abs=1e-4)
    assert max(bonuses) > 0


@pytest.mark.parametrize("kind", ["words", "own pieces"])
def test_a_language_model_in_the_search_goes_with_the_list(
    config: AttentionKeywordsConfig,
    recordings: list[str],  # noqa: F811
    tmp_path: Path,
    kind: str,
) -> None:
    fused: Any = with_words(config, tmp_path)
    if kind == "own pieces":
        lm = CausalLmConfig(model=saved(tmp_path, tiny_seq2seq.tokenizer())[0])
        fused = AttentionFusedConfig(first_pass=fused.first_pass, lm=lm, fusion="shallow", lm_weight=0.3)
    for row in lists(replace(config, first_pass=fused), recordings[:2])[0]:
        assert row.error is None
        assert {"attention", "causal_lm", "keyword_boost"} < {s.source for s in row.hypotheses[0].scores}


def test_a_boost_goes_on_where_the_language_model_fails(
    config: AttentionKeywordsConfig,
    recordings: list[str],  # noqa: F811
    tmp_path: Path,
) -> None:
    built = replace(config, first_pass=with_words(config, tmp_path)).build()
    judge = built._find_with._host.lm  # type: ignore[union-attr]
    judge.head = Sick(judge.head)  # type: ignore[attr-defined]
    alone, _ = lists(config, recordings[:2])
    for row, other in zip(lists(config, recordings[:2], built)[0], alone, strict=True):
        assert "searched without causal_lm: the model gave" in (row.error or "")
        assert [(h.text, h.scores[2:]) for h in row.hypotheses] == [(h.text, h.scores[2:]) for h in other.hypotheses]


def with_words(config: AttentionKeywordsConfig, folder: Path) -> AttentionWordsConfig:
    """A language model with a tokenizer of its own in the config's search."""
    assert isinstance(config.first_pass, AttentionConfig)
    lm = CausalLmConfig(model=saved(folder, bpe())[0])
    return AttentionWordsConfig(first_pass=config.first_pass, lm=lm, lm_weight=0.3)


def test_settings_that_cannot_be_meant_are_refused_in_words(config: AttentionKeywordsConfig) -> None:
    assert isinstance(config, StageConfig)
    assert str(identity(replace(config, boost=1.0))) != str(identity(config))
    recogniser = config.first_pass
    assert isinstance(recogniser, AttentionConfig)
    words = AttentionWordsConfig(first_pass=recogniser, lm=CausalLmConfig(model="lm"))
    for change, message in (
        ({"boost": math.nan}, "boost is nan"),
        ({"source": "attention"}, r"source and first_pass\.source are both 'attention'"),
        ({"first_pass": words, "source": "causal_lm"}, r"first_pass\.lm\.source are both"),
        ({"first_pass": replace(words, lm_pool=Resources())}, "no pool of its own"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(config, **change)
