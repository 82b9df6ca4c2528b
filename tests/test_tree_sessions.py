import numpy as np
import pytest
import torch
from tiny_causal_lms import EOS, VOCABULARY, one_by_one, tiny

from ctxasr_ray.models.causal_lm import CausalLm
from ctxasr_ray.models.tree_sessions import TreeSessions
from ctxasr_ray.stage import Costs, TreeNodes

torch.set_num_threads(1)

EXACT = 1e-4


def nodes(tokens, parents) -> TreeNodes:
    return TreeNodes(np.array(tokens, np.int32), np.array(parents, np.int32))


def branch(sessions: TreeSessions, handle: int, tokens: list[int], parent: int, first: int) -> np.ndarray:
    """Adds a chain of nodes numbered from `first` and returns its log-probs."""
    parents = [parent, *range(first, first + len(tokens) - 1)]
    return sessions.extend([handle], [nodes(tokens, parents)])[0][0]


def test_a_node_costs_one_pass_and_one_row_of_the_head_ever():
    costs = Costs()
    sessions = TreeSessions(CausalLm(tiny("llama"), eos_token_id=EOS), costs)
    (handle,) = sessions.open([np.array([5, 6, 7], np.int32)])
    for step in range(4):
        sessions.extend([handle], [nodes([8, 9, 10], [-1, -1, -1] if step == 0 else [3 * step - 3] * 3)])
    assert costs.counters["nodes"] == 12
    assert costs.counters["tokens_forwarded"] == 3 + 12
    assert costs.counters["head_rows"] == 1 + 12  # the end of the prefix, and every node
    assert costs.counters["llm_calls"] == 4


def test_dead_nodes_are_gathered_away_without_a_change():
    model = tiny("qwen2")
    costs = Costs()
    sessions = TreeSessions(CausalLm(model, eos_token_id=EOS), costs)
    prefix = [5, 6]
    (handle,) = sessions.open([np.array(prefix, np.int32)])
    rng = np.random.default_rng(0)
    best, path, first = -1, [], 0
    for _ in range(12):
        tokens = rng.integers(3, VOCABULARY, 20)
        log_probs = sessions.extend([handle], [nodes(tokens, [best] * 20)])[0][0]
        best, chosen = first + 7, int(tokens[7])
        before, path = one_by_one(model, prefix, path)[0], [*path, chosen]
        assert log_probs[7] == pytest.approx(one_by_one(model, prefix, path)[0] - before, abs=EXACT)
        sessions.retain([handle], [np.array([best], np.int32)])
        first += 20
    assert costs.counters["cache_gathers"] >= 3
    assert costs.counters["peak_kv_bytes"] < 2 * 2 * 2 * 8 * 4 * 256  # 240 nodes were asked for, 128 slots sufficed


def test_a_child_of_a_node_that_was_not_retained_is_refused():
    sessions = TreeSessions(CausalLm(tiny("llama"), eos_token_id=EOS))
    (handle,) = sessions.open([np.array([5], np.int32)])
    sessions.extend([handle], [nodes([6, 7], [-1, -1])])
    sessions.retain([handle], [np.array([1], np.int32)])
    assert np.isfinite(branch(sessions, handle, [8], 1, 2)).all()
    with pytest.raises(ValueError, match="node 0 was not retained"):
        sessions.extend([handle], [nodes([8], [0])])


@pytest.mark.parametrize("utterances_per_forward", [1, 2])
def test_sessions_dropped_for_memory_are_replayed_without_a_change(utterances_per_forward):
    model = tiny("llama")
    lm = CausalLm(model, eos_token_id=EOS, utterances_per_forward=utterances_per_forward)
    costs = Costs()
    sessions = TreeSessions(lm, costs, cache_limit_bytes=1)
    prefixes = [[5, 6], [7, 8, 9], [4], [10, 11]]
    handles = sessions.open([np.array(p, np.int32) for p in prefixes])
    rng = np.random.default_rng(1)
    paths: list[list[int]] = [[] for _ in prefixes]
    for step in range(4):
        for i, handle in enumerate(handles):
            token = int(rng.integers(3, VOCABULARY))
            ((log_prob,), _) = sessions.extend([handle], [nodes([token], [step - 1])])[0]
            before, paths[i] = one_by_one(model, prefixes[i], paths[i])[0], [*paths[i], token]
            assert log_prob == pytest.approx(one_by_one(model, prefixes[i], paths[i])[0] - before, abs=EXACT)
    assert costs.counters["caches_dropped"] > 3
    assert costs.counters["tokens_replayed"] > 10


def test_sessions_that_share_a_cache_may_be_extended_apart_and_closed_one_by_one():
    model = tiny("gpt2")
    lm = CausalLm(model, eos_token_id=EOS, utterances_per_forward=3)
    sessions = TreeSessions(lm)
    prefixes = [[5, 6], [7, 8, 9], [4]]
    handles = sessions.open([np.array(p, np.int32) for p in prefixes])
    for handle, prefix in zip(handles, prefixes, strict=True):
        assert branch(sessions, handle, [20, 21], -1, 0).sum() == pytest.approx(
            one_by_one(model, prefix, [20, 21])[0], abs=EXACT
        )
    long = list(range(3, 60))
    assert branch(sessions, handles[1], long, 1, 2).sum() == pytest.approx(
        one_by_one(model, [7, 8, 9, 20, 21], long)[0], abs=EXACT
    )
    sessions.close(handles[1:2])
    for handle, prefix in ((handles[0], prefixes[0]), (handles[2], prefixes[2])):
        assert branch(sessions, handle, [22, 23], 1, 2).sum() == pytest.approx(
            one_by_one(model, [*prefix, 20, 21], [22, 23])[0], abs=EXACT
        )
        sessions.close([handle])
    with pytest.raises(KeyError):
        sessions.extend([handles[0]], [nodes([5], [-1])])


def test_an_empty_prefix_gives_first_tokens_no_distribution():
    sessions = TreeSessions(CausalLm(tiny("llama"), eos_token_id=EOS))
    (handle,) = sessions.open([np.zeros(0, np.int32)])
    log_probs, eos = sessions.extend([handle], [nodes([5, 6], [-1, 0])])[0]
    assert np.isnan(log_probs).tolist() == [True, False]
    assert np.isfinite(eos).all()


def test_an_extension_by_nothing_is_nothing():
    sessions = TreeSessions(CausalLm(tiny("llama"), eos_token_id=EOS, utterances_per_forward=2))
    handles = sessions.open([np.array([5], np.int32), np.array([6, 7], np.int32)])
    for _ in range(2):
        results = sessions.extend(handles, [nodes([], []), nodes([], [])])
        assert [len(log_probs) for log_probs, _ in results] == [0, 0]
