"""In-search fusions: what may change the scores of a beam while it searches, and at which moments.

A fusion acts at three moments: candidates are expanded, rows are pruned, the utterance ends. Between the moments it is
remembered by int32 states per row, which the beam copies from parent to child; equal label sequences are one row, so
recombination keeps the states. Several fusions share one beam: each has its own columns of states, and they add to one
sum `fusion` per row, which ranks rows and is no part of the recogniser's score.

What a fusion adds to a row must be a function of the row's states alone, and it must be taken back exactly when it no
longer holds: `beam.fusion += new - old`. Letters: K beam rows, C candidates.
"""

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from ctxasr_ray.nbest import Score
from ctxasr_ray.search.ctc_expand import Boost
from ctxasr_ray.search.ctc_state import NEVER, Beam, Candidates, Floats, Int32s, Trie
from ctxasr_ray.stage import TreeNodes, TreeScorer


class Answer(NamedTuple):
    """What a language model says to an `Ask`, in nats."""

    log_probs: Floats
    """(n,) of the new nodes, as `TreeScorer.extend` gives them."""
    eos_log_probs: Floats
    """(n,) of the end of sequence below them."""
    next_log_probs: Floats | None
    """(n, L) of `Ask.next_tokens` below them."""


@dataclass(frozen=True, slots=True)
class Ask:
    """New nodes of one session of a language model, which the driver has scored together with other utterances'.

    Args:
        scorer: The model.
        session: The session.
        nodes: What is to be scored.
        keep: All old nodes below which children will still come; None says nothing of them.
        next_tokens: (L,) tokens whose log-probs below each new node are wanted; then the scorer is a `NextScorer`.
        num_before: Nodes of the session before the new ones, where `next_tokens` are wanted.
    """

    scorer: TreeScorer
    session: int
    nodes: TreeNodes
    keep: Int32s | None = None
    next_tokens: Int32s | None = None
    num_before: int = 0


Asking = Generator[Ask, Answer, None] | Iterable[Ask]
"""A moment as a generator that yields an `Ask` and is sent its `Answer`; `()` where nothing is asked."""


@dataclass(frozen=True, slots=True)
class Wake:
    """When a fusion must be called after pruning; the earliest condition of all fusions counts.

    Args:
        frame: As soon as this many frames are done.
        shortest: As soon as every row has this many complete words.
        at_word: As soon as the fusion's first state of a row is not `trie.boundary` of its node: it has a new word.
    """

    frame: int = NEVER
    shortest: int = NEVER
    at_word: bool = False


@dataclass(frozen=True, slots=True)
class View:
    """The beam as fusions see it, after pruning. Arrays are the search's own: they may be changed where it says so.

    Args:
        trie: Prefixes; `token[node]` and `parent[node]` spell them, node 0 is the empty one.
        beam: Rows; fusions change `fusion` only. `parent_row` and `token` say what the last frame did: `token` is
            `STAY` where it wrote no label.
        states: (K, num_states) the fusion's own columns, inherited from the parent rows; they may be changed. All 0
            before the first frame.
        frame: Frames that are done.
    """

    trie: Trie
    beam: Beam
    states: Int32s
    frame: int

    @property
    def num_rows(self) -> int:
        """Rows in use."""
        return int(self.beam.size[0])


class FusionError(Exception):
    """A fusion cannot go on with this utterance, which is then searched anew without it; the message is the reason."""


@dataclass(slots=True)
class Work:
    """What one utterance asked of language models."""

    llm_calls: int = 0
    """Calls that it took part in; utterances in lock-step share them."""
    nodes: int = 0
    """New tokens."""
    tokens_flat: int = 0
    """What a scorer without tree and memory would have been given."""
    triggers: int = 0
    kv_bytes: int = 0
    """Keys and values of the most positions held at once, with the prefix, without padding and dead slots."""

    def add(self, other: "Work") -> None:
        """Adds what another language model was asked meanwhile."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


class Fusion(Protocol):
    """One fusion of a search, shared by all utterances."""

    @property
    def name(self) -> str:
        """Unique among the fusions of a search; also stands in reasons."""
        ...

    @property
    def num_states(self) -> int:
        """int32 states per row."""
        ...

    @property
    def max_bonus(self) -> float | None:
        """Most that `expanded` adds to one candidate, in nats, so that nothing is pruned too early.

        None where `expanded` does nothing; the search then runs compiled until a fusion wakes.
        """
        ...

    def begin(self, num_utterances: int) -> "Sequence[FusedUtterance]":
        """One state per utterance, for utterances that are searched side by side."""
        ...


class FusedUtterance(Protocol):
    """One fusion on one utterance."""

    @property
    def work(self) -> Work:
        """What it has asked so far."""
        ...

    def compiled(self, column: int) -> Boost | None:
        """What the compiled search does in place of `expanded` and `pruned`, None where it cannot.

        Args:
            column: First of the fusion's own columns of states.
        """
        ...

    def expanded(self, beam: Beam, candidates: Candidates, states: Int32s) -> None:
        """Adds to `candidates.fusion` and, equally, to `candidates.score`; called in every frame that is searched.

        Only candidates that write a label may change: those behind the first `beam.size[0]`, all of which stay.

        Args:
            beam: Rows before this frame.
            candidates: `row` and `token` say what each candidate comes from and writes.
            states: (K, num_states) the fusion's own columns, of the rows before this frame.
        """
        ...

    def wake(self) -> Wake:
        """When `pruned` must be called next; asked again after every call. Another fusion may wake all earlier."""
        ...

    def pruned(self, view: View) -> Asking:
        """Changes `view.states` and `view.beam.fusion` of the rows that survived; may ask language models.

        A frame that is skipped as blank changes no row: `expanded` is not called for it, and here `beam.token` is
        `STAY` in all rows.

        Raises:
            FusionError: while it runs or when it is sent an answer.
        """
        ...

    def ended(self, view: View) -> Asking:
        """The same once more, after the last frame: what was only lent is taken back, what is missing is added."""
        ...

    def scores(self, row: int) -> tuple[Score, ...]:
        """What belongs to a row's hypothesis as scores of its own, unweighted, after `ended`."""
        ...

    def again(self) -> "FusedUtterance":
        """The same fusion on the same utterance from the start: another fusion failed, and the search begins anew."""
        ...

    def close(self) -> None:
        """Frees sessions; called once, also after a failure."""
        ...
