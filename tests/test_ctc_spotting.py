from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import soundfile
from tiny_ctc import make, noise

from ctxasr_ray.candidates.plausible import PlausibleConfig
from ctxasr_ray.candidates.shortlist import ShortlistConfig
from ctxasr_ray.keywords.automaton import spellings
from ctxasr_ray.keywords.context import ContextConfig, row_phrases
from ctxasr_ray.models.recogniser import CtcOptions
from ctxasr_ray.nbest import Hypothesis, NBest, hypotheses_table
from ctxasr_ray.schema import UTTERANCES, conform
from ctxasr_ray.search.ctc_spotting import phrase_trie, plausibility
from ctxasr_ray.stage import Costs

BLANK, NUM_LABELS = 5, 6


def _frames(seed: int, num: int) -> npt.NDArray[np.float64]:
    drawn = np.random.default_rng(seed).normal(size=(num, NUM_LABELS)) * 3
    return np.asarray(drawn - np.log(np.exp(drawn).sum(axis=1, keepdims=True)))


def _by_hand(tokens: list[int], log_probs: npt.NDArray[np.float64], reward: float) -> float:
    """The best path over any stretch of frames, over blanks and labels laid out one by one."""
    cost = log_probs - log_probs.max(axis=1, keepdims=True)
    states = [label for token in tokens for label in (token, BLANK)]
    best = -np.inf
    for first in range(len(cost)):
        score = np.full(len(states), -np.inf)
        score[0] = cost[first, states[0]] + reward
        for t in range(first, len(cost)):
            if t > first:
                new = score + cost[t, states]
                for s in range(1, len(states)):
                    ways = [score[s - 1]]
                    if s % 2 == 0 and states[s] != states[s - 2]:
                        ways.append(score[s - 2])
                    new[s] = max(new[s], max(ways) + cost[t, states[s]] + (reward if s % 2 == 0 else 0.0))
                score = new
            best = max(best, score[-2])
    return float(best)


def test_the_evidence_of_every_phrase_is_that_of_its_best_path() -> None:
    rng = np.random.default_rng(3)
    lists = [[rng.integers(0, BLANK, size=rng.integers(1, 5)).astype(np.int32)] for _ in range(40)]
    trie = phrase_trie(spellings(lists), NUM_LABELS)
    for seed in range(4):
        log_probs = _frames(seed, 9)
        found = plausibility(trie, log_probs, BLANK, reward=2.0, slack=np.inf, beam_size=10_000)
        expected = [_by_hand(ways[0].tolist(), log_probs, 2.0) for ways in lists]
        assert found == pytest.approx(expected, abs=1e-4)


def test_slack_gives_up_beginnings_and_never_invents_evidence() -> None:
    lists = [[np.asarray(ids, np.int32)] for ids in ([0, 1, 2], [3, 4], [2, 2])]
    trie = phrase_trie(spellings(lists), NUM_LABELS)
    log_probs = _frames(9, 12)
    every, some = (
        plausibility(trie, log_probs, BLANK, reward=1.0, slack=slack, beam_size=99) for slack in (np.inf, 0.5)
    )
    assert (some <= every + 1e-6).all()
    assert np.isneginf(some).any()


def test_a_beam_keeps_the_best_phrases_and_never_invents_evidence() -> None:
    rng = np.random.default_rng(5)
    lists = [[rng.integers(0, BLANK, size=rng.integers(3, 9)).astype(np.int32)] for _ in range(400)]
    trie = phrase_trie(spellings(lists), NUM_LABELS)
    log_probs = _frames(6, 40)
    sizes = (100_000, 200, 20)
    every, most, few = (plausibility(trie, log_probs, BLANK, reward=2.0, slack=9.0, beam_size=n) for n in sizes)
    assert (few <= every).all()
    assert (most <= every).all()
    assert np.isfinite(every).sum() > np.isfinite(most).sum() > np.isfinite(few).sum()
    assert most.max() == every.max()
    whole = plausibility(trie, log_probs, BLANK, reward=2.0, slack=9.0, beam_size=len(trie.token))
    assert whole.tolist() == every.tolist()


def test_no_phrase_and_no_frame_are_no_evidence() -> None:
    trie = phrase_trie(spellings([]), NUM_LABELS)
    assert plausibility(trie, _frames(1, 3), BLANK, reward=1.0, slack=1.0, beam_size=9).tolist() == []
    one = phrase_trie(spellings([[np.asarray([1], np.int32)]]), NUM_LABELS)
    assert plausibility(one, np.zeros((0, NUM_LABELS)), BLANK, reward=1.0, slack=1.0, beam_size=9).tolist() == [-np.inf]


def test_a_shortlist_takes_the_plausible_phrases_in_their_order(tmp_path: Path) -> None:
    model = str(make("parakeet-4x", tmp_path / "ctc"))
    soundfile.write(tmp_path / "a.wav", noise(1, 1.0), 16000)
    (tmp_path / "b.wav").write_bytes(b"no audio")
    (tmp_path / "list.txt").write_text("cab\nbad\nface\nabba\n\N{CYRILLIC SMALL LETTER ZHE}x\n")
    rows = [
        {"utterance_id": n, "corpus": "made", "split": "dev", "audio_uri": str(tmp_path / f"{n}.wav"), "start_s": 0.0}
        | {"keywords": ["deed"]}
        for n in "ab"
    ]
    utterances = conform(pa.Table.from_pylist(rows, schema=UTTERANCES), "utterances")
    listed = ContextConfig(catalogue=str(tmp_path / "list.txt"), true_keywords=True, normaliser="none")
    context = listed.build()(utterances, costs=Costs())
    config = PlausibleConfig(
        recogniser=CtcOptions(model=model, batch_size=1),
        catalogue=listed.catalogue,
        normaliser="none",
        max_phrases=3,
        slack=1000.0,
    )
    costs = Costs()
    heard = conform(config.build()(utterances, context, costs=costs), "context")
    assert costs.counters["unheard_utterances"] == 1
    assert "\N{CYRILLIC SMALL LETTER ZHE}x" in costs.named["unwritable_phrases"]
    first, second = row_phrases(heard, None)
    assert len(first.own) == 3
    assert second.own == ()
    lists = hypotheses_table([NBest(utterance_id=n, hypotheses=[Hypothesis(text="x")]) for n in "ab"])
    shortlist = ShortlistConfig(
        catalogue=listed.catalogue, normaliser="none", ways=("plausible",), plausible=config, max_phrases=2
    )
    made = shortlist.build()(lists, context, heard, costs=Costs())
    assert made["phrases"].to_pylist() == [[phrase.text for phrase in first.own[:2]], []]
    with pytest.raises(ValueError, match="go together"):
        ShortlistConfig(ways=("plausible",))
