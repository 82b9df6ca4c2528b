"""Aho-Corasick over recogniser tokens: a phrase earns a bonus token by token and loses it where it breaks off.

One integer of state per hypothesis, flat arrays, the same on CPU and GPU. Matches are those of the keyword metrics:
leftmost, then longest, none overlapping. A step gives what a hypothesis has earned so far minus what it had: the
bonuses of its complete phrases plus what its partial match is lent. Failure links therefore know what is kept when
they are taken, and a partial match that breaks off leaves exactly nothing.

Where words are separated, phrases match whole words only: a match begins at a word's start, and is complete when the
next word starts or the text ends. Letters: N nodes, P phrases, S spellings, V tokens of the recogniser, H hypotheses.

Reference:
    Aho and Corasick 1975. Keeping the bonus of a finished match, and whole words, are ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numba
import numpy as np
import numpy.typing as npt

Int32s = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]

START: Final = 0
"""State before the first token, and at a word's start with nothing matched."""
INSIDE: Final = 1
"""State inside a word that no phrase begins with; unused where words are not separated."""
_compiled = numba.njit(cache=True, nogil=True)


class Automaton(NamedTuple):
    """N states; their numbers ascend with depth. The children of state n are first_child[n] to first_child[n + 1]."""

    first_child: Int32s
    """(N + 1,)"""
    symbol: Int32s
    """(N,) what leads to a state: a token, or V where a word ends."""
    fall: Int32s
    """(N,) the state to go on from where no child fits."""
    kept: Floats
    """(N,) bonuses of complete phrases that are kept then."""
    lent: Floats
    """(N,) earned so far by what the state spells, complete or not."""
    closing: Floats
    """(N,) what of it is kept where the text ends."""
    start_row: Int32s
    """(V + 1,) children of `START` by symbol, -1 for none: most steps begin there."""
    starts_word: npt.NDArray[np.bool_]
    """(V,) tokens that end the word before them."""
    is_space: npt.NDArray[np.bool_]
    """(V,) tokens that are nothing but that."""
    whole_words: bool
    most: float
    """Nats that one token can earn, wherever it is written; a bound for searches that prune early."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WordShape:
    """How a recogniser's tokens make words."""

    starts_word: npt.NDArray[np.bool_]
    """(V,) tokens that end the word before them: they are, or begin with, a space."""
    is_space: npt.NDArray[np.bool_]
    """(V,) tokens that write nothing but a space."""
    whole_words: bool = True
    """False for scripts without spaces: phrases match anywhere."""


def word_shape(pieces: Sequence[str]) -> WordShape:
    """Reads from the text of each token how words are separated; without any space phrases match anywhere.

    Args:
        pieces: (V,) what each token writes; a word's start carries its leading space.
    """
    starts = np.asarray([piece.startswith(" ") for piece in pieces], dtype=np.bool_)
    space = np.asarray([piece.startswith(" ") and not piece.strip() for piece in pieces], dtype=np.bool_)
    return WordShape(starts_word=starts, is_space=space, whole_words=bool(starts.any()))


@dataclass(frozen=True, kw_only=True, slots=True)
class Spellings:
    """S token sequences of P phrases; a phrase may have several, or none."""

    tokens: Int32s
    """All sequences, one after another."""
    offsets: npt.NDArray[np.int64]
    """(S + 1,) where each begins."""
    phrase: Int32s
    """(S,) the phrase that each spells."""


def spellings(token_lists: Sequence[Sequence[Int32s]]) -> Spellings:
    """Lays out token sequences in one line.

    Args:
        token_lists: Per phrase its sequences; empty ones are left out.
    """
    lists = [(p, ids) for p, ways in enumerate(token_lists) for ids in ways if len(ids)]
    lengths = [len(ids) for _, ids in lists]
    return Spellings(
        tokens=np.concatenate([np.asarray(ids, dtype=np.int32) for _, ids in lists] or [np.zeros(0, np.int32)]),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        phrase=np.asarray([p for p, _ in lists], dtype=np.int32),
    )


def build(ways: Spellings, weights: npt.ArrayLike, shape: WordShape) -> Automaton:
    """Makes the automaton, a level of the trie at a time.

    Args:
        ways: Token sequences; leading and double spaces mean nothing.
        weights: (P,) finite nats that each token of a phrase earns; negative ones punish.
        shape: Of the recogniser's tokens.

    Raises:
        ValueError: a weight that is not finite.
    """
    weights_P = np.asarray(weights, dtype=np.float32)
    if not np.isfinite(weights_P).all():
        raise ValueError(f"weight of phrase {int(np.isfinite(weights_P).argmin())} is not finite; expected nats.")
    num_tokens = len(shape.starts_word)
    symbols, offsets = _symbols(ways, shape)
    lengths = np.diff(offsets)
    node_S = np.full(len(lengths), START, dtype=np.int64)
    parents, symbol_of = [np.zeros(2, np.int64)], [np.full(2, num_tokens, np.int64)]
    lent, complete = [np.zeros(2, np.float32)], [np.full(2, np.nan, np.float32)]
    written_S = np.zeros(len(lengths), dtype=np.int64)  # tokens so far, ends of words apart
    count = 2
    for depth in range(int(lengths.max(initial=0))):
        alive = np.flatnonzero(lengths > depth)
        symbol_A = symbols[offsets[alive] + depth]
        keys, node_A = np.unique(node_S[alive] * (num_tokens + 1) + symbol_A, return_inverse=True)
        written_S[alive] += symbol_A != num_tokens
        bonus_A = weights_P[ways.phrase[alive]] * written_S[alive].astype(np.float32)
        best = np.full(len(keys), -np.inf, dtype=np.float32)
        np.maximum.at(best, node_A, bonus_A)
        done = np.full(len(keys), np.nan, dtype=np.float32)
        ends = lengths[alive] == depth + 1
        np.fmax.at(done, node_A[ends], bonus_A[ends])
        parents.append(keys // (num_tokens + 1))
        symbol_of.append(keys % (num_tokens + 1))
        lent.append(best)
        complete.append(done)
        node_S[alive] = count + node_A
        count += len(keys)
    parent = np.concatenate(parents)
    children = np.bincount(parent[2:], minlength=count)
    symbol = np.concatenate(symbol_of).astype(np.int32)
    start_row = np.full(num_tokens + 1, -1, dtype=np.int32)
    start_row[symbol[2 : 2 + children[START]]] = np.arange(2, 2 + children[START])
    made = Automaton(
        first_child=np.concatenate([[2], 2 + np.cumsum(children)]).astype(np.int32),
        symbol=symbol,
        fall=np.zeros(count, dtype=np.int32),
        kept=np.zeros(count, dtype=np.float32),
        lent=np.concatenate(lent),
        closing=np.zeros(count, dtype=np.float32),
        start_row=start_row,
        starts_word=shape.starts_word,
        is_space=shape.is_space,
        whole_words=shape.whole_words,
        most=0.0,
    )
    _link(made, parent.astype(np.int32), np.concatenate(complete))
    two_symbols = shape.whole_words and bool((shape.starts_word & ~shape.is_space).any())
    return made._replace(most=float(_largest_gain(made)) * (2 if two_symbols else 1))


def _symbols(ways: Spellings, shape: WordShape) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(symbols, offsets): the sequences with one V where a word ends, also behind the last word."""
    tokens, end = ways.tokens.astype(np.int64), len(shape.starts_word)
    if not shape.whole_words:
        return tokens, ways.offsets
    owner = np.repeat(np.arange(len(ways.phrase)), np.diff(ways.offsets))
    # every token brings up to two symbols: the end of the word before it, and itself unless it is a space
    pairs = np.stack([np.where(shape.starts_word[tokens], end, -1), np.where(shape.is_space[tokens], -1, tokens)], 1)
    flat, owners = pairs.ravel(), np.repeat(owner, 2)
    present = flat >= 0
    flat, owners = flat[present], owners[present]
    closed = np.searchsorted(owners, np.arange(len(ways.phrase)), side="right")
    flat, owners = np.insert(flat, closed, end), np.insert(owners, closed, np.arange(len(ways.phrase)))
    first = np.concatenate([[True], owners[1:] != owners[:-1]]) if len(owners) else np.zeros(0, np.bool_)
    after_end = np.concatenate([[True], flat[:-1] == end]) if len(flat) else np.zeros(0, np.bool_)
    kept = ~((flat == end) & (first | after_end))
    lengths = np.bincount(owners[kept], minlength=len(ways.phrase))
    return flat[kept], np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def step(automaton: Automaton, states: Int32s, tokens: Int32s) -> tuple[Int32s, npt.NDArray[np.float64]]:
    """Advances hypotheses by one token each.

    Args:
        automaton: Shared by all.
        states: (H,) `START` before the first token.
        tokens: (H,) token ids, 0 to V - 1.

    Returns:
        New states, (H,), and what each step adds to what the hypothesis had earned, (H,) nats.
    """
    out, bonuses = np.empty(len(states), dtype=np.int32), np.empty(len(states))
    _advance(automaton, states, tokens, out, bonuses)
    return out, bonuses


def close(automaton: Automaton, states: Int32s) -> npt.NDArray[np.float64]:
    """(H,) nats that the end of the text adds: partial matches are taken back, a last whole word is confirmed."""
    closed: npt.NDArray[np.float64] = automaton.closing[states].astype(np.float64) - automaton.lent[states]
    return closed


@_compiled  # type: ignore[untyped-decorator]  # numba is untyped
def expand_candidates(
    automaton: Automaton,
    states_K: Int32s,
    row_C: Int32s,
    token_C: Int32s,
    fusion_C: npt.NDArray[np.float64],
    score_C: npt.NDArray[np.float64],
) -> None:
    """Adds to each candidate of a beam what its token earns; a score of -inf is not looked at.

    Args:
        automaton: The phrases.
        states_K: (K,) states of the beam's rows.
        row_C: (C,) row of each candidate; those of one row stand together, or it takes longer.
        token_C: (C,) the token that each writes.
        fusion_C: (C,) changed.
        score_C: (C,) changed alike.
    """
    last = -1
    state, low, high, lent = START, 0, 0, 0.0
    for c in range(row_C.shape[0]):
        if score_C[c] == -np.inf:
            continue
        if row_C[c] != last:
            last = row_C[c]
            state = states_K[last]
            lent = np.float64(automaton.lent[state])
            low, high = automaton.first_child[state], automaton.first_child[state + 1]
        token = token_C[c]
        if not (automaton.whole_words and automaton.starts_word[token]):
            if state == INSIDE:
                continue
            child = _child(automaton, state, low, high, token)
            if child >= 0:
                bonus = automaton.lent[child] - lent
            elif state > INSIDE and automaton.fall[state] == INSIDE:
                bonus = automaton.kept[state] - lent
            else:
                _, bonus = on_token(automaton, state, token)
        elif state == INSIDE and automaton.is_space[token]:
            continue
        else:
            _, bonus = on_token(automaton, state, token)
        fusion_C[c] += bonus
        score_C[c] += bonus


@_compiled  # type: ignore[untyped-decorator]  # numba is untyped
def advance_rows(automaton: Automaton, states_K: Int32s, token_K: Int32s) -> None:
    """Moves the states of K rows over the token that each wrote; rows with a negative token wrote none."""
    for k in range(states_K.shape[0]):
        if token_K[k] >= 0:
            states_K[k], _ = on_token(automaton, states_K[k], token_K[k])


@_compiled  # type: ignore[untyped-decorator]  # numba is untyped
def _child(automaton: Automaton, state: int, low: int, high: int, symbol: int) -> int:
    """The child of a state by a symbol, among `low` to `high`; -1 for none."""
    if state == START:
        return int(automaton.start_row[symbol])
    while high - low > 4:
        middle = (low + high) // 2
        if automaton.symbol[middle] <= symbol:
            low = middle
        else:
            high = middle
    for child in range(low, high):
        if automaton.symbol[child] == symbol:
            return child
    return -1


@_compiled  # type: ignore[untyped-decorator]  # numba is untyped
def _on_symbol(automaton: Automaton, state: int, symbol: int) -> tuple[int, float]:
    """(new state, bonuses of complete phrases that were kept on the way)."""
    end = automaton.starts_word.shape[0]
    if symbol == end and automaton.symbol[state] == end and state != INSIDE:
        return state, 0.0  # a second space
    kept = 0.0
    while True:
        if state == INSIDE:
            return (START if symbol == end else INSIDE), kept
        child = _child(automaton, state, automaton.first_child[state], automaton.first_child[state + 1], symbol)
        if child >= 0:
            return child, kept
        if state == START:
            return (INSIDE if automaton.whole_words and symbol != end else START), kept
        kept += automaton.kept[state]
        state = automaton.fall[state]


@_compiled  # type: ignore[untyped-decorator]  # numba is untyped
def on_token(automaton: Automaton, state: int, token: int) -> tuple[int, float]:
    """(new state, nats earned by this token)."""
    before = np.float64(automaton.lent[state])
    kept = 0.0
    if automaton.whole_words and automaton.starts_word[token]:
        state, kept = _on_symbol(automaton, state, automaton.starts_word.shape[0])
    if not (automaton.whole_words and automaton.is_space[token]):
        state, more = _on_symbol(automaton, state, token)
        kept += more
    return state, kept + np.float64(automaton.lent[state]) - before


@_compiled  # type: ignore[untyped-decorator]  # numba is untyped
def _advance(
    automaton: Automaton, states: Int32s, tokens: Int32s, out: Int32s, bonuses: npt.NDArray[np.float64]
) -> None:
    for h in range(states.shape[0]):
        out[h], bonuses[h] = on_token(automaton, states[h], tokens[h])


@_compiled  # type: ignore[untyped-decorator]  # numba is untyped
def _link(automaton: Automaton, parent: Int32s, complete: Floats) -> None:
    """Fills `fall`, `kept` and `closing`; a state's links lead to states of lower numbers, so one pass is enough.

    A state falls to where its text without the first token would lead, or, where a phrase was complete on the way,
    to where the text behind the longest such phrase would lead, whose bonus is kept.
    """
    end = automaton.starts_word.shape[0]
    for state in range(2, automaton.symbol.shape[0]):
        if not np.isnan(complete[state]):
            automaton.fall[state], automaton.kept[state] = START, complete[state]
        elif parent[state] == START:
            automaton.fall[state] = INSIDE if automaton.whole_words else START
        else:
            above = parent[state]
            automaton.fall[state], kept = _on_symbol(automaton, automaton.fall[above], automaton.symbol[state])
            automaton.kept[state] = automaton.kept[above] + kept
        automaton.closing[state] = automaton.kept[state] + automaton.closing[automaton.fall[state]]
    if automaton.whole_words:
        ends = automaton.closing.copy()
        for state in range(2, automaton.symbol.shape[0]):
            after, kept = _on_symbol(automaton, state, end)
            automaton.closing[state] = kept + ends[after]


@_compiled  # type: ignore[untyped-decorator]  # numba is untyped
def _largest_gain(automaton: Automaton) -> float:
    """Of one symbol: to a child, or by way of the fall."""
    gain = np.zeros(automaton.symbol.shape[0])
    for state in range(automaton.symbol.shape[0]):
        for child in range(automaton.first_child[state], automaton.first_child[state + 1]):
            gain[state] = max(gain[state], np.float64(automaton.lent[child]) - automaton.lent[state])
        if state > INSIDE:
            below = automaton.fall[state]
            kept = np.float64(automaton.kept[state]) + automaton.lent[below] - automaton.lent[state]
            gain[state] = max(gain[state], kept + gain[below])
    return float(gain.max())
