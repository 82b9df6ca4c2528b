"""What is shown while frames arrive: looking changes nothing, and words are late for reasons that can be counted."""

import numpy as np
import pytest
import torch
from test_lm_fusion import Letters
from tiny_causal_lms import EOS, tiny

from ctxasr_ray.models.causal_lm import CausalLm
from ctxasr_ray.models.tree_sessions import TreeSessions
from ctxasr_ray.models.word_boundaries import WordBoundaries
from ctxasr_ray.search.ctc_beam import CtcBeamSearch
from ctxasr_ray.search.delayed_fusion import FixedInterval
from ctxasr_ray.search.lm_fusion import LmFusion, Trigger
from ctxasr_ray.search.lm_texts import FusedLm
from ctxasr_ray.search.lm_units import WordUnits
from ctxasr_ray.search.lockstep import search_in_lockstep
from ctxasr_ray.search.shallow_fusion import EveryWord
from ctxasr_ray.search.streaming import Streamed, stability, stream
from ctxasr_ray.stage import Costs

torch.set_num_threads(1)

PIECES = ("", " ", "a", "b", "c")
UNITS = WordUnits(WordBoundaries(pieces=PIECES))
SEARCH = CtcBeamSearch(blank_id=0, num_labels=5, beam_size=6, label_kinds=UNITS.kinds)


def spoken(labels: str, seed: int = 0, sure: float = 0.97) -> np.ndarray:
    """One frame per character, "_" being blank; the rest of the probability is shared at random."""
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(np.ones(5), len(labels)) * (1 - sure)
    probs[np.arange(len(labels)), ["_ abc".index(label) for label in labels]] += sure
    return np.log(probs)


def test_words_are_shown_when_they_are_complete() -> None:
    (one,) = stream(SEARCH, [spoken("a_b_ _cc b")], [], UNITS, 2)
    assert one.partials == ((), (), ("ab",), ("ab",))
    assert one.final == ("ab", "c", "b")
    assert one.word_end_frame.tolist() == [3, 8, 10]
    found = stability([one])
    assert (found.num_shown, found.num_withdrawn) == (3, 0)
    assert found.delays.tolist() == [3.0, 2.0, 0.0]  # "ab" ends in frame 3, its space comes in 5, the chunk ends in 6


def test_words_that_change_are_withdrawn_with_all_behind_them() -> None:
    one = Streamed(
        partials=(("a",), ("a", "b", "c"), ("a", "d"), ("a", "d")),
        final=("a", "d", "e"),
        chunk_frames=10,
        num_frames=45,
        word_end_frame=np.array([8, 21, 44], np.int32),
    )
    found = stability([one])
    assert (found.num_shown, found.num_withdrawn) == (5, 2)
    assert found.withdrawn_share == pytest.approx(0.4)
    assert found.delays.tolist() == [2.0, 9.0, 1.0]


def test_nothing_shown_is_nothing_withdrawn() -> None:
    (one,) = stream(SEARCH, [spoken("___")], [], UNITS, 1)
    found = stability([one])
    assert (one.partials, one.final, found.num_shown, found.withdrawn_share) == (((), ()), (), 0, 0.0)
    with pytest.raises(ValueError, match="chunk_frames is 0"):
        stream(SEARCH, [spoken("___")], [], UNITS, 0)


@pytest.mark.parametrize("trigger", [EveryWord(), FixedInterval(frames=5)], ids=["shallow", "delayed"])
def test_looking_changes_no_result(trigger: Trigger) -> None:
    lm = CausalLm(tiny("llama"), eos_token_id=EOS)
    log_probs = [spoken("a_b_ _cc b_ac", seed, sure=0.4) for seed in range(3)]

    def fusion(costs: Costs) -> LmFusion:
        fused = FusedLm(
            scorer=TreeSessions(lm, costs),
            spelling=Letters(),
            prefix=np.array([1, 5], np.int32),
            eos_token_id=EOS,
            costs=costs,
        )
        return LmFusion(lm=fused, units=UNITS, trigger=trigger, lm_weight=0.5)

    plain, watched = Costs(), Costs()
    expected = [
        UNITS.words(one.labellings[0].token_ids.tolist())
        for one in search_in_lockstep(SEARCH, log_probs, [fusion(plain)])
    ]
    streamed = stream(SEARCH, log_probs, [fusion(watched)], UNITS, 3)
    assert [one.final for one in streamed] == expected
    assert watched.counters == plain.counters
    assert all(len(one.partials) == 4 for one in streamed)
    without = stream(SEARCH, log_probs, [], UNITS, 3)
    assert [one.final for one in without] != expected  # the LM says something here
