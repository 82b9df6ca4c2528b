import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctxasr_ray.token_tree import chain, merge

sequences = st.lists(st.lists(st.integers(0, 3), max_size=6), max_size=12)


def distinct_prefixes(items):
    return {tuple(s[: i + 1]) for s in items for i in range(len(s))}


@given(sequences, st.lists(st.integers(0, 3), max_size=3))
@settings(max_examples=200, deadline=None)
def test_a_merged_tree_holds_every_distinct_prefix_once_and_spells_every_sequence(items, prefix):
    merged = merge(items, prefix)
    tree, p = merged.tree, len(prefix)
    assert len(tree) == p + len(distinct_prefixes(items))
    assert merged.num_distinct_tokens == sum(map(len, {tuple(s) for s in items}))
    for i, sequence in enumerate(items):
        nodes = merged.nodes[i][: len(sequence)]
        assert tree.tokens[nodes].tolist() == list(sequence)
        assert (merged.nodes[i][len(sequence) :] == -1).all()
        assert tree.tokens[tree.path(int(merged.ends[i]))].tolist() == [*prefix, *sequence]
        assert tree.depths[nodes].tolist() == list(range(p, p + len(sequence)))


@given(sequences)
@settings(max_examples=100, deadline=None)
def test_a_merged_tree_stands_in_depth_first_order(items):
    tree = merge(items).tree
    rank, end = tree.intervals()
    assert rank.tolist() == list(range(len(tree)))
    assert (tree.parents < rank).all()
    assert (end > rank).all()


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 100)), max_size=25), st.integers(1, 4))
@settings(max_examples=100, deadline=None)
def test_the_interval_test_sees_exactly_the_ancestors_in_trees_grown_in_any_order(nodes, step):
    tree = chain([7, 8])
    for start in range(0, len(nodes), step):
        block = nodes[start : start + step]
        first = len(tree)
        tree.append([t for t, _ in block], [r % (first + i + 1) - 1 for i, (_, r) in enumerate(block)])
    everything = np.arange(len(tree), dtype=np.int32)
    seen = tree.visible(everything, everything)
    for query in range(len(tree)):
        assert np.flatnonzero(seen[query]).tolist() == sorted(tree.path(query).tolist())


def test_empty_cache_slots_are_seen_by_nobody():
    tree = chain([1, 2, 3])
    seen = tree.visible(np.array([2, -1], np.int32), np.array([0, -1, 2], np.int32))
    assert seen.tolist() == [[True, False, True], [False, False, False]]


@given(sequences)
@settings(max_examples=100, deadline=None)
def test_inserting_one_by_one_gives_the_nodes_of_merging_at_once(items):
    tree = chain([9])
    ends = [tree.insert(s, top=0) for s in items]
    assert len(tree) == len(merge(items, [9]).tree)
    assert sum(len(new) for _, new in ends) == len(tree) - 1
    for (end, _), sequence in zip(ends, items, strict=True):
        assert tree.tokens[tree.path(end)].tolist() == [9, *sequence]


def test_sums_follow_the_paths():
    merged = merge([[1, 2], [1, 3], [], [1]], [5, 6])
    values = np.arange(len(merged.tree), dtype=np.float64)
    expected = [sum(values[n] for n in row if n >= 0) for row in merged.nodes]
    assert merged.sums(values).tolist() == expected
    assert merged.sums(values)[2] == 0.0


def test_leaves_have_no_child_among_the_nodes_given():
    tree = merge([[1, 2, 3], [1, 4]]).tree
    assert tree.leaves().tolist() == [2, 3]
    assert tree.leaves(np.array([0, 1], np.int32)).tolist() == [1]


def test_a_child_before_its_parent_is_refused():
    with pytest.raises(ValueError, match=r"new node 1 .* stands before its child"):
        chain([1]).append([2, 3], [0, 2])
    with pytest.raises(ValueError, match="2 tokens for 1 parents"):
        chain([1]).append([2, 3], [0])
