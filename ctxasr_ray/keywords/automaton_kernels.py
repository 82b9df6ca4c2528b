"""The steps of the keyword automaton, compiled, and its arrays; `automaton` builds it.

Letters: N states, V tokens of the recogniser, H hypotheses, K beam rows, C candidates.
"""

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
STATE: Final = np.dtype(
    [
        ("follows", np.uint64),
        ("first_child", np.int32),
        ("fall", np.int32),
        ("kept", np.float32),
        ("lent", np.float32),
        ("closing", np.float32),
        ("gain", np.float32),
    ]
)
"""What is known of a state, side by side, because a search asks for all of it at once.

follows: Bits of the symbols that lead on in a phrase. After a token whose bit is missing a hypothesis has `kept` and is
    at START after a space, else INSIDE; all bits are set where that need not be so.
first_child: The first of its children, which lie together.
fall: The state to go on from where no child fits.
kept: Bonuses of complete phrases that are kept then.
lent: Earned so far by what the state spells, complete or not.
closing: What of it is kept where the text ends.
gain: Most that the next token can earn.
"""
ANY: Final = np.uint64(1) << np.uint64(63)
"""Bit that every state has, of tokens that bring several symbols."""
WORD_END: Final = np.uint64(1) << np.uint64(62)
"""Bit of the symbol that ends a word, and of tokens that are only a space."""
NUM_BITS: Final = 62
"""For all other tokens; several tokens may share one."""
_compiled = numba.njit(cache=True, nogil=True)
_within = numba.njit(nogil=True, inline="always")


class Automaton(NamedTuple):
    """N states; their numbers ascend with depth. The children of a state are its `first_child` to that of the next."""

    symbol: Int32s
    """(N,) what leads to a state: a token, or V where a word ends."""
    states: npt.NDArray[np.void]
    """(N + 1,) of `STATE`; the last is none, and says where children end."""
    bit: npt.NDArray[np.uint64]
    """(V + 1,) of each symbol, and of tokens."""
    first_rows: Int32s
    """(D, V + 1) children of the first D states by symbol, -1 for none: most steps are near the beginning of a phrase,
    where there are many children to search among."""
    starts_word: npt.NDArray[np.bool_]
    """(V,) tokens that end the word before them."""
    is_space: npt.NDArray[np.bool_]
    """(V,) tokens that are nothing but that."""
    is_word: npt.NDArray[np.bool_]
    """(V,) tokens that also end the word that they are: ideographs."""
    whole_words: bool
    most: float
    """Nats that one token can earn, wherever it is written; a bound for searches that prune early."""

    @property
    def num_states(self) -> int:
        """N; 2 without any phrase."""
        return len(self.states) - 1


@_within  # type: ignore[untyped-decorator]  # numba is untyped
def earn(automaton: Automaton, state: int, token: int) -> tuple[int, float]:
    """As `on_token`, without a walk where none is needed: no phrase goes on, or inside a word a child fits."""
    if automaton.states[state].follows & automaton.bit[token] == np.uint64(0):
        after = START if automaton.is_space[token] else INSIDE
        return after, np.float64(automaton.states[state].kept) - automaton.states[state].lent
    if not (automaton.whole_words and automaton.starts_word[token]):
        child = _child(automaton, state, token)
        if child >= 0:
            return child, np.float64(automaton.states[child].lent) - automaton.states[state].lent
    after, bonus = on_token(automaton, state, token)
    return after, bonus


@_compiled  # type: ignore[untyped-decorator]  # numba is untyped
def advance_rows(automaton: Automaton, states_K: Int32s, token_K: Int32s) -> None:
    """Moves the states of K rows over the token that each wrote; rows with a negative token wrote none."""
    for k in range(states_K.shape[0]):
        if token_K[k] >= 0:
            states_K[k], _ = on_token(automaton, states_K[k], token_K[k])


@_within  # type: ignore[untyped-decorator]  # numba is untyped
def _child(automaton: Automaton, state: int, symbol: int) -> int:
    """The child of a state by a symbol, -1 for none."""
    if state < automaton.first_rows.shape[0]:
        return int(automaton.first_rows[state, symbol])
    low, high = automaton.states[state].first_child, automaton.states[state + 1].first_child
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


@_within  # type: ignore[untyped-decorator]  # numba is untyped
def _on_symbol(automaton: Automaton, state: int, symbol: int) -> tuple[int, float]:
    """(new state, bonuses of complete phrases that were kept on the way)."""
    end = automaton.starts_word.shape[0]
    if symbol == end and automaton.symbol[state] == end and state != INSIDE:
        return state, 0.0  # a second space
    kept = 0.0
    while True:
        if state == INSIDE:
            return (START if symbol == end else INSIDE), kept
        child = _child(automaton, state, symbol)
        if child >= 0:
            return child, kept
        if state == START:
            return (INSIDE if automaton.whole_words and symbol != end else START), kept
        kept += automaton.states[state].kept
        state = automaton.states[state].fall


@_within  # type: ignore[untyped-decorator]  # numba is untyped
def on_token(automaton: Automaton, state: int, token: int) -> tuple[int, float]:
    """(new state, nats earned by this token)."""
    before = np.float64(automaton.states[state].lent)
    kept = 0.0
    if automaton.whole_words and automaton.starts_word[token]:
        state, kept = _on_symbol(automaton, state, automaton.starts_word.shape[0])
    if not (automaton.whole_words and automaton.is_space[token]):
        state, more = _on_symbol(automaton, state, token)
        kept += more
    if automaton.whole_words and automaton.is_word[token]:
        state, more = _on_symbol(automaton, state, automaton.starts_word.shape[0])
        kept += more
    return state, kept + np.float64(automaton.states[state].lent) - before


@_compiled  # type: ignore[untyped-decorator]  # numba is untyped
def advance(
    automaton: Automaton, states: Int32s, tokens: Int32s, out: Int32s, bonuses: npt.NDArray[np.float64]
) -> None:
    """Advances H hypotheses by one token each; `out` receives the states, `bonuses` what each step adds."""
    for h in range(states.shape[0]):
        out[h], bonuses[h] = on_token(automaton, states[h], tokens[h])


@_compiled  # type: ignore[untyped-decorator]  # numba is untyped
def earned(automaton: Automaton, tokens: Int32s) -> float:
    """Nats that a whole text earns: the bonuses of its complete phrases."""
    state, total = START, 0.0
    for token in tokens:
        state, bonus = on_token(automaton, state, token)
        total += bonus
    return total + np.float64(automaton.states[state].closing) - np.float64(automaton.states[state].lent)


@_compiled  # type: ignore[untyped-decorator]  # numba is untyped
def earned_by_prefixes(
    automaton: Automaton, parent_M: Int32s, token_M: Int32s, nodes_K: Int32s
) -> npt.NDArray[np.float64]:
    """(K,) what whole texts earn, prefixes of a trie: what several begin with is walked once.

    Args:
        automaton: Of the phrases.
        parent_M: Of each prefix, a lower number; prefix 0 is the empty one.
        token_M: The last token of each prefix.
        nodes_K: The prefixes that are whole texts.
    """
    size = nodes_K.max() + 1
    is_part, state_M, total_M = np.zeros(size, np.bool_), np.empty(size, np.int32), np.empty(size)
    is_part[0], state_M[0], total_M[0] = True, START, 0.0
    for node in nodes_K:
        while not is_part[node]:
            is_part[node] = True
            node = parent_M[node]
    for node in range(1, size):
        if is_part[node]:
            parent = parent_M[node]
            state_M[node], bonus = on_token(automaton, state_M[parent], token_M[node])
            total_M[node] = total_M[parent] + bonus
    found = np.empty(nodes_K.shape[0])
    for k in range(nodes_K.shape[0]):
        node = nodes_K[k]
        state = state_M[node]
        found[k] = (
            total_M[node] + np.float64(automaton.states[state].closing) - np.float64(automaton.states[state].lent)
        )
    return found


@_compiled  # type: ignore[untyped-decorator]  # numba is untyped
def link(automaton: Automaton, parent: Int32s, complete: Floats) -> None:
    """Fills `fall`, `kept` and `closing`; a state's links lead to states of lower numbers, so one pass is enough.

    A state falls to where its text without the first token would lead, or, where a phrase was complete on the way,
    to where the text behind the longest such phrase would lead, whose bonus is kept.
    """
    end = automaton.starts_word.shape[0]
    for state in range(2, automaton.states.shape[0] - 1):
        if not np.isnan(complete[state]):
            automaton.states[state].fall, automaton.states[state].kept = START, complete[state]
        elif parent[state] == START:
            automaton.states[state].fall = INSIDE if automaton.whole_words else START
        else:
            above = parent[state]
            below, kept = _on_symbol(automaton, automaton.states[above].fall, automaton.symbol[state])
            automaton.states[state].fall = below
            automaton.states[state].kept = automaton.states[above].kept + kept
        below = automaton.states[state].fall
        automaton.states[state].closing = automaton.states[state].kept + automaton.states[below].closing
    if automaton.whole_words:
        ends = automaton.states["closing"].copy()
        for state in range(2, automaton.states.shape[0] - 1):
            after, kept = _on_symbol(automaton, state, end)
            automaton.states[state].closing = kept + ends[after]


@_compiled  # type: ignore[untyped-decorator]  # numba is untyped
def gains(automaton: Automaton) -> npt.NDArray[np.float64]:
    """(N,) most that one symbol earns in each state: to a child, or by way of the fall."""
    gain = np.zeros(automaton.states.shape[0] - 1)
    for state in range(automaton.states.shape[0] - 1):
        for child in range(automaton.states[state].first_child, automaton.states[state + 1].first_child):
            gain[state] = max(gain[state], np.float64(automaton.states[child].lent) - automaton.states[state].lent)
        if state > INSIDE:
            below = automaton.states[state].fall
            kept = (
                np.float64(automaton.states[state].kept) + automaton.states[below].lent - automaton.states[state].lent
            )
            gain[state] = max(gain[state], kept + gain[below])
    return gain


@_compiled  # type: ignore[untyped-decorator]  # numba is untyped
def mark(automaton: Automaton) -> None:
    """Fills `follows`, once `fall` is there."""
    for state in range(automaton.states.shape[0] - 1):
        if not automaton.whole_words or (state > INSIDE and automaton.states[state].fall != INSIDE):
            automaton.states[state].follows = ~np.uint64(0)
            continue
        automaton.states[state].follows = ANY
        for child in range(automaton.states[state].first_child, automaton.states[state + 1].first_child):
            automaton.states[state].follows |= automaton.bit[automaton.symbol[child]]
