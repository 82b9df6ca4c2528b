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
    is_word: npt.NDArray[np.bool_]
    """(V,) tokens that also end the word that they are: ideographs."""
    whole_words: bool
    most: float
    """Nats that one token can earn, wherever it is written; a bound for searches that prune early."""


@_compiled  # type: ignore[untyped-decorator]  # numba is untyped
def expand_candidates(
    automaton: Automaton,
    states_K: Int32s,
    row_C: Int32s,
    token_C: Int32s,
    floor: float,
    fusion_C: npt.NDArray[np.float64],
    score_C: npt.NDArray[np.float64],
    state_C: Int32s,
) -> None:
    """Adds to each candidate of a beam what its token earns.

    Args:
        automaton: The phrases.
        states_K: (K,) states of the beam's rows.
        row_C: (C,) row of each candidate; those of one row stand together, or it takes longer.
        token_C: (C,) the token that each writes.
        floor: Candidates with a lower score are not looked at.
        fusion_C: (C,) changed.
        score_C: (C,) changed alike.
        state_C: (C,) receives the state that each candidate would have.
    """
    last = -1
    state, low, high, lent, to_inside = START, 0, 0, 0.0, False
    for c in range(row_C.shape[0]):
        if score_C[c] < floor:
            continue
        if row_C[c] != last:
            last = row_C[c]
            state = states_K[last]
            lent = np.float64(automaton.lent[state])
            low, high = automaton.first_child[state], automaton.first_child[state + 1]
            to_inside = state == INSIDE or (state > INSIDE and automaton.fall[state] == INSIDE)
        token = token_C[c]
        if automaton.whole_words and automaton.starts_word[token]:
            state_C[c], bonus = on_token(automaton, state, token)
        else:
            child = _child(automaton, state, low, high, token)
            if child >= 0:
                state_C[c], bonus = child, automaton.lent[child] - lent
            elif to_inside:  # the common case without a walk
                state_C[c], bonus = INSIDE, automaton.kept[state] - lent
            else:
                state_C[c], bonus = on_token(automaton, state, token)
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
    if automaton.whole_words and automaton.is_word[token]:
        state, more = _on_symbol(automaton, state, automaton.starts_word.shape[0])
        kept += more
    return state, kept + np.float64(automaton.lent[state]) - before


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
    return total + np.float64(automaton.closing[state]) - np.float64(automaton.lent[state])


@_compiled  # type: ignore[untyped-decorator]  # numba is untyped
def earned_each(automaton: Automaton, tokens_S: Int32s, ends_N: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """(N,) what texts earn that stand one behind the other and end at `ends_N`."""
    found = np.zeros(ends_N.shape[0])
    first = 0
    for n in range(ends_N.shape[0]):
        found[n] = earned(automaton, tokens_S[first : ends_N[n]])
        first = ends_N[n]
    return found


@_compiled  # type: ignore[untyped-decorator]  # numba is untyped
def link(automaton: Automaton, parent: Int32s, complete: Floats) -> None:
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
def largest_gain(automaton: Automaton) -> float:
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
