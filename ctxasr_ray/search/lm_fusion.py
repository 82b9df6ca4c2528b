"""A language model inside a search: rows of the beam are scored after pruning, up to a complete word.

What a trigger (`shallow_fusion`, `delayed_fusion`) decides is only when, and up to which word. A row's share of the
sum is lm_weight * log P_LM(words) + length_bonus * number of words - prior_weight * log P_prior(labels), all three of
exactly the words that are scored, so that a prior never runs ahead of the language model that it belongs to.
Letters: V labels of the recogniser, K beam rows.

Reference:
    Hori et al. 2025, Delayed fusion, arXiv:2501.09258: hypotheses are scored after pruning, re-tokenised up to a word
    boundary. One tree per utterance with a memory of texts, common words and the delayed prior are ours.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from ctxasr_ray.nbest import Score
from ctxasr_ray.search.ctc_beam import prefix
from ctxasr_ray.search.ctc_run import boundaries, fewest_words
from ctxasr_ray.search.ctc_state import (
    NEVER,
    STARTS,
    Beam,
    Candidates,
    Floats,
    Int32s,
    Trie,
)
from ctxasr_ray.search.fusion import Answer, Ask, Asking, View, Wake, Work
from ctxasr_ray.search.lm_texts import FusedLm, LmTexts
from ctxasr_ray.search.lm_units import Units, Words

Scope = Literal["own_last_word", "common_words"]
"""What is scored at a trigger: every row to its own last complete word, or all rows to the number of complete words
that they have in common. With `own_last_word` a row that has just finished a word pays for it, its rivals do not."""


class Trigger(Protocol):
    """When rows are scored, and up to which word."""

    @property
    def scope(self) -> Scope:
        """Up to which word."""
        ...

    def wake(self, frame: int, shortest: int) -> Wake:
        """When to look again, after looking at `frame` and scoring last at `shortest` complete words."""
        ...

    def is_due(self, frame: int, fewest: int, shortest: int) -> bool:
        """Whether to score now: the shortest row has `fewest` complete words, and had `shortest` last time."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class LmFusion:
    """One language model in the search of any number of utterances; a `fusion.Fusion`."""

    lm: FusedLm
    units: Units
    """Of the recogniser's labels; the search's `label_kinds` are this fusion's `kinds`."""
    trigger: Trigger
    lm_weight: float
    """Of log P_LM, end of sequence included (the paper's lambda)."""
    length_bonus: float = 0.0
    """Nats per unit that is scored (the paper's beta)."""
    label_prior: Floats | None = None
    """(V,) log-probs of labels in the recogniser's training text, taken off in step with the LM's score."""
    prior_weight: float = 0.0
    """Of the label prior."""
    kinds: tuple[int, ...] = field(init=False, repr=False)
    """(V,) what each label does to units."""

    def __post_init__(self) -> None:
        """Reads the kinds once."""
        object.__setattr__(self, "kinds", self.units.kinds)

    @property
    def name(self) -> str:
        """Source of the LM's scores."""
        return self.lm.source

    @property
    def num_states(self) -> int:
        """The prefix up to which a row is scored."""
        return 1

    @property
    def max_bonus(self) -> float | None:
        """Nothing is done when candidates are expanded."""
        return None

    def begin(self, num_utterances: int) -> "list[LmUtterance]":
        """Opens a session per utterance; they share forward passes."""
        handles = self.lm.scorer.open([self.lm.prefix] * num_utterances)
        return [LmUtterance(self, handle) for handle in handles]


class LmUtterance:
    """An `LmFusion` on one utterance; a `fusion.FusedUtterance`."""

    def __init__(self, fusion: LmFusion, session: int) -> None:
        self._fusion, self._session, self.work = fusion, session, Work()
        self._texts = LmTexts(fusion.lm)
        self._text_at: dict[int, int] = {0: 0}  # of prefixes that end at a boundary
        self._prior_at: dict[int, float] = {0: 0.0}
        self._frame = self._shortest = 0
        self._finals: list[int] = []

    def compiled(self, column: int) -> None:
        """Nothing."""

    def expanded(self, beam: Beam, candidates: Candidates, states: Int32s) -> None:
        """Nothing."""

    def wake(self) -> Wake:
        """As the trigger says."""
        return self._fusion.trigger.wake(self._frame, self._shortest)

    def pruned(self, view: View) -> Asking:
        """Scores rows up to their words if the trigger says so."""
        trigger = self._fusion.trigger
        fewest, self._frame = fewest_words(view.trie, view.beam), view.frame
        if not trigger.is_due(view.frame, fewest, self._shortest):
            return
        self._shortest = fewest
        own = trigger.scope == "own_last_word"
        targets = boundaries(view.trie, view.beam, NEVER if own else fewest).tolist()
        scored = view.states[: view.num_rows, 0].tolist()
        self._fusion.lm.costs.count("triggers", targets != scored)
        self.work.triggers += targets != scored
        if new := {target for target in targets if target not in self._text_at}:
            keep = self._texts.retain({self._text_at[node] for node in scored})
            for target in new:
                self._resolve(view.trie, target)
            self._count_flat({self._text_at[target] for target in new})
            yield from self._asked(keep)
        for row, (target, before) in enumerate(zip(targets, scored, strict=True)):
            if target != before:
                view.beam.fusion[row] += self._value(target) - self._value(before)
                view.states[row, 0] = target

    def ended(self, view: View) -> Asking:
        """Scores every row to its end, open word and end of sequence included."""
        trie, finals, priors = view.trie, [], []
        for node in view.beam.node[: view.num_rows].tolist():
            boundary = int(trie.boundary[node])
            self._resolve(trie, boundary)
            labels = self._labels(trie, boundary, node)
            finals.append(self._texts.text(self._text_at[boundary], self._words(trie, boundary, labels)))
            priors.append(self._prior_at[boundary] + self._prior(labels))
        if 0 in finals:
            self._texts.want_eos_of_nothing()
        self._count_flat(set(finals))
        yield from self._asked(None)
        for row, (text, prior) in enumerate(zip(finals, priors, strict=True)):
            final = self._sum(text, self._texts.log_probs[text] + (self._texts.eos(text) or 0.0), prior)
            view.beam.fusion[row] += final - self._value(int(view.states[row, 0]))
        self._finals = finals

    def scores(self, row: int) -> tuple[Score, ...]:
        """The LM's score of a row's words, and of the end of sequence apart."""
        text, source = self._finals[row], self._fusion.lm.source
        score = Score(source=source, kind="log_prob", log_prob=self._texts.log_probs[text])
        eos = self._texts.eos(text)
        if eos is None:
            return (score,)
        return (score, Score(source=f"{source}/eos", kind="log_prob", log_prob=eos))

    def again(self) -> "LmUtterance":
        """One more session."""
        return self._fusion.begin(1)[0]

    def close(self) -> None:
        """Frees the session."""
        self._fusion.lm.scorer.close([self._session])

    def _asked(self, keep: Int32s | None) -> Generator[Ask, Answer, None]:
        nodes = self._texts.nodes()
        if nodes is not None:
            self._fusion.lm.costs.count("lm_asks")
            self.work.llm_calls += 1
            self.work.nodes += len(nodes.tokens)
            self.work.kv_bytes = max(self.work.kv_bytes, self._texts.kv_bytes)
            answer = yield Ask(self._fusion.lm.scorer, self._session, nodes, keep)
            self._texts.receive(answer)

    def _resolve(self, trie: Trie, target: int) -> None:
        """Finds the text of a boundary and of those above it."""
        chain = []
        while target not in self._text_at:
            chain.append(target)
            target = int(trie.boundary[trie.parent[target]])
        for node in reversed(chain):
            starts = self._fusion.kinds[trie.token[node]] == STARTS
            labels = self._labels(trie, target, int(trie.parent[node]) if starts else node)
            self._text_at[node] = self._texts.text(self._text_at[target], self._words(trie, target, labels))
            self._prior_at[node] = self._prior_at[target] + self._prior(labels)
            target = node

    def _labels(self, trie: Trie, boundary: int, node: int) -> list[int]:
        """Labels behind a boundary's words, down to a node."""
        labels = []
        while node != boundary:
            labels.append(int(trie.token[node]))
            node = int(trie.parent[node])
        if boundary and self._fusion.kinds[trie.token[boundary]] == STARTS:
            labels.append(int(trie.token[boundary]))
        return labels[::-1]

    def _words(self, trie: Trie, boundary: int, labels: list[int]) -> Words:
        """Words of labels behind a boundary."""
        units = self._fusion.units
        if units.are_local:
            return units.words(labels)
        before = self._texts.words[self._text_at[boundary]]
        above = prefix(trie, boundary).tolist()
        if boundary and self._fusion.kinds[above[-1]] == STARTS:
            above.pop()
        return units.words([*above, *labels])[len(before) :]

    def _prior(self, labels: Sequence[int]) -> float:
        prior = self._fusion.label_prior
        return 0.0 if prior is None else float(prior[list(labels)].sum())

    def _value(self, boundary: int) -> float:
        text = self._text_at[boundary]
        return self._sum(text, self._texts.log_probs[text], self._prior_at[boundary])

    def _sum(self, text: int, log_prob: float, prior: float) -> float:
        fusion = self._fusion
        length = len(self._texts.words[text])
        return fusion.lm_weight * log_prob + fusion.length_bonus * length - fusion.prior_weight * prior

    def _count_flat(self, texts: set[int]) -> None:
        lm = self._fusion.lm
        num_flat = sum(len(lm.prefix) + self._texts.num_tokens[text] for text in texts)
        lm.costs.count("tokens_flat", num_flat)
        self.work.tokens_flat += num_flat
