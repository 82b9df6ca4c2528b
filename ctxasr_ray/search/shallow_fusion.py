"""Shallow fusion: a language model takes part in every decision of the beam.

Where its vocabulary is not the recogniser's, it is asked whenever a surviving row has a new complete word: the strong
way, survivors only and no text twice (`EveryWord`, a trigger for `LmFusion`). Where its tokens are the recogniser's
labels, every candidate is scored before pruning (`LabelShallowFusion`). Letters: V labels, K rows, C candidates.
"""

from collections.abc import Generator
from dataclasses import dataclass, field

import numpy as np

from ctxasr_ray.nbest import Score
from ctxasr_ray.search.ctc_state import Beam, Candidates, Floats, Int32s
from ctxasr_ray.search.fusion import Answer, Ask, Asking, FusionError, View, Wake, Work
from ctxasr_ray.search.lm_fusion import Scope
from ctxasr_ray.search.lm_texts import FusedLm
from ctxasr_ray.search.lm_units import LabelUnits
from ctxasr_ray.stage import NextScorer, TreeNodes


@dataclass(frozen=True, kw_only=True, slots=True)
class EveryWord:
    """Scores every surviving row as soon as it has a complete word."""

    scope: Scope = "own_last_word"

    def wake(self, frame: int, shortest: int) -> Wake:
        """At the next new word of any row."""
        return Wake(at_word=True)

    def is_due(self, frame: int, fewest: int, shortest: int) -> bool:
        """Always: the search wakes for nothing else."""
        return True


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelShallowFusion:
    """Shallow fusion before pruning, with an LM of the recogniser's own vocabulary; a `fusion.Fusion`.

    The next-token distribution of every surviving prefix is computed once, so a frame costs one call for the prefixes
    that are new in it, however many candidates read them.
    """

    lm: FusedLm
    """Its scorer is a `stage.NextScorer`; its prefix is not empty."""
    units: LabelUnits
    lm_weight: float
    """Of log P_LM, end of sequence included."""
    length_bonus: float = 0.0
    """Nats per label."""

    def __post_init__(self) -> None:
        """Refuses an LM that cannot begin.

        Raises:
            ValueError: an empty prefix, or a scorer without distributions.
        """
        if not len(self.lm.prefix):
            raise ValueError("shallow fusion by label needs a token before the first label; set start_from_eos.")
        if not isinstance(self.lm.scorer, NextScorer):
            raise ValueError("shallow fusion by label needs distributions, which this pool of LMs does not give.")

    @property
    def name(self) -> str:
        """Source of the LM's scores."""
        return self.lm.source

    @property
    def num_states(self) -> int:
        """The LM's node of a prefix, counted from 1."""
        return 1

    @property
    def kinds(self) -> tuple[int, ...]:
        """(V,) each label is a unit."""
        return self.units.kinds

    @property
    def max_bonus(self) -> float:
        """A probability is at most 1, so only the length bonus can raise a candidate."""
        return max(0.0, self.length_bonus)

    def begin(self, num_utterances: int) -> "list[LabelShallowUtterance]":
        """Opens a session per utterance and computes what may come first."""
        scorer = self.lm.scorer
        assert isinstance(scorer, NextScorer)
        handles = scorer.open([self.lm.prefix] * num_utterances)
        top = np.full(1, -1, np.int32)
        tokens = self.asked_tokens()
        first = scorer.next_log_probs(handles, [top] * num_utterances, [tokens] * num_utterances)
        return [LabelShallowUtterance(self, handle, one) for handle, one in zip(handles, first, strict=True)]

    def asked_tokens(self) -> Int32s:
        """(V + 1,) the LM's tokens whose log-probs are wanted: those of the labels, and the end of sequence."""
        eos = [] if self.lm.eos_token_id is None else [self.lm.eos_token_id]
        return np.concatenate([self.units.tokens, np.array(eos, np.int32)])


@dataclass(slots=True)
class LabelShallowUtterance:
    """A `LabelShallowFusion` on one utterance; a `fusion.FusedUtterance`."""

    fusion: LabelShallowFusion
    session: int
    following: Floats
    """Per prefix log P of each label behind it, and last of the end of sequence."""
    sums: list[float] = field(default_factory=lambda: [0.0])
    lengths: list[int] = field(default_factory=lambda: [0])
    children: dict[tuple[int, int], int] = field(default_factory=dict)
    frame: int = 0
    finals: list[int] = field(default_factory=list)
    work: Work = field(default_factory=lambda: Work(llm_calls=1))
    """The first call is that of `LabelShallowFusion.begin`."""

    def compiled(self, column: int) -> None:
        """Nothing."""

    def expanded(self, beam: Beam, candidates: Candidates, states: Int32s) -> None:
        """Adds log P(label | prefix) to each candidate that writes one."""
        new = slice(int(beam.size[0]), int(candidates.size[0]))
        log_probs = self.following[states[candidates.row[new], 0], candidates.token[new]]
        added = self.fusion.lm_weight * log_probs + self.fusion.length_bonus
        candidates.fusion[new] += added
        candidates.score[new] += added

    def wake(self) -> Wake:
        """After every frame."""
        return Wake(frame=self.frame + 1)

    def pruned(self, view: View) -> Asking:
        """Computes the distributions of prefixes that are new in the beam."""
        self.frame = view.frame
        rows = np.flatnonzero(view.beam.token[: view.num_rows] >= 0).tolist()
        num_before = len(self.sums) - 1
        new: list[tuple[int, int]] = []
        for row in rows:
            state, label = int(view.states[row, 0]), int(view.beam.token[row])
            if (state, label) not in self.children:
                self.children[state, label] = len(self.sums)
                self.sums.append(self.sums[state] + float(self.following[state, label]))
                self.lengths.append(self.lengths[state] + 1)
                new.append((state, label))
            view.states[row, 0] = self.children[state, label]
        if new:
            yield from self._asked(new, num_before)

    def _asked(self, new: list[tuple[int, int]], num_before: int) -> Generator[Ask, Answer, None]:
        lm, limit = self.fusion.lm, self.fusion.lm.max_positions
        longest = len(lm.prefix) + max(self.lengths[self.children[key]] for key in new)
        if limit is not None and longest > limit:
            raise FusionError(f"{longest} tokens with the prefix, but the model takes {limit}")
        tokens = self.fusion.units.tokens[[label for _, label in new]]
        nodes = TreeNodes(tokens, np.array([state - 1 for state, _ in new], np.int32))
        lm.costs.count("lm_asks")
        lm.costs.count("triggers")
        num_flat = sum(len(lm.prefix) + self.lengths[self.children[key]] for key in new)
        lm.costs.count("tokens_flat", num_flat)
        self.work.add(Work(llm_calls=1, nodes=len(new), tokens_flat=num_flat, triggers=1))
        self.work.kv_bytes = (len(lm.prefix) + len(self.sums) - 1) * lm.position_bytes  # nothing is given up
        answer = yield Ask(lm.scorer, self.session, nodes, None, self.fusion.asked_tokens(), num_before)
        assert answer.next_log_probs is not None
        if np.isnan(answer.next_log_probs).any():
            raise FusionError("the model gave a log-prob that is no finite number")
        self.following = np.concatenate([self.following, answer.next_log_probs])

    def ended(self, view: View) -> Asking:
        """Adds the end of sequence."""
        self.finals = view.states[: view.num_rows, 0].tolist()
        for row, state in enumerate(self.finals):
            view.beam.fusion[row] += self.fusion.lm_weight * self._eos(state)
        return ()

    def _eos(self, state: int) -> float:
        return 0.0 if self.fusion.lm.eos_token_id is None else float(self.following[state, -1])

    def scores(self, row: int) -> tuple[Score, ...]:
        """The LM's score of a row's labels, and of the end of sequence apart."""
        state, source = self.finals[row], self.fusion.lm.source
        score = Score(source=source, kind="log_prob", log_prob=self.sums[state])
        if self.fusion.lm.eos_token_id is None:
            return (score,)
        return (score, Score(source=f"{source}/eos", kind="log_prob", log_prob=self._eos(state)))

    def again(self) -> "LabelShallowUtterance":
        """One more session."""
        return self.fusion.begin(1)[0]

    def close(self) -> None:
        """Frees the session."""
        self.fusion.lm.scorer.close([self.session])
