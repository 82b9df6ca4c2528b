import random
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctxasr_ray.keywords.automaton import WordShape, build, close, spellings, step, word_shape
from ctxasr_ray.keywords.automaton_kernels import (
    INSIDE,
    START,
    Automaton,
    Int32s,
    earned_by_prefixes,
)
from ctxasr_ray.text import words

LETTERS = (" ", "a", "b", "c", "")
"""Characters with a space, as most CTC models have them; the last is the blank."""
PIECES = (" a", " b", "a", "b", "c", " ab", "")
"""Word starts carry their space, as in SentencePiece."""
IDEOGRAPHS = ("\u6771", "\u4eac", "\u5927", "")


def _ids(text: str, pieces: tuple[str, ...] = LETTERS) -> Int32s:
    return np.asarray([pieces.index(character) for character in text], dtype=np.int32)


def _automaton(phrases: list[str], weights: list[float], pieces: tuple[str, ...] = LETTERS) -> Automaton:
    return build(spellings([[_ids(phrase, pieces)] for phrase in phrases]), weights, word_shape(pieces))


def _earned(automaton: Automaton, tokens: Int32s) -> float:
    states, total = np.zeros(1, dtype=np.int32), 0.0
    for token in tokens:
        states, bonuses = step(automaton, states, np.asarray([token], dtype=np.int32))
        total += bonuses[0]
    whole = float(total + close(automaton, states)[0])
    parents, size = np.arange(-1, len(tokens), dtype=np.int32), len(tokens)
    nodes = np.asarray([size, min(size, 1), size], dtype=np.int32)
    of_texts = earned_by_prefixes(automaton, parents, np.concatenate([[-1], tokens]).astype(np.int32), nodes)
    assert of_texts[0] == of_texts[2] == whole
    return whole


def _words(text: str) -> list[str]:
    return text.split()


def _brute_force(phrases: list[list[str]], weights: list[float], text: list[str], size: list[int]) -> float:
    """Leftmost, then longest, none overlapping, over words (or characters)."""
    total, at = 0.0, 0
    while at < len(text):
        fits = [p for p, phrase in enumerate(phrases) if text[at : at + len(phrase)] == phrase]
        if fits:
            best = max(fits, key=lambda p: len(phrases[p]))
            total += weights[best] * size[best]
            at += len(phrases[best])
        else:
            at += 1
    return total


def test_a_thousand_random_phrases_match_as_brute_force_says() -> None:
    rng = random.Random(7)

    def words(most: int) -> str:
        return " ".join("".join(rng.choices("abc", k=rng.randint(1, 3))) for _ in range(rng.randint(1, most)))

    phrases = list(dict.fromkeys(words(4) for _ in range(1600)))[:1000]
    assert len(phrases) == 1000
    weights = [rng.randint(1, 999) / 8 for _ in phrases]  # eighths add up exactly, and tell phrases apart
    automaton = _automaton(phrases, weights)
    parts, sizes = [_words(phrase) for phrase in phrases], [len(phrase.replace(" ", "")) for phrase in phrases]
    for _ in range(300):
        text = words(30)
        assert _earned(automaton, _ids(text)) == _brute_force(parts, weights, _words(text), sizes)


@settings(deadline=None)
@given(
    st.lists(st.text("ab ", min_size=1, max_size=7).filter(str.strip), min_size=1, max_size=8),
    st.text("abc ", max_size=24),
)
def test_every_small_list_matches_whole_words_only(phrases: list[str], text: str) -> None:
    distinct = list({tuple(phrase.split()): phrase for phrase in phrases}.values())
    weights = [2.0**n for n in range(len(distinct))]
    parts, sizes = [_words(p) for p in distinct], [len("".join(p.split())) for p in distinct]
    expected = _brute_force(parts, weights, _words(text), sizes)
    assert _earned(_automaton(distinct, weights), _ids(text)) == expected


@settings(deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=4), min_size=1, max_size=6, unique_by=tuple),
    st.lists(st.integers(0, 2), max_size=20),
)
def test_without_spaces_phrases_match_anywhere(phrases: list[list[int]], text: list[int]) -> None:
    weights = [2.0**n for n in range(len(phrases))]
    ways = spellings([[np.asarray(phrase, dtype=np.int32)] for phrase in phrases])
    automaton = build(ways, weights, word_shape(IDEOGRAPHS))
    assert not automaton.whole_words
    strings = [[str(t) for t in phrase] for phrase in phrases]
    expected = _brute_force(strings, weights, [str(t) for t in text], [len(phrase) for phrase in phrases])
    assert _earned(automaton, np.asarray(text, dtype=np.int32)) == expected


@settings(deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=4), min_size=1, max_size=6),
    st.lists(st.integers(0, 5), max_size=14),
)
def test_word_pieces_match_whole_words_by_any_of_their_segmentations(phrases: list[list[int]], text: list[int]) -> None:
    starts = word_shape(PIECES).starts_word
    ways = [phrase for phrase in phrases if starts[phrase[0]]]
    automaton = build(spellings([[np.asarray(w, np.int32) for w in ways]]), [1.0], word_shape(PIECES))

    def units(tokens: list[int]) -> list[str]:
        words: list[str] = []
        for token in tokens:
            if starts[token] or not words:
                words.append("")
            words[-1] += f".{token}"  # a segmentation is matched, not a spelling
        return words

    def boundaries(tokens: list[int]) -> list[str]:
        return units(tokens) if not tokens or starts[tokens[0]] else ["none", *units(tokens)[1:]]

    distinct = list({tuple(units(way)): way for way in ways}.values())
    sizes = [len(way) for way in distinct]
    expected = _brute_force([units(w) for w in distinct], [1.0] * len(distinct), boundaries(text), sizes)
    assert _earned(automaton, np.asarray(text, dtype=np.int32)) == expected


def test_alternative_spellings_are_one_phrase() -> None:
    ways = spellings([[_ids("ab"), _ids("a b")], [_ids("c")]])
    automaton = build(ways, [1.0, 10.0], word_shape(LETTERS))
    assert _earned(automaton, _ids("ab c a b")) == 2 + 10 + 2


@settings(deadline=None)
@given(st.text("abc ", max_size=30), st.floats(-20, 20, width=32))
def test_a_failed_partial_match_leaves_exactly_nothing(text: str, weight: float) -> None:
    automaton = _automaton(["abcabcabc", "cab cab cab", "bbb a"], [weight, weight / 3, weight / 7])
    words = f" {' '.join(text.split())} "
    if not any(f" {phrase} " in words for phrase in ("abcabcabc", "cab cab cab", "bbb a")):
        assert _earned(automaton, _ids(text)) == 0.0


def test_a_bonus_is_lent_token_by_token() -> None:
    automaton = _automaton(["abc"], [0.5])
    states, total = np.zeros(1, dtype=np.int32), []
    for token in _ids("abca"):
        states, bonuses = step(automaton, states, np.asarray([token], dtype=np.int32))
        total.append(float(bonuses[0]))
    assert total == [0.5, 0.5, 0.5, -1.5]  # abca is another word


def test_an_empty_list_earns_nothing_and_never_leaves_its_two_states() -> None:
    automaton = build(spellings([]), [], word_shape(LETTERS))
    states = np.zeros(4, dtype=np.int32)
    for token in _ids("ab c"):
        states, bonuses = step(automaton, states, np.full(4, token, dtype=np.int32))
        assert not bonuses.any()
    assert not close(automaton, states).any()
    assert automaton.num_states == 2


def test_a_phrase_that_occurs_nowhere_changes_nothing() -> None:
    phrases, weights = ["ab", "ab ab c"], [1.0, 2.0]
    fewer, more = _automaton(phrases, weights), _automaton([*phrases, "cccc"], [*weights, 4.0])
    for text in ("ab ab", "ab ab c", "abab c ab", "a b c"):
        assert _earned(fewer, _ids(text)) == _earned(more, _ids(text))


def test_a_phrase_of_two_hundred_tokens_matches() -> None:
    long = "ab" * 100
    assert _earned(_automaton([long, "ab"], [1.0, 1.0]), _ids(f"{long} ab {long}a")) == 202


def test_many_hypotheses_step_as_one_by_one() -> None:
    rng = np.random.default_rng(7)
    automaton = _automaton(["ab", "abc ab", "c"], [1.0, 2.0, 3.0])
    tokens = rng.integers(0, 4, (40, 12)).astype(np.int32)
    states, totals = np.full(40, START, dtype=np.int32), np.zeros(40)
    for column in tokens.T:
        states, bonuses = step(automaton, states, np.ascontiguousarray(column))
        totals += bonuses
    totals += close(automaton, states)
    assert totals.tolist() == [_earned(automaton, row) for row in tokens]


@settings(deadline=None)
@given(
    st.lists(st.text("\u6771\u4eac ab", min_size=1, max_size=5), min_size=1, max_size=6),
    st.text("\u6771\u4eac ab", max_size=16),
)
def test_an_ideograph_is_a_word_wherever_it_stands_as_for_the_keyword_metrics(phrases: list[str], text: str) -> None:
    pieces = (" ", "a", "b", "\u6771", "\u4eac", "")
    distinct = {tuple(words(phrase, "mandarin")): phrase for phrase in phrases}
    distinct.pop((), None)
    weights = [2.0**n for n in range(len(distinct))]
    automaton = _automaton(list(distinct.values()), weights, pieces)
    sizes = [sum(map(len, phrase)) for phrase in distinct]
    expected = _brute_force([list(phrase) for phrase in distinct], weights, words(text, "mandarin"), sizes)
    assert _earned(automaton, _ids(text, pieces)) == expected


def test_a_name_in_ideographs_is_found_inside_a_sentence_without_spaces() -> None:
    pieces = (" ", "a", "b", "\u6771", "\u4eac", "")
    automaton = _automaton(["\u6771\u4eac"], [1.0], pieces)
    assert _earned(automaton, _ids("\u4eac\u6771\u4eacab", pieces)) == 2.0


def test_a_weight_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="phrase 1 is not finite"):
        _automaton(["a", "b"], [1.0, float("nan")])


def test_fifty_thousand_phrases_are_built_in_seconds_at_most() -> None:
    rng = np.random.default_rng(7)
    lists = [[rng.integers(1, 27, rng.integers(4, 14)).astype(np.int32)] for _ in range(50_000)]
    space = np.arange(28) == 0
    shape = WordShape(starts_word=space, is_space=space, is_word=np.zeros(28, np.bool_))
    ways = spellings(lists)
    build(spellings(lists[:10]), np.ones(10), shape)
    start = time.perf_counter()
    built = build(ways, np.ones(50_000), shape)
    assert time.perf_counter() - start < 5.0  # 0.3 s on a quiet core; benchmarks/keywords.py holds it to 0.5
    assert built.num_states > 100_000
    for (phrase,) in lists[::5000]:  # also deep states, which the table of the first ones does not hold
        assert _earned(built, phrase) == len(phrase)


@pytest.mark.parametrize("pieces", [LETTERS, PIECES, IDEOGRAPHS])
def test_no_token_earns_more_than_its_state_lets_expect(pieces: tuple[str, ...]) -> None:
    rng = random.Random(5)
    written = [piece for piece in pieces if piece.strip()]
    lists = [[_spelled(rng.choices(written, k=rng.randint(1, 6)), pieces)] for _ in range(80)]
    automaton = build(spellings(lists), [rng.randint(-8, 40) / 8 for _ in lists], word_shape(pieces))
    states = np.arange(automaton.num_states, dtype=np.int32)
    most = np.stack([step(automaton, states, np.full_like(states, token))[1] for token in range(len(pieces))]).max(
        axis=0
    )
    assert (most <= automaton.states["gain"][:-1]).all()
    assert most.max() > 0
    assert automaton.most == automaton.states["gain"].max()


@pytest.mark.parametrize("pieces", [LETTERS, PIECES, IDEOGRAPHS])
def test_a_token_without_its_bit_ends_the_match(pieces: tuple[str, ...]) -> None:
    rng = random.Random(6)
    written = [piece for piece in pieces if piece.strip()]
    lists = [[_spelled(rng.choices(written, k=rng.randint(1, 6)), pieces)] for _ in range(60)]
    automaton = build(spellings(lists), [rng.randint(-8, 40) / 8 for _ in lists], word_shape(pieces))
    states = np.arange(automaton.num_states, dtype=np.int32)
    lost = automaton.states["kept"][:-1].astype(np.float64) - automaton.states["lent"][:-1]
    ended = 0
    for token in range(len(pieces)):
        after, bonuses = step(automaton, states, np.full_like(states, token))
        over = automaton.states["follows"][:-1] & automaton.bit[token] == 0
        assert (after[over] == (START if automaton.is_space[token] else INSIDE)).all()
        assert bonuses[over].tolist() == lost[over].tolist()
        ended += over.sum()
    assert (ended > 0) == automaton.whole_words


def _spelled(written: list[str], pieces: tuple[str, ...]) -> Int32s:
    return np.asarray([pieces.index(piece) for piece in written], dtype=np.int32)
