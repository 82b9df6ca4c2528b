"""The texts of one search as a language model sees them: words -> log-probs, each token scored once.

A text is known by its words; its score is its parent's plus that of the words' own tokens. Tokens hang in one tree of a
`TreeScorer` session. Where a text outgrows the model's context, the oldest words go: the longest run of last words
that fills at most half of the context is written again behind the prefix, unscored, and the text goes on below it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np

from ctxasr_ray.search.fusion import Answer, FusionError
from ctxasr_ray.search.lm_units import Words
from ctxasr_ray.stage import Costs, TreeNodes, TreeScorer
from ctxasr_ray.token_tree import Int32


class Spelling(Protocol):
    """Words -> the language model's tokens; `models.word_tokens.WordTokens` is one."""

    @property
    def is_incremental(self) -> bool:
        """Whether the ids of a longer text begin with those of a shorter one."""
        ...

    def chunk(self, word: str, first: bool) -> Int32:
        """Ids that a word adds behind other words, or as the first of a text.

        Raises:
            ValueError: the word has no ids of its own behind others.
        """
        ...

    def extend(self, words: Words) -> Int32:
        """Ids of a whole text."""
        ...


RETAIN_FROM: Final = 64
"""Nodes of an utterance from which dead ones are given up, whenever there are twice as many as were left."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FusedLm:
    """A language model as in-search fusions ask it."""

    scorer: TreeScorer
    spelling: Spelling
    prefix: Int32
    """(P,) tokens before every text."""
    eos_token_id: int | None
    """End of sequence; None adds none."""
    max_positions: int | None = None
    """Tokens that the model takes, prefix included; None is no limit."""
    position_bytes: int = 0
    """Keys and values of one position, for the counters."""
    source: str = "causal_lm"
    """Name of its scores."""
    costs: Costs = field(default_factory=Costs)
    """Counts `triggers`, `lm_asks`, `tokens_flat` (what a scorer without tree and memory would have been given),
    `tokens_replayed`, `context_slides` and `first_tokens_unscored`, beside what the scorer counts."""


class LmTexts:
    """Texts of one utterance; text 0 is the empty one.

    Args:
        lm: The model; its counters are this utterance's too.
    """

    def __init__(self, lm: FusedLm) -> None:
        self._lm = lm
        self.words: list[Words] = [()]
        self.log_probs: list[float] = [0.0]
        """In nats, end of sequence apart."""
        self.num_tokens: list[int] = [0]
        self._last: list[int] = [-1]  # node of each text's last token
        self._texts: dict[tuple[int, Words], int] = {}
        self._tokens: list[int] = []
        self._parents: list[int] = []
        self._depths: list[int] = []
        self._node_log_probs: list[float] = []
        self._eos: list[float] = []
        self._is_alive: list[bool] = []
        self._children: dict[tuple[int, int], int] = {}
        self._unscored: list[tuple[int, int, list[int]]] = []  # text, the text that it adds to, its own nodes
        self._num_scored = self._num_retained = self._num_dead = 0
        self._eos_of_nothing = -1  # node whose log-prob is that of an end at once

    def text(self, before: int, words: Words) -> int:
        """The text of one text's words and more words; new tokens wait for `nodes`.

        Raises:
            FusionError: the tokenizer has no token for a word, or a word alone is beyond the model's context.
        """
        key = (before, words)
        if key in self._texts:
            return self._texts[key]
        if not words:
            return before
        made, parent = len(self.words), before
        self.words.append(self.words[before] + words)
        self.log_probs.append(np.nan)
        ids = self._chunk(before, words)
        top = self._last[before]
        assert top < 0 or self._is_alive[top], "a text grows only from texts that were retained"
        if ids is None:
            ids, top, parent = self._whole(made), -1, 0
        elif not self._fits(top, len(ids)):
            top = self._slid(before, len(ids))
        path = self._insert(top, ids)
        self.num_tokens.append(self.num_tokens[parent] + len(ids))
        self._last.append(path[-1] if path else top)
        self._unscored.append((made, parent, path))
        self._texts[key] = made
        return made

    def eos(self, text: int) -> float | None:
        """Gives log P(end | text) in nats; None where the model has no such token, or nothing stands before it."""
        if self._lm.eos_token_id is None or (self._last[text] < 0 and not len(self._lm.prefix)):
            return None
        if self._last[text] < 0:
            return self._node_log_probs[self._eos_of_nothing]
        return self._eos[self._last[text]]

    def want_eos_of_nothing(self) -> None:
        """Asks for the end of sequence at once, which needs a node of its own."""
        if self._eos_of_nothing < 0 and self._lm.eos_token_id is not None and len(self._lm.prefix):
            self._eos_of_nothing = self._insert(-1, np.array([self._lm.eos_token_id], np.int32))[0]

    def retain(self, texts: Iterable[int]) -> Int32 | None:
        """Gives up every node that is above none of the texts and below none: no text will be built on it.

        Returns:
            The nodes to name to the scorer; None while there is too little to give up.
        """
        if len(self._tokens) < 2 * self._num_retained + RETAIN_FROM:
            return None
        alive = [False] * len(self._tokens)
        for text in texts:
            node = self._last[text]
            if node < 0:
                return None
            alive[node] = self._is_alive[node]
        for node, above in enumerate(self._parents):
            alive[node] = alive[node] or (above >= 0 and alive[above] and self._is_alive[node])
        kept = np.flatnonzero(alive).astype(np.int32)
        for node in kept.tolist():
            above = self._parents[node]
            while above >= 0 and not alive[above]:
                alive[above] = True
                above = self._parents[above]
        self._is_alive, self._num_retained = alive, sum(alive)
        self._num_dead = len(alive) - self._num_retained
        return kept

    def nodes(self) -> TreeNodes | None:
        """The nodes that wait for their scores; None where there are none."""
        if self._num_scored == len(self._tokens):
            self._settle()
            return None
        new = slice(self._num_scored, None)
        return TreeNodes(np.array(self._tokens[new], np.int32), np.array(self._parents[new], np.int32))

    @property
    def kv_bytes(self) -> int:
        """Keys and values of the prefix and of all nodes that are not given up."""
        positions = len(self._lm.prefix) + len(self._tokens) - self._num_dead
        return positions * self._lm.position_bytes

    def receive(self, answer: Answer) -> None:
        """Takes the scores of what `nodes` named.

        Raises:
            FusionError: a score is no finite number.
        """
        log_probs, eos = answer.log_probs, answer.eos_log_probs
        first = self._num_scored
        for node, (log_prob, end) in enumerate(zip(log_probs.tolist(), eos.tolist(), strict=True), start=first):
            if self._parents[node] < 0 and not len(self._lm.prefix):
                self._lm.costs.count("first_tokens_unscored")
                log_prob = 0.0
            if not np.isfinite(log_prob) or not (np.isfinite(end) or self._lm.eos_token_id is None):
                raise FusionError(f"the model gave {log_prob} for token {self._tokens[node]} and {end} for an end")
            self._node_log_probs.append(log_prob)
            self._eos.append(end)
        self._num_scored = len(self._tokens)
        self._settle()

    def _settle(self) -> None:
        for text, parent, path in self._unscored:
            self.log_probs[text] = self.log_probs[parent] + sum(self._node_log_probs[node] for node in path)
        self._unscored.clear()

    def _chunk(self, before: int, words: Words) -> Int32 | None:
        """Ids that words add; None where only the whole text has ids."""
        spelling, first = self._lm.spelling, not self.words[before]
        if not spelling.is_incremental:
            return None
        try:
            chunks = [spelling.chunk(word, first and place == 0) for place, word in enumerate(words)]
        except ValueError:
            return None
        for word, chunk in zip(words, chunks, strict=True):
            if word.strip() and not len(chunk):
                raise FusionError(f"the tokenizer has no token for {word[:40]!r}")
        return np.concatenate(chunks)

    def _whole(self, text: int) -> Int32:
        ids, words = self._lm.spelling.extend(self.words[text]), " ".join(self.words[text])
        if not len(ids):
            raise FusionError(f"the tokenizer has no token for {words[:40]!r}")
        if not self._fits(-1, len(ids)):
            raise FusionError(
                f"{len(ids)} tokens behind a prefix of {len(self._lm.prefix)}, but the model takes "
                f"{self._lm.max_positions}, and its tokenizer, which merges words, has no place to cut at"
            )
        return ids

    def _fits(self, top: int, num_tokens: int) -> bool:
        depth = self._depths[top] + 1 if top >= 0 else 0
        limit = self._lm.max_positions
        return limit is None or len(self._lm.prefix) + depth + num_tokens <= limit

    def _slid(self, before: int, num_tokens: int) -> int:
        """The node of a text's last words behind the prefix, without the older ones."""
        assert self._lm.max_positions is not None
        room = self._lm.max_positions - len(self._lm.prefix)
        context: list[int] = []
        for word in reversed(self.words[before]):
            ids = self._lm.spelling.chunk(word, False).tolist()
            if len(context) + len(ids) > min(room // 2, room - num_tokens):
                break
            context = ids + context
        if not context:
            raise FusionError(f"a word of {num_tokens} tokens has no room in the model's {self._lm.max_positions}")
        self._lm.costs.count("context_slides")
        return self._insert(-1, np.array(context, np.int32))[-1]

    def _insert(self, top: int, ids: Sequence[int] | Int32) -> list[int]:
        path = []
        for token in ids:
            node = self._children.get((top, int(token)))
            if node is not None and not self._is_alive[node]:
                self._lm.costs.count("tokens_replayed")
                node = None
            if node is None:
                node = len(self._tokens)
                self._tokens.append(int(token))
                self._parents.append(top)
                self._depths.append(self._depths[top] + 1 if top >= 0 else 0)
                self._is_alive.append(True)
                self._children[top, int(token)] = node
            path.append(node)
            top = node
        return path
