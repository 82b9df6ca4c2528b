"""Aho-Corasick over recogniser tokens: a phrase earns a bonus token by token and loses it where it breaks off.

One integer of state per hypothesis, flat arrays, the same on CPU and GPU. Matches are those of the keyword metrics:
leftmost, then longest, none overlapping. A step gives what a hypothesis has earned so far minus what it had: the
bonuses of its complete phrases plus what its partial match is lent. Failure links therefore know what is kept when
they are taken, and a partial match that breaks off leaves exactly nothing.

Where words are separated, phrases match whole words only: a match begins at a word's start, and is complete when the
next word starts or the text ends. An ideograph is a word wherever it stands, as in `text`'s normaliser `mandarin`, so
a name is found inside a sentence without spaces.

Letters: N nodes, P phrases, S spellings, V tokens of the recogniser, H hypotheses.

Reference:
    Aho and Corasick 1975. Keeping the bonus of a finished match, and whole words, are ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from ctxasr_ray.keywords.automaton_kernels import (
    ANY,
    NUM_BITS,
    START,
    STATE,
    WORD_END,
    Automaton,
    Int32s,
    advance,
    gains,
    link,
    mark,
)
from ctxasr_ray.text import is_ideographic

_TABLE: Final = 1 << 16
"""Entries of `Automaton.first_rows`, about: what a core's own cache holds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WordShape:
    """How a recogniser's tokens make words."""

    starts_word: npt.NDArray[np.bool_]
    """(V,) tokens that end the word before them: they are, or begin with, a space, or they are ideographs."""
    is_space: npt.NDArray[np.bool_]
    """(V,) tokens that write nothing but a space."""
    is_word: npt.NDArray[np.bool_]
    """(V,) tokens that are words of their own, with or without space around them: ideographs."""
    whole_words: bool = True
    """False for scripts without spaces: phrases match anywhere."""


def word_shape(pieces: Sequence[str]) -> WordShape:
    """Reads from the text of each token how words are separated; without any space phrases match anywhere.

    Args:
        pieces: (V,) what each token writes; a word's start carries its leading space.
    """
    ideographs = np.asarray([is_ideographic(piece.strip()) for piece in pieces], dtype=np.bool_)
    spaced = np.asarray([piece.startswith(" ") for piece in pieces], dtype=np.bool_)
    space = np.asarray([piece.startswith(" ") and not piece.strip() for piece in pieces], dtype=np.bool_)
    return WordShape(
        starts_word=spaced | ideographs, is_space=space, is_word=ideographs, whole_words=bool(spaced.any())
    )


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
    first_rows = np.full((min(count, 1 + _TABLE // (num_tokens + 1)), num_tokens + 1), -1, dtype=np.int32)
    near = 2 + np.flatnonzero(parent[2:] < len(first_rows))
    first_rows[parent[near], symbol[near]] = near
    states = np.zeros(count + 1, dtype=STATE)
    states["first_child"] = np.concatenate([[2], 2 + np.cumsum(children)])
    states["lent"][:-1] = np.concatenate(lent)
    made = Automaton(
        symbol=symbol,
        states=states,
        bit=_bits(shape),
        first_rows=first_rows,
        starts_word=shape.starts_word,
        is_space=shape.is_space,
        is_word=shape.is_word,
        whole_words=shape.whole_words,
        most=0.0,
    )
    link(made, parent.astype(np.int32), np.concatenate(complete))
    mark(made)
    symbols_T = 1 + (shape.starts_word & ~shape.is_space) + shape.is_word  # that one token brings
    gain_N = gains(made)
    gain_N += gain_N.max() * (int(symbols_T.max()) - 1 if shape.whole_words else 0)
    rounded_N = gain_N.astype(np.float32)
    states["gain"][:-1] = np.where(rounded_N < gain_N, np.nextafter(rounded_N, np.float32(np.inf)), rounded_N)
    return made._replace(most=float(states["gain"].max()))


def _bits(shape: WordShape) -> npt.NDArray[np.uint64]:
    """(V + 1,) the bit of each token and of the end of a word, see `STATE`."""
    num_tokens = len(shape.starts_word)
    bits = np.uint64(1) << (np.arange(num_tokens + 1) % NUM_BITS).astype(np.uint64)
    bits[:-1][shape.starts_word | shape.is_word] = ANY
    bits[:-1][shape.is_space] = WORD_END
    bits[-1] = WORD_END
    return bits


def _symbols(ways: Spellings, shape: WordShape) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(symbols, offsets): the sequences with one V where a word ends, also behind the last word."""
    tokens, end = ways.tokens.astype(np.int64), len(shape.starts_word)
    if not shape.whole_words:
        return tokens, ways.offsets
    owner = np.repeat(np.arange(len(ways.phrase)), np.diff(ways.offsets))
    # every token brings up to three symbols: the end of the word before it, itself unless it is a space, its own end
    brought = (
        np.where(shape.starts_word[tokens], end, -1),
        np.where(shape.is_space[tokens], -1, tokens),
        np.where(shape.is_word[tokens], end, -1),
    )
    flat, owners = np.stack(brought, 1).ravel(), np.repeat(owner, 3)
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
    advance(automaton, states, tokens, out, bonuses)
    return out, bonuses


def close(automaton: Automaton, states: Int32s) -> npt.NDArray[np.float64]:
    """(H,) nats that the end of the text adds: partial matches are taken back, a last whole word is confirmed."""
    closed: npt.NDArray[np.float64] = (
        automaton.states["closing"][states].astype(np.float64) - automaton.states["lent"][states]
    )
    return closed
