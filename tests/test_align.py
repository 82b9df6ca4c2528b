import random
from collections.abc import Callable

import jiwer
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein

from ctxasr_ray import align

WORDS = st.lists(st.sampled_from(["a", "b", "c", "d", "e"]), max_size=9)
PAIRS = st.lists(st.tuples(WORDS, WORDS), max_size=8)


def generated_pairs(num: int, seed: int = 7) -> tuple[list[str], list[str]]:
    rng = random.Random(seed)
    vocabulary = ["".join(rng.choices("abcdefghijklmnopqrst", k=rng.randint(1, 8))) for _ in range(2000)]
    references, hypotheses = [], []
    for _ in range(num):
        words = rng.choices(vocabulary, k=rng.randint(1, 25))
        heard = list(words)
        for _ in range(rng.randint(0, 6)):
            at = rng.randint(0, len(heard))
            kind = rng.random()
            if kind < 0.4:
                heard[at : at + 1] = [rng.choice(vocabulary)]
            elif kind < 0.7:
                del heard[at : at + 1]
            else:
                heard.insert(at, rng.choice(words))
        references.append(" ".join(words))
        hypotheses.append(" ".join(heard))
    return references, hypotheses


def brute_force(
    reference: list[str], hypothesis: list[str], costs: tuple[int, int, int], prefer: Callable[..., str]
) -> tuple[int, int, int, int]:
    """Total cost, substitutions, deletions and insertions by the textbook recursion, walked back from the end."""
    substitution, deletion, insertion = costs
    n, m = len(reference), len(hypothesis)
    cost = [[0] * (m + 1) for _ in range(n + 1)]
    for i in range(n + 1):
        for j in range(m + 1):
            options = []
            if i and j:
                options.append(cost[i - 1][j - 1] + (substitution if reference[i - 1] != hypothesis[j - 1] else 0))
            if i:
                options.append(cost[i - 1][j] + deletion)
            if j:
                options.append(cost[i][j - 1] + insertion)
            cost[i][j] = min(options, default=0)
    counts = [0, 0, 0]
    i, j = n, m
    while i or j:
        ways = {}
        if i and j:
            ways["diagonal"] = cost[i - 1][j - 1] + (substitution if reference[i - 1] != hypothesis[j - 1] else 0)
        if i:
            ways["deletion"] = cost[i - 1][j] + deletion
        if j:
            ways["insertion"] = cost[i][j - 1] + insertion
        way = prefer([name for name, value in ways.items() if value == cost[i][j]])
        if way == "diagonal":
            counts[0] += reference[i - 1] != hypothesis[j - 1]
        else:
            counts[1 if way == "deletion" else 2] += 1
        i -= way != "insertion"
        j -= way != "deletion"
    return cost[n][m], counts[0], counts[1], counts[2]


def diagonal_first(ways: list[str]) -> str:
    return min(ways, key=["diagonal", "deletion", "insertion"].index)


@given(pairs=PAIRS)
@settings(max_examples=150, deadline=None)
def test_nist_counts_equal_the_textbook_recursion_with_the_diagonal_first(
    pairs: list[tuple[list[str], list[str]]],
) -> None:
    references, hypotheses = align.encode("word", [" ".join(r) for r, _ in pairs], [" ".join(h) for _, h in pairs])
    counts = align.count(references, hypotheses, "nist")
    for p, (reference, hypothesis) in enumerate(pairs):
        expected = brute_force(reference, hypothesis, (4, 3, 3), diagonal_first)
        found = (counts.substitutions[p], counts.deletions[p], counts.insertions[p])
        assert found == expected[1:]
        assert 4 * found[0] + 3 * found[1] + 3 * found[2] == expected[0]


@given(pairs=PAIRS)
@settings(max_examples=150, deadline=None)
def test_unit_totals_equal_the_textbook_recursion(pairs: list[tuple[list[str], list[str]]]) -> None:
    references, hypotheses = align.encode("word", [" ".join(r) for r, _ in pairs], [" ".join(h) for _, h in pairs])
    counts = align.count(references, hypotheses)
    for p, (reference, hypothesis) in enumerate(pairs):
        assert counts.errors[p] == brute_force(reference, hypothesis, (1, 1, 1), diagonal_first)[0]


def test_distances_of_lists_and_of_texts_longer_than_a_machine_word_equal_rapidfuzz() -> None:
    rng = random.Random(5)
    lengths = [0, 1, 63, 64, 65, 127, 128, 129, *(rng.randint(0, 300) for _ in range(40))]
    references = ["".join(rng.choices("abc", k=length)) for length in lengths]
    hypotheses = ["".join(rng.choices("abcd", k=length)) for length in rng.sample(lengths, len(lengths))]
    hypotheses += ["".join(c for c in text if rng.random() < 0.9) for text in references]
    said, heard = align.encode("character", references, hypotheses)
    rows, columns = (index.ravel() for index in np.indices((len(references), len(hypotheses))))
    expected = [Levenshtein.distance(r, h) for r in references for h in hypotheses]
    assert align.distances(said[rows], heard[columns]).tolist() == expected


@pytest.mark.parametrize("alignment", align.ALIGNMENTS)
@given(reference=WORDS, hypothesis=WORDS)
@settings(max_examples=200, deadline=None)
def test_counts_equal_the_alignment_that_is_shown(alignment: str, reference: list[str], hypothesis: list[str]) -> None:
    """kaldialign's align and edit_distance once disagreed on the split (pzelasko/kaldialign, PR 1)."""
    steps = align.align(reference, hypothesis, alignment)
    pair = align.encode("word", [" ".join(reference)], [" ".join(hypothesis)])
    counts = align.count(pair[0], pair[1], alignment)
    shown = [sum(step.op == op for step in steps) for op in ("hit", "substitution", "deletion", "insertion")]
    assert shown == [counts.hits[0], counts.substitutions[0], counts.deletions[0], counts.insertions[0]]
    assert counts.reference_length[0] == len(reference)
    assert shown[0] + shown[1] + shown[3] == len(hypothesis)
    assert [s.reference_index for s in steps if s.reference_index is not None] == list(range(len(reference)))
    assert [s.hypothesis_index for s in steps if s.hypothesis_index is not None] == list(range(len(hypothesis)))
    for op, i, j in steps:
        if i is not None and j is not None:
            assert (reference[i] == hypothesis[j]) == (op == "hit")


def test_an_alignment_step_by_step() -> None:
    steps = align.align(["the", "cat", "sat", "down"], ["a", "cat", "sat", "on", "down"])
    assert steps == [
        ("substitution", 0, 0),
        ("hit", 1, 1),
        ("hit", 2, 2),
        ("insertion", None, 3),
        ("hit", 3, 4),
    ]


def test_two_hits_are_worth_a_deletion_and_an_insertion_under_either_scheme() -> None:
    """Three substitutions cost 3 or 12, a deletion and an insertion around two hits 2 or 6."""
    for alignment in align.ALIGNMENTS:
        ops = [step.op for step in align.align(["a", "b", "c"], ["b", "c", "d"], alignment)]
        assert ops == ["deletion", "hit", "hit", "insertion"]


def test_the_schemes_split_the_same_two_errors_differently() -> None:
    """Two substitutions cost 2 or 8, a deletion and an insertion around a hit 2 or 6."""
    assert [step.op for step in align.align(["a", "b"], ["b", "c"], "unit")] == ["substitution", "substitution"]
    assert [step.op for step in align.align(["a", "b"], ["b", "c"], "nist")] == ["deletion", "hit", "insertion"]


def test_totals_and_splits_equal_jiwer_on_ten_thousand_pairs() -> None:
    raw_references, raw_hypotheses = generated_pairs(10_000)
    references, hypotheses = align.encode("word", raw_references, raw_hypotheses)
    counts = align.count(references, hypotheses)
    theirs = jiwer.process_words(raw_references, raw_hypotheses)
    ours = [int(a.sum()) for a in (counts.hits, counts.substitutions, counts.deletions, counts.insertions)]
    assert ours == [theirs.hits, theirs.substitutions, theirs.deletions, theirs.insertions]
    np.testing.assert_array_equal(align.distances(references, hypotheses), counts.errors)


def test_character_totals_equal_jiwer_on_ten_thousand_pairs() -> None:
    raw_references, raw_hypotheses = generated_pairs(10_000, seed=11)
    references, hypotheses = align.encode("character", raw_references, raw_hypotheses)
    counts = align.count(references, hypotheses)
    theirs = jiwer.process_characters(raw_references, raw_hypotheses)
    ours = [int(a.sum()) for a in (counts.hits, counts.substitutions, counts.deletions, counts.insertions)]
    assert ours == [theirs.hits, theirs.substitutions, theirs.deletions, theirs.insertions]


@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), max_size=6))
@settings(max_examples=300, deadline=None)
def test_words_are_cut_as_python_cuts_them(texts: list[str]) -> None:
    (encoded,) = align.encode("word", texts)
    assert encoded.lengths.tolist() == [len(t.split()) for t in texts]
    words = {
        unit: word
        for t, s in zip(texts, encoded.strings(), strict=True)
        for unit, word in zip(s, t.split(), strict=True)
    }
    assert ["".join(words[u] + "\n" for u in s) for s in encoded.strings()] == [
        "".join(w + "\n" for w in t.split()) for t in texts
    ]
    assert len(set(words.values())) == len(words)


def test_nothing_to_align_is_no_error() -> None:
    for alignment in align.ALIGNMENTS:
        references, hypotheses = align.encode("word", [], [])
        assert align.count(references, hypotheses, alignment).errors.tolist() == []
        references, hypotheses = align.encode("word", ["", "a", ""], ["", "", "b c"])
        counts = align.count(references, hypotheses, alignment)
        assert (counts.deletions.tolist(), counts.insertions.tolist()) == ([0, 1, 0], [0, 0, 2])
        assert align.align([], [], alignment) == []


def test_an_unknown_alignment_is_refused() -> None:
    references, hypotheses = align.encode("word", ["a"], ["b"])
    with pytest.raises(ValueError, match="alignment 'sclite' is unknown; choose one of unit, nist"):
        align.count(references, hypotheses, "sclite")


def test_words_with_the_same_hash_stay_different_and_a_large_vocabulary_grows() -> None:
    halves = ["abcdefgh", "ijklmnop", "qrstuvwx"]  # a word of 16 bytes and the same one with its halves swapped collide
    words = [a + b for a in halves for b in halves] + [f"w{i}" for i in range(20_000)] + ["\0a", "a", "\0\0a"]
    (encoded,) = align.encode("word", [" ".join(words), " ".join(reversed(words))])
    first, second = encoded.strings()
    assert len(set(first)) == len(words)
    assert first == second[::-1]
