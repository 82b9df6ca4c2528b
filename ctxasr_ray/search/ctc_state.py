"""The arrays of a CTC beam: trie of prefixes, rows, candidates; and how kernels over them are compiled.

Letters: K beam rows (best first), C candidates, M trie nodes, F fusion states.
"""

import hashlib
import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Final, NamedTuple, ParamSpec, TypeVar

import numba
import numpy as np
import numpy.typing as npt

P = ParamSpec("P")
R = TypeVar("R")
Int32s = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float64]

STAY: Final = -1
"""Token of a candidate that writes no new label: a blank or a repeat."""

NEVER: Final = 2**31 - 1
"""A frame or a number of words that no utterance reaches."""

INSIDE: Final = 0
STARTS: Final = 1
SEPARATES: Final = 2
ENDS: Final = 3
"""What a label does to words: it goes on with one, it begins the next (" a"), it stands between two (" "), or it is
the last of its own ("a</w>", a character of a language without spaces)."""


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Compiles once per machine, keeps the result on disk, and runs without the interpreter's lock.

    numba's cache notices changes of the kernel's own file and of its closure, not of other files: a kernel that calls
    those of another file holds that file's `source_digest` in its closure. Where nothing can be written, neither
    beside the file nor in the user's cache, every process compiles anew.
    """
    kernel: Callable[P, R]
    try:
        kernel = numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # "no locator available"
        kernel = numba.njit(nogil=True)(function)
    return kernel


def compiled_within(function: Callable[P, R]) -> Callable[P, R]:
    """Compiles as part of the kernels that call it, without a copy of its own on disk that could be stale."""
    kernel: Callable[P, R] = numba.njit(nogil=True)(function)
    return kernel


def compiled_inline(function: Callable[P, R]) -> Callable[P, R]:
    """The same, written into the body of its caller: arrays in a tuple cost a count of references per call."""
    kernel: Callable[P, R] = numba.njit(nogil=True, inline="always")(function)
    return kernel


def source_digest(module: ModuleType) -> str:
    """sha256 of a module's source."""
    return hashlib.sha256(inspect.getsource(module).encode()).hexdigest()


class Settings(NamedTuple):
    """What every frame of a search obeys, as kernels take it; `CtcBeamSearch` says what each means."""

    blank_id: int
    suppressed: npt.NDArray[np.bool_]
    """(V,)"""
    kinds: npt.NDArray[np.int8]
    """(V,)"""
    skip_log_prob: float
    """The blank's log-prob from which a frame is not searched; infinite searches every frame."""
    min_label_log_prob: float
    beam_threshold: float
    max_labels: int
    """New labels that a row may write in one frame."""


class Trie(NamedTuple):
    """Every prefix that was ever in the beam; node 0 is the empty one."""

    parent: Int32s
    token: Int32s
    first_child: Int32s
    next_sibling: Int32s
    row: Int32s
    """Row of a node in the current beam, -1 where it is not in it."""
    words: Int32s
    """Complete words of a prefix."""
    boundary: Int32s
    """The shortest prefix with the same complete words: the node itself or one above it."""
    is_open: npt.NDArray[np.bool_]
    """Whether an incomplete word follows the complete ones."""
    size: npt.NDArray[np.int64]
    """(1,) nodes in use."""


class Beam(NamedTuple):
    """Rows best first. `fusion` is what fusions have added; it ranks rows and is no part of the CTC score."""

    node: Int32s
    parent_row: Int32s
    """Row of the previous beam that a row came from."""
    token: Int32s
    """Label that the last step wrote, STAY where it wrote none."""
    blank: Floats
    """ln P(prefix, last frame is blank)."""
    label: Floats
    """ln P(prefix, last frame is its last label)."""
    fusion: Floats
    states: Int32s
    """States of in-search fusions, inherited from the parent row."""
    size: npt.NDArray[np.int64]
    """(1,) rows in use."""


class Candidates(NamedTuple):
    """What the rows may become in one frame; fusions may change `score` and `fusion` before the selection."""

    row: Int32s
    token: Int32s
    blank: Floats
    label: Floats
    fusion: Floats
    score: Floats
    """Ranks: ln P(prefix) + fusion."""
    size: npt.NDArray[np.int64]
    """(1,) candidates in use."""


def empty_trie(num_nodes: int) -> Trie:
    """Room for `num_nodes` prefixes, holding the empty one."""
    parent, token, first_child, next_sibling, row, words, boundary = np.empty((7, num_nodes), dtype=np.int32)
    is_open = np.empty(num_nodes, dtype=np.bool_)
    for column in (parent, token, first_child, next_sibling, row):
        column[0] = -1
    for start in (words, boundary, is_open):
        start[0] = 0
    size = np.ones(1, dtype=np.int64)
    return Trie(parent, token, first_child, next_sibling, row, words, boundary, is_open, size)


def empty_beam(num_rows: int, num_states: int) -> Beam:
    """Room for `num_rows` rows, holding the empty prefix with probability 1."""
    node, parent_row, token = np.zeros((3, num_rows), dtype=np.int32)
    blank, label, fusion = np.zeros((3, num_rows))
    token[0], label[0] = STAY, -np.inf
    states = np.zeros((num_rows, num_states), dtype=np.int32)
    return Beam(node, parent_row, token, blank, label, fusion, states, np.ones(1, dtype=np.int64))


def empty_candidates(num_candidates: int) -> Candidates:
    """Room for `num_candidates` candidates."""
    row, token = np.empty((2, num_candidates), dtype=np.int32)
    blank, label, fusion, score = np.empty((4, num_candidates))
    return Candidates(row, token, blank, label, fusion, score, np.zeros(1, dtype=np.int64))
