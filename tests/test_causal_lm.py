import logging

import numpy as np
import pytest
import torch
import transformers as tf
from tiny_causal_lms import EOS, PADDED, TREE, VOCABULARY, one_by_one, tiny, widen

from ctxasr_ray.models.causal_lm import CausalLm
from ctxasr_ray.models.list_trees import ScoreRequest
from ctxasr_ray.models.tree_sessions import TreeSessions
from ctxasr_ray.stage import Costs, TreeNodes, TreeScorer
from ctxasr_ray.token_tree import chain

torch.set_num_threads(1)

EXACT = 1e-4  # nats per hypothesis, the bound; right masks stay below 1e-5, wrong ones cost 0.3 and more


def ids(*tokens: int) -> np.ndarray:
    return np.array(tokens, np.int32)


def hypotheses(rng: np.random.Generator, count: int, longest: int = 9) -> list[np.ndarray]:
    """Few distinct tokens, so that beginnings and whole sequences repeat; some are empty."""
    return [rng.integers(3, 7, rng.integers(0, longest)).astype(np.int32) for _ in range(count)]


def requests(seed: int, prefixes=(1, 7, 9), count: int = 8) -> list[ScoreRequest]:
    rng = np.random.default_rng(seed)
    return [ScoreRequest(rng.integers(3, VOCABULARY, p).astype(np.int32), hypotheses(rng, count)) for p in prefixes]


def assert_exact(lm: CausalLm, model, asked: list[ScoreRequest], tolerance: float = EXACT) -> None:
    for request, scores in zip(asked, lm.score(asked), strict=True):
        expected = [one_by_one(model, request.prefix.tolist(), s.tolist()) for s in request.sequences]
        assert np.abs(scores.log_probs - [e[0] for e in expected]).max() <= tolerance
        assert np.abs(scores.eos_log_probs - [e[1] for e in expected]).max() <= tolerance
        assert scores.reasons == [None] * len(request.sequences)


def grow(scorer: TreeScorer, prefixes: list, sequences: list[list[np.ndarray]], steps=(1, 3, 4, 20)):
    """Sums of log-probs and of ends when the sequences arrive a few tokens at a time, all sessions in lock-step."""
    handles = scorer.open(prefixes)
    trees = [chain([]) for _ in prefixes]
    values = [np.zeros(0) for _ in prefixes]
    ends = [np.zeros(0) for _ in prefixes]
    for length in steps:
        new = []
        for tree, own in zip(trees, sequences, strict=True):
            before = len(tree)
            for s in own:
                tree.insert(s[:length])
            new.append(TreeNodes(tree.tokens[before:], tree.parents[before:]))
        for i, (log_probs, eos) in enumerate(scorer.extend(handles, new)):
            values[i], ends[i] = np.concatenate([values[i], log_probs]), np.concatenate([ends[i], eos])
        if hasattr(scorer, "retain"):
            scorer.retain(
                handles,
                [
                    np.array([t.insert(s[:length])[0] for s in own if len(s)], np.int32)
                    for t, own in zip(trees, sequences, strict=True)
                ],
            )
    results = []
    for tree, own, value, end in zip(trees, sequences, values, ends, strict=True):
        last = [tree.insert(s)[0] for s in own]
        results.append(([value[tree.path(n)].sum() for n in last], [end[n] if n >= 0 else None for n in last]))
    return handles, results


@pytest.mark.parametrize("family", [*TREE, *PADDED])
def test_scores_equal_unpadded_one_by_one_scoring_in_every_family(family):
    model = tiny(family)
    lm = CausalLm(model, eos_token_id=EOS)
    assert (lm.refusal is None) == (family in TREE)
    for utterances_per_forward in (1, 3):
        lm.utterances_per_forward = utterances_per_forward
        assert_exact(lm, model, requests(0))


@pytest.mark.parametrize("attention", [None, "eager"])
@pytest.mark.parametrize("family", TREE)
def test_a_prefix_that_goes_ahead_of_its_trees_changes_no_score(family, attention):
    """Prefixes of unequal length share a pass, and one is longer than the windows."""
    model = tiny(family, attention=attention)
    lm = CausalLm(model, eos_token_id=EOS)
    lm.prefill_from = 7
    for utterances_per_forward, prefixes in ((1, (1, 7, 9)), (3, (7, 9, 8))):
        lm.utterances_per_forward = utterances_per_forward
        assert_exact(lm, model, requests(0, prefixes=prefixes))


def test_a_long_prefix_of_embeddings_goes_ahead_as_its_tokens_do():
    model = tiny("llama")
    lm = CausalLm(model, eos_token_id=EOS)
    costs, (request,) = Costs(), requests(4, prefixes=(200,))
    assert_exact(lm, model, [request])
    by_tokens = lm.score([request], costs)[0]
    with torch.inference_mode():
        embedded = model.get_input_embeddings()(torch.tensor(request.prefix.astype(np.int64)))
    by_embeddings = lm.score([ScoreRequest(embedded, request.sequences)])[0]
    assert by_embeddings.log_probs == pytest.approx(by_tokens.log_probs, abs=EXACT)
    assert costs.counters["tokens_forwarded"] == costs.counters["nodes"]
    assert costs.counters["llm_calls"] == by_tokens.counters["llm_calls"] == 2
    assert (
        costs.counters["peak_kv_bytes"] >= by_tokens.counters["kv_bytes"] == costs.counters["nodes"] * 2 * 2 * 2 * 8 * 4
    )


@pytest.mark.parametrize("family", [*TREE, *PADDED])
def test_a_tree_that_grows_with_a_search_scores_as_one_by_one(family):
    model = tiny(family)
    lm = CausalLm(model, eos_token_id=EOS, utterances_per_forward=2)
    asked = requests(1, prefixes=(2, 8, 5), count=5)
    _, results = grow(TreeSessions(lm), [r.prefix for r in asked], [list(r.sequences) for r in asked])
    for request, (log_probs, ends) in zip(asked, results, strict=True):
        for sequence, log_prob, end in zip(request.sequences, log_probs, ends, strict=True):
            expected = one_by_one(model, request.prefix.tolist(), sequence.tolist())
            assert log_prob == pytest.approx(expected[0], abs=EXACT)
            assert end is None or end == pytest.approx(expected[1], abs=EXACT)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "mistral_window", "qwen3_moe", "gpt_neox", "falcon"])
def test_eager_attention_is_as_exact(family):
    model = tiny(family, attention="eager")
    assert_exact(CausalLm(model, eos_token_id=EOS), model, requests(2))


def test_a_plain_mask_would_be_wrong_where_a_window_is_shorter_than_the_prefix():
    """The proof that the tests above can see a window at all."""
    model = tiny("gemma2")
    lm = CausalLm(model, eos_token_id=EOS)
    lm.body.plan = "plain"
    (request,) = requests(0, prefixes=(9,))
    expected = [one_by_one(model, request.prefix.tolist(), s.tolist())[0] for s in request.sequences]
    assert np.abs(lm.score([request])[0].log_probs - expected).max() > 0.1


@pytest.mark.parametrize("rank", [4])
@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2"])
def test_a_lora_adapter_is_scored_exactly_and_changes_the_scores(family, rank, tmp_path):
    from peft import LoraConfig, get_peft_model

    model = tiny(family)
    (request,) = requests(3, prefixes=(4,))
    before = CausalLm(model, eos_token_id=EOS).score([request])[0].log_probs
    adapted = widen(
        get_peft_model(model, LoraConfig(r=rank, target_modules="all-linear", task_type="CAUSAL_LM"))
    ).eval()
    lm = CausalLm(adapted, eos_token_id=EOS)
    assert lm.refusal is None
    assert_exact(lm, adapted, [request])
    assert np.abs(lm.score([request])[0].log_probs - before).max() > 0.1


def test_a_learned_prompt_is_refused():
    from peft import PromptTuningConfig, get_peft_model

    prompted = get_peft_model(tiny("llama"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(ValueError, match="learned prompt"):
        CausalLm(prompted, eos_token_id=EOS)


def test_a_prefix_of_embeddings_scores_as_the_tokens_it_embeds():
    for family in ("llama", "gemma3", "opt", "bloom", "mistral_window"):
        model = tiny(family)
        lm = CausalLm(model, eos_token_id=EOS)
        (request,) = requests(4, prefixes=(7,))
        with torch.inference_mode():
            embedded = model.get_input_embeddings()(torch.tensor(request.prefix.astype(np.int64)))
        by_embeddings = lm.score([ScoreRequest(embedded, request.sequences)])[0]
        by_tokens = lm.score([request])[0]
        assert by_embeddings.log_probs == pytest.approx(by_tokens.log_probs, abs=EXACT)
        _, ((log_probs, _),) = grow(TreeSessions(lm), [embedded], [list(request.sequences)])
        assert log_probs == pytest.approx(by_tokens.log_probs, abs=EXACT)


def test_no_batching_and_no_order_changes_a_score():
    lm = CausalLm(tiny("llama"), eos_token_id=EOS)
    asked = requests(5, prefixes=(1, 3, 12, 0, 2, 9, 4), count=6)
    alone = [lm.score([request])[0] for request in asked]
    order = [3, 0, 6, 2, 5, 1, 4]
    for utterances_per_forward in (2, 7):
        lm.utterances_per_forward = utterances_per_forward
        together = lm.score([asked[i] for i in order])
        for i, scores in zip(order, together, strict=True):
            assert scores.log_probs == pytest.approx(alone[i].log_probs, abs=EXACT)
            assert scores.eos_log_probs == pytest.approx(alone[i].eos_log_probs, abs=EXACT, nan_ok=True)


def test_equal_sequences_and_equal_beginnings_are_scored_once():
    lm = CausalLm(tiny("llama"), eos_token_id=EOS)
    costs = Costs()
    sequences = [ids(5, 6, 7), ids(5, 6, 8), ids(5, 6, 7), ids(5, 6)]
    (scores,) = lm.score([ScoreRequest(ids(1), sequences)], costs)
    assert scores.log_probs[0] == scores.log_probs[2]
    assert costs.counters["tokens_flat"] == 3 * 4 + 3
    assert costs.counters["tokens_deduplicated"] == 2 * 4 + 3
    assert costs.counters["nodes"] == 5
    assert costs.counters["head_rows"] == 5
    assert costs.counters["llm_calls"] == 1


def test_without_a_prefix_the_first_token_is_left_out_and_counted():
    model = tiny("gpt2")
    lm = CausalLm(model, eos_token_id=EOS)
    costs = Costs()
    (scores,) = lm.score([ScoreRequest(ids(), [ids(5, 6), ids(5), ids(), ids(9)])], costs)
    assert scores.log_probs[0] == pytest.approx(one_by_one(model, [5], [6])[0], abs=EXACT)
    assert scores.log_probs[1:].tolist() == [0.0, 0.0, 0.0]
    assert np.isnan(scores.eos_log_probs).tolist() == [False, False, True, False]
    assert costs.counters["first_tokens_unscored"] == 2
    (nothing,) = lm.score([ScoreRequest(ids(), [ids()])])
    assert nothing.log_probs.tolist() == [0.0]


def test_no_hypotheses_are_no_scores():
    lm = CausalLm(tiny("llama"), eos_token_id=EOS)
    assert lm.score([]) == []
    (scores,) = lm.score([ScoreRequest(ids(1), [])])
    assert scores.log_probs.shape == (0,)


def test_a_sequence_beyond_the_context_has_a_reason_and_no_score():
    config = tf.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=12,
    )
    model = widen(tf.LlamaForCausalLM(config).eval())
    lm = CausalLm(model, eos_token_id=EOS)
    fits, too_long = np.arange(3, 12, dtype=np.int32), np.arange(3, 13, dtype=np.int32)
    (scores,) = lm.score([ScoreRequest(ids(1, 4, 5), [fits, too_long, fits[:2]])])
    assert scores.reasons[1] == "model_limit: 13 tokens with the prefix, but the model takes 12"
    assert np.isnan(scores.log_probs).tolist() == [False, True, False]
    assert scores.log_probs[0] == pytest.approx(one_by_one(model, [1, 4, 5], fits.tolist())[0], abs=EXACT)
    sessions = TreeSessions(lm)
    with pytest.raises(ValueError, match="model_limit: 13 tokens"):
        sessions.open([np.zeros(13, np.int32)])
    handles = sessions.open([ids(1, 4, 5)])
    with pytest.raises(ValueError, match="model_limit: 13 tokens"):
        sessions.extend(handles, [TreeNodes(too_long, np.arange(-1, 9, dtype=np.int32))])


def test_a_tree_too_large_for_one_pass_is_split_without_a_change(monkeypatch):
    model = tiny("llama")
    lm = CausalLm(model, eos_token_id=EOS)
    monkeypatch.setattr("ctxasr_ray.models.causal_lm.MAX_NODES", 20)
    costs = Costs()
    (request,) = requests(6, prefixes=(3,), count=40)
    lm.score([request], costs)
    assert costs.counters["llm_calls"] > 3
    assert_exact(lm, model, [request])


def test_a_small_logits_buffer_changes_nothing_and_is_kept():
    model = tiny("llama")
    whole, bounded = (
        CausalLm(model, eos_token_id=EOS),
        CausalLm(model, eos_token_id=EOS, logits_limit_bytes=3 * VOCABULARY * 8),
    )
    (request,) = requests(7, prefixes=(3,))
    costs = Costs()
    expected, got = whole.score([request])[0], bounded.score([request], costs)[0]
    assert got.log_probs == pytest.approx(expected.log_probs, abs=EXACT)
    assert costs.counters["peak_logits_bytes"] == 3 * VOCABULARY * 8  # logits and their log_softmax


@pytest.mark.parametrize("family", ["llama", "gemma2", "cohere2", "granite"])
def test_a_vocabulary_in_blocks_changes_nothing(family, monkeypatch):
    """Caps and scales belong to every block; the last one is narrower."""
    monkeypatch.setattr("ctxasr_ray.models.lm_head.LEAST_COLUMNS", 7)
    monkeypatch.setattr("ctxasr_ray.models.lm_head.BLOCK_BYTES", 1)
    model, costs = tiny(family), Costs()
    lm = CausalLm(model, eos_token_id=EOS)
    (request,) = requests(7, prefixes=(3,))
    lm.score([request], costs)
    assert costs.counters["peak_logits_bytes"] == costs.counters["head_rows"] * 7 * 8
    assert_exact(lm, model, [request])


def test_a_head_that_cannot_be_called_alone_is_run_through_its_model():
    """RoBERTa's head has a layer and a norm before the output matrix."""
    config = tf.RobertaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        is_decoder=True,
        max_position_embeddings=128,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=EOS,
    )
    torch.manual_seed(0)
    model = widen(tf.RobertaForCausalLM(config).eval())
    lm = CausalLm(model, eos_token_id=EOS)
    assert_exact(lm, model, requests(8, prefixes=(4, 2)))
    _, ((log_probs, _),) = grow(TreeSessions(lm), [ids(9, 8)], [[ids(5, 6, 7), ids(5, 8)]])
    assert log_probs[1] == pytest.approx(one_by_one(model, [9, 8], [5, 8])[0], abs=EXACT)


def test_a_model_without_a_tree_says_so_once(caplog):
    with caplog.at_level(logging.WARNING):
        lm = CausalLm(tiny("gpt_neo"), eos_token_id=EOS)
        lm.score(requests(0))
    assert len(caplog.records) == 1
    assert "GPTNeoForCausalLM is scored without the token tree: log-probs differ by" in caplog.text


def test_a_model_without_end_of_sequence_has_no_end_scores():
    model = tiny("llama")
    model.config.eos_token_id = None
    lm = CausalLm(model)
    (request,) = requests(9, prefixes=(2,))
    (scores,) = lm.score([request])
    assert np.isnan(scores.eos_log_probs).all()
    assert np.isfinite(scores.log_probs).all()


def test_a_model_that_overflows_gives_reasons_not_numbers():
    model = tiny("llama")
    lm = CausalLm(model, eos_token_id=EOS)
    with torch.no_grad():
        model.lm_head.weight[5] = float("nan")
    (scores,) = lm.score([ScoreRequest(ids(1), [ids(6)])])
    assert np.isnan(scores.log_probs[0])
    assert scores.reasons == ["the model gives log_prob nan; try dtype float32"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "gemma2", "mistral_window", "granite"])
def test_half_precision_keeps_the_tree_and_its_rounding(family, dtype):
    """A logit near 4 is rounded to 0.016 in bfloat16, and the two orders of summation round differently."""
    model = tiny(family).to(dtype)
    lm = CausalLm(model, eos_token_id=EOS)
    assert lm.refusal is None
    (request,) = requests(10, prefixes=(6,))
    (scores,) = lm.score([request])
    for sequence, log_prob in zip(request.sequences, scores.log_probs, strict=True):
        expected = one_by_one(model.float(), request.prefix.tolist(), sequence.tolist())[0]
        model.to(dtype)
        assert log_prob == pytest.approx(expected, abs=0.1 * max(1, len(sequence)))
