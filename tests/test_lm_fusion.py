"""In-search language models against enumeration, rescoring, and the sanity tests T1 to T6 of delayed fusion."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_causal_lms import EOS, one_by_one, tiny

from ctxasr_ray.keywords.automaton import build, spellings, word_shape
from ctxasr_ray.models.causal_lm import CausalLm
from ctxasr_ray.models.tree_sessions import TreeSessions
from ctxasr_ray.models.word_boundaries import WordBoundaries
from ctxasr_ray.search.ctc_beam import CtcBeamSearch
from ctxasr_ray.search.ctc_forced import ctc_forward_scores
from ctxasr_ray.search.delayed_fusion import FixedInterval, ShortestHypothesis
from ctxasr_ray.search.fusion import Fusion
from ctxasr_ray.search.keyword_boost import KeywordBoost
from ctxasr_ray.search.lm_fusion import LmFusion, Trigger
from ctxasr_ray.search.lm_texts import FusedLm
from ctxasr_ray.search.lm_units import LabelUnits, Units, WordUnits, label_tokens
from ctxasr_ray.search.lockstep import FusedList, search_in_lockstep
from ctxasr_ray.search.shallow_fusion import EveryWord, LabelShallowFusion
from ctxasr_ray.stage import Costs

torch.set_num_threads(1)

PIECES = ("", " ", "a", "b", "c")
FEW = {"letters": ("", " ", "a", "b"), "word starts": ("", " a", " b", "b"), "word ends": ("", "a ", "b ", "b")}
PREFIX = np.array([1, 5], np.int32)
NEVER = FixedInterval(frames=10**9)
TRIGGERS: dict[str, Trigger] = {
    "shallow": EveryWord(),
    "every frame, own words": FixedInterval(frames=1, scope="own_last_word"),
    "every frame": FixedInterval(frames=1),
    "every 4 frames": FixedInterval(frames=4),
    "every 4 frames, own words": FixedInterval(frames=4, scope="own_last_word"),
    "shortest": ShortestHypothesis(),
    "shortest, own words": ShortestHypothesis(scope="own_last_word"),
    "never": NEVER,
}


@dataclass
class Letters:
    """Words as letters behind a token for their start; `merges` writes "a b" as one token, as no word by word can."""

    merges: bool = False

    @property
    def is_incremental(self) -> bool:
        return not self.merges

    def chunk(self, word: str, first: bool) -> np.ndarray:
        return np.array([10 + (not first), *(20 + ord(letter) - ord("a") for letter in word)], np.int32)

    def extend(self, words: Sequence[str]) -> np.ndarray:
        ids = np.concatenate([self.chunk(word, place == 0) for place, word in enumerate(words)]).tolist()
        if self.merges:
            text, merged = [20, 11, 21], 40
            places = [i for i in range(len(ids) - 2) if ids[i : i + 3] == text]
            for place in reversed(places):
                ids[place : place + 3] = [merged]
        return np.array(ids, np.int32)


class World:
    """One random LM, one beam, one way to fuse."""

    def __init__(self, *, pieces: Sequence[str] = PIECES, spelling: Any = None, family: str = "llama", **beam: Any):
        self.model = tiny(family)
        self.spelling = spelling or Letters()
        self.units: Units = WordUnits(WordBoundaries(pieces=tuple(pieces)))
        self.beam = {"beam_size": 8, "blank_skip_prob": None, **beam}
        self.costs = Costs()
        self.lm_options: dict[str, Any] = {}
        self.known: dict[tuple[int, ...], tuple[float, float]] = {}

    def fusion(self, trigger: Trigger, **options: Any) -> LmFusion:
        lm = CausalLm(self.model, eos_token_id=EOS, utterances_per_forward=4)
        self.costs = Costs()
        fused = FusedLm(
            scorer=TreeSessions(lm, self.costs),
            spelling=self.spelling,
            prefix=PREFIX,
            eos_token_id=EOS,
            costs=self.costs,
            **{"max_positions": lm.max_positions, **self.lm_options},
        )
        return LmFusion(
            lm=fused, units=self.units, trigger=trigger, **{"lm_weight": 0.7, "length_bonus": 0.9, **options}
        )

    def search(self, log_probs: Sequence[np.ndarray], *fusions: Any, lockstep: int = 4) -> list[FusedList]:
        kinds = next((fusion.kinds for fusion in fusions if hasattr(fusion, "kinds")), ())
        search = CtcBeamSearch(blank_id=0, num_labels=log_probs[0].shape[1], label_kinds=kinds, **self.beam)
        found: list[FusedList] = []
        for start in range(0, len(log_probs), lockstep):
            batch = [search.checked(one) for one in log_probs[start : start + lockstep]]
            found += search_in_lockstep(search, batch, fusions)
        return found

    def objective(self, labels: Sequence[int], fusion: LmFusion) -> float:
        """What a row must have been given in the end, by the plain model."""
        words = self.units.words(labels)
        ids = self.spelling.extend(words).tolist() if words else []
        if tuple(ids) not in self.known:
            self.known[tuple(ids)] = one_by_one(self.model, PREFIX.tolist(), ids)
        log_prob, eos = self.known[tuple(ids)]
        return fusion.lm_weight * (log_prob + eos) + fusion.length_bonus * len(words)


def posteriors(seed: int, num_frames: int, num_labels: int = len(PIECES), peak: float = 1.5) -> np.ndarray:
    logits = peak * np.random.default_rng(seed).standard_normal((num_frames, num_labels))
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def texts(found: FusedList) -> list[list[int]]:
    return [one.token_ids.tolist() for one in found.labellings]


UNBOUNDED = {
    "beam_size": 2000,
    "max_labels_per_frame": 100,
    "min_label_log_prob": -math.inf,
    "beam_threshold": math.inf,
}


@pytest.mark.parametrize("vocabulary", FEW)
@pytest.mark.parametrize("trigger", ["shallow", "every 4 frames", "shortest", "never"])
def test_an_unbounded_beam_finds_the_argmax_of_the_stated_objective(trigger: str, vocabulary: str) -> None:
    pieces = FEW[vocabulary]
    world = World(pieces=pieces, **UNBOUNDED)
    log_probs = posteriors(1, 5, len(pieces))
    fusion = world.fusion(TRIGGERS[trigger])
    (found,) = world.search([log_probs], fusion)
    check_against_enumeration(world, log_probs, fusion, found)


def check_against_enumeration(world: World, log_probs: np.ndarray, fusion: LmFusion, found: FusedList) -> None:
    """The list holds every text of the frames, with the objective that is stated for it, and the best one first."""
    paths = itertools.product(range(log_probs.shape[1]), repeat=len(log_probs))
    every = sorted({tuple(v for v, _ in itertools.groupby(path) if v) for path in paths})
    ctc = [score.log_prob for score in ctc_forward_scores(log_probs, every, 0)]
    objectives = {text: (score or 0.0) + world.objective(text, fusion) for text, score in zip(every, ctc, strict=True)}
    got = {tuple(one.token_ids.tolist()): one.log_prob + one.fusion for one in found.labellings}
    assert got == pytest.approx(objectives, abs=1e-4)
    assert texts(found)[0] == list(max(objectives, key=lambda text: objectives[text]))


@pytest.mark.parametrize("trigger", TRIGGERS)
@pytest.mark.parametrize("spelling", [Letters(), Letters(merges=True)], ids=["word by word", "merging"])
def test_incremental_scores_equal_one_shot_scores(trigger: str, spelling: Letters) -> None:  # T4
    world = World(spelling=spelling)
    fusion = world.fusion(TRIGGERS[trigger])
    for found in world.search([posteriors(seed, 40) for seed in range(2)], fusion):
        for one, scores in zip(found.labellings, found.scores, strict=True):
            words = world.units.words(one.token_ids.tolist())
            expected = one_by_one(world.model, PREFIX.tolist(), world.spelling.extend(words).tolist())
            assert [s.source for s in scores] == ["causal_lm", "causal_lm/eos"]
            assert [s.log_prob for s in scores] == pytest.approx(expected, abs=1e-4)
            assert one.fusion == pytest.approx(0.7 * sum(expected) + 0.9 * len(words), abs=1e-4)


def test_never_fusing_is_rescoring_of_the_plain_beam() -> None:  # T1
    world = World()
    log_probs = posteriors(2, 40)
    fusion = world.fusion(NEVER)
    (plain,), (fused,) = world.search([log_probs]), world.search([log_probs], fusion)
    rescored = {tuple(one.token_ids): one.log_prob + world.objective(one.token_ids, fusion) for one in plain.labellings}
    assert {tuple(one.token_ids): one.log_prob + one.fusion for one in fused.labellings} == pytest.approx(
        rescored, abs=1e-4
    )
    assert world.costs.counters["llm_calls"] == 1


@pytest.mark.parametrize("trigger", TRIGGERS)
def test_with_one_row_the_language_model_changes_nothing(trigger: str) -> None:  # T2
    world = World(beam_size=1)
    for seed in range(4):
        log_probs = [posteriors(seed, 30)]
        assert texts(world.search(log_probs, world.fusion(TRIGGERS[trigger]))[0]) == texts(world.search(log_probs)[0])


def labels_world(**beam: Any) -> tuple[World, LabelUnits]:
    world = World(**beam)
    units = LabelUnits(np.array([0, 30, 31, 32, 33], np.int32))
    world.units, world.spelling = units, units
    return world, units


@pytest.mark.parametrize("when", ["shallow", "every 4 frames", "never"])
def test_an_unbounded_beam_finds_the_argmax_of_the_stated_objective_by_label(when: str) -> None:
    world, units = labels_world(**UNBOUNDED)
    log_probs = posteriors(2, 4)
    stated = world.fusion(TRIGGERS.get(when, NEVER))
    by_label = LabelShallowFusion(lm=stated.lm, units=units, lm_weight=0.7, length_bonus=0.9)
    (found,) = world.search([log_probs], by_label if when == "shallow" else stated)
    check_against_enumeration(world, log_probs, stated, found)


def test_by_label_every_frame_after_pruning_is_shallow_fusion_but_for_what_was_pruned_unseen() -> None:  # T3
    best, kept = [], []
    for seed in range(5):
        lists = []
        for beam in ({}, UNBOUNDED):
            world, units = labels_world(**beam)
            delayed = world.fusion(FixedInterval(frames=1, scope="own_last_word"), lm_weight=0.1)
            shallow = LabelShallowFusion(lm=delayed.lm, units=units, lm_weight=0.1, length_bonus=0.9)
            log_probs = posteriors(seed, 3 if beam else 30, peak=3.0)
            (late,), (early,) = (world.search([log_probs], fusion) for fusion in (delayed, shallow))
            lists.append((late, early))
            sums = [{tuple(one.token_ids): one.fusion for one in found.labellings} for found in (late, early)]
            common = sums[0].keys() & sums[1].keys()
            assert {text: sums[0][text] for text in common} == pytest.approx(
                {text: sums[1][text] for text in common}, abs=1e-4
            )
        (late, early), (all_late, all_early) = lists
        assert texts(all_late) == texts(all_early), "nothing is pruned, so nothing differs"
        best.append(texts(late)[0] == texts(early)[0])
        kept.append(len({tuple(t) for t in texts(late)} & {tuple(t) for t in texts(early)}))
    assert np.mean(best) >= 0.6
    assert np.mean(kept) >= 4


@pytest.mark.parametrize("trigger", ["shallow", "every 4 frames", "shortest"])
def test_results_do_not_depend_on_how_many_utterances_go_side_by_side(trigger: str) -> None:  # T5
    world = World()
    log_probs = [posteriors(seed, 20 + 5 * seed) for seed in range(7)]
    alone = world.search(log_probs, world.fusion(TRIGGERS[trigger]), lockstep=1)
    calls = world.costs.counters["llm_calls"]
    for lockstep in (3, 7):
        beside = world.search(log_probs, world.fusion(TRIGGERS[trigger]), lockstep=lockstep)
        assert [texts(found) for found in beside] == [texts(found) for found in alone]
        for one, other in zip(beside, alone, strict=True):
            assert [x.fusion for x in one.labellings] == pytest.approx([x.fusion for x in other.labellings], abs=1e-4)
        assert world.costs.counters["llm_calls"] < calls


def test_a_longer_delay_costs_fewer_calls_and_fewer_nodes() -> None:  # T6
    world, counted = World(), {}
    log_probs = [posteriors(seed, 96) for seed in range(4)]
    for name, trigger in {**TRIGGERS, "every 32 frames": FixedInterval(frames=32)}.items():
        world.search(log_probs, world.fusion(trigger), lockstep=1)
        counted[name] = dict(world.costs.counters)
    calls = {name: counters["llm_calls"] for name, counters in counted.items()}
    assert calls["shallow"] >= calls["every frame"] >= calls["every 4 frames"] >= calls["every 32 frames"] >= 4
    assert calls["shallow"] == calls["every frame, own words"]
    assert calls["every 32 frames"] <= 0.3 * calls["shallow"]
    for counters in counted.values():
        assert counters["nodes"] < counters["tokens_flat"]
        assert counters["peak_kv_bytes"] > 0


@pytest.mark.parametrize("trigger", ["shallow", "every 4 frames", "shortest", "labels"])
def test_each_utterance_counts_what_it_asked_whoever_is_searched_beside_it(trigger: str) -> None:
    world, units = labels_world() if trigger == "labels" else (World(), None)
    log_probs = [posteriors(seed, 40 + 20 * seed) for seed in range(4)]
    position = CausalLm(world.model, eos_token_id=EOS).position_bytes
    config = world.model.config
    head = config.hidden_size // config.num_attention_heads
    assert position == 2 * 4 * config.num_hidden_layers * config.num_key_value_heads * head
    found = {}
    for lockstep in (1, 4):
        fusion = world.fusion(TRIGGERS.get(trigger, NEVER))
        asked: Any = replace(fusion, lm=replace(fusion.lm, position_bytes=position))
        if units is not None:
            asked = LabelShallowFusion(lm=asked.lm, units=units, lm_weight=0.7)
        found[lockstep] = [one.work for one in world.search(log_probs, asked, lockstep=lockstep)]
        counters, works = world.costs.counters, found[lockstep]
        assert sum(work.nodes for work in works) == counters["nodes"]
        assert sum(work.tokens_flat for work in works) == counters["tokens_flat"]
        assert sum(work.triggers for work in works) == counters["triggers"]
        assert sum(work.llm_calls for work in works) - len(works) * (units is not None) == counters["lm_asks"]
        for work in works:
            assert position * len(PREFIX) < work.kv_bytes <= position * (len(PREFIX) + work.nodes)
    assert found[1] == found[4]
    if trigger == "every 4 frames":  # dead nodes are given up
        assert max(position * (len(PREFIX) + work.nodes) - work.kv_bytes for work in found[1]) > 0


@pytest.mark.parametrize("trigger", TRIGGERS)
def test_no_token_is_scored_twice(trigger: str) -> None:
    world = World(beam_size=20)
    fusion = world.fusion(TRIGGERS[trigger])
    sent: list[tuple[int, ...]] = []
    given_up = [0]
    paths: dict[int, tuple[int, ...]] = {-1: ()}
    extend = fusion.lm.scorer.extend

    class Recorder:
        """The scorer, keeping the token path of every node that it is given."""

        open, close = fusion.lm.scorer.open, fusion.lm.scorer.close

        def retain(self, sessions: Any, nodes: Any) -> None:
            given_up.append(len(sent) - len(nodes[0]))
            fusion.lm.scorer.retain(sessions, nodes)

        def extend(self, sessions: Any, nodes: Any) -> Any:
            for token, parent in zip(nodes[0].tokens.tolist(), nodes[0].parents.tolist(), strict=True):
                paths[len(paths) - 1] = (*paths[parent], token)
                sent.append(paths[len(paths) - 2])
            return extend(sessions, nodes)

    recorded = replace(fusion, lm=replace(fusion.lm, scorer=Recorder()))
    world.search([posteriors(3, 90)], recorded)
    assert len(sent) == len(set(sent)) == world.costs.counters["nodes"]
    if trigger in ("every frame", "every 4 frames", "shortest"):  # own words: a row without any keeps all alive
        assert max(given_up) > 50


def test_a_label_prior_is_taken_off_in_step_with_the_language_model() -> None:
    world = World()
    prior = np.log(np.array([0.2, 0.3, 0.1, 0.15, 0.25]))
    for trigger in ("every 4 frames", "never"):
        fusion = world.fusion(TRIGGERS[trigger], label_prior=prior, prior_weight=0.4)
        (found,) = world.search([posteriors(5, 30)], fusion)
        for one in found.labellings:
            expected = world.objective(one.token_ids, fusion) - 0.4 * prior[one.token_ids].sum()
            assert one.fusion == pytest.approx(expected, abs=1e-4)


def test_fusions_combine_and_a_weight_of_zero_is_none() -> None:
    world = World()
    log_probs = [posteriors(6, 30)]
    both: list[Fusion] = []
    for source, weight, trigger in (("small", 0.3, "shallow"), ("large", 0.5, "every 4 frames")):
        fusion = world.fusion(TRIGGERS[trigger], lm_weight=weight, length_bonus=0.2)
        both.append(replace(fusion, lm=replace(fusion.lm, source=source)))
    (found,) = world.search(log_probs, *both)
    assert [s.source for s in found.scores[0]] == ["small", "small/eos", "large", "large/eos"]
    for one, scores in zip(found.labellings, found.scores, strict=True):
        assert scores[0].log_prob == pytest.approx(scores[2].log_prob, abs=1e-4)
        words = len(world.units.words(one.token_ids.tolist()))
        assert one.fusion == pytest.approx(0.8 * (scores[0].log_prob + scores[1].log_prob) + 0.4 * words, abs=1e-4)
    (found,) = world.search(log_probs, *both, keyword_boost(1))
    for one, scores in zip(found.labellings, found.scores, strict=True):
        words = len(world.units.words(one.token_ids.tolist()))
        expected = 0.8 * (scores[0].log_prob + scores[1].log_prob) + 0.4 * words + scores[4].log_prob
        assert one.fusion == pytest.approx(expected, abs=1e-4)
    assert max(scores[4].log_prob for scores in found.scores) > 0
    (nothing,) = world.search(log_probs, world.fusion(TRIGGERS["shallow"], lm_weight=0.0, length_bonus=0.0))
    assert texts(nothing) == texts(world.search(log_probs)[0])


@pytest.mark.parametrize("trigger", ["shallow", "every 4 frames", "shortest"])
def test_a_language_model_and_a_keyword_boost_add_up_and_each_keeps_its_own_sum(trigger: str) -> None:
    world, log_probs = World(**UNBOUNDED), [posteriors(seed, 5) for seed in (3, 4)]
    lm, boost = world.fusion(TRIGGERS[trigger]), keyword_boost(len(log_probs))
    plain = world.search(log_probs, lm)
    for found, other, reverse in zip(
        world.search(log_probs, lm, boost), plain, world.search(log_probs, boost, lm), strict=True
    ):
        without = {tuple(one.token_ids): one for one in other.labellings}
        sums = {tuple(one.token_ids): one.fusion for one in reverse.labellings}
        assert {tuple(one.token_ids): one.fusion for one in found.labellings} == pytest.approx(sums)
        assert set(without) == {tuple(one.token_ids) for one in found.labellings}
        for one, scores in zip(found.labellings, found.scores, strict=True):
            assert [score.source for score in scores] == ["causal_lm", "causal_lm/eos", "keyword_boost"]
            alone = without[tuple(one.token_ids)]
            assert one.fusion == pytest.approx(alone.fusion + scores[2].log_prob, abs=1e-4)
            assert one.log_prob == pytest.approx(alone.log_prob, abs=1e-9)
        assert any(scores[2].log_prob > 0 for scores in found.scores)


def keyword_boost(num_utterances: int) -> KeywordBoost:
    """The word "ab" at 1.5 nats per label."""
    shape = word_shape(PIECES)
    phrase = [np.array([PIECES.index("a"), PIECES.index("b")], np.int32)]
    empty = build(spellings([]), [], shape)
    return KeywordBoost(automata=[(build(spellings([phrase]), [1.5], shape), empty)] * num_utterances)


def test_a_boost_goes_on_where_the_language_model_fails() -> None:
    world = World()
    sick = world.fusion(TRIGGERS["every 4 frames"])
    sick = replace(sick, lm=replace(sick.lm, scorer=Sick(sick.lm.scorer, 40)))
    log_probs = [posteriors(8, 40)]
    (found,) = world.search(log_probs, sick, keyword_boost(1))
    assert "the model gave nan" in found.left_out["causal_lm"]
    (alone,) = search_in_lockstep(
        CtcBeamSearch(blank_id=0, num_labels=len(PIECES), label_kinds=sick.kinds, **world.beam),
        log_probs,
        [keyword_boost(1)],
    )
    assert texts(found) == texts(alone)
    assert found.scores == alone.scores


def test_a_text_beyond_the_context_loses_its_oldest_words_and_says_so() -> None:
    world = World()
    world.lm_options = {"max_positions": 24}
    fusion = world.fusion(TRIGGERS["every 4 frames"])
    (found,) = world.search([posteriors(7, 60)], fusion)
    assert not found.left_out
    assert world.costs.counters["context_slides"] > 0
    short = [i for i, one in enumerate(found.labellings) if len(one.token_ids) < 16]
    best = found.labellings[0]
    words = world.units.words(best.token_ids.tolist())
    assert len(PREFIX) + len(world.spelling.extend(words)) > 24
    assert found.scores[0][0].log_prob == pytest.approx(slid(world, words, 24), abs=1e-4)
    assert len(short) < len(found.labellings)


def slid(world: World, words: Sequence[str], limit: int) -> float:
    """The stated rule by the plain model: where a word does not fit, half of the context's last words stay."""
    total, before = 0.0, []
    for place, word in enumerate(words):
        ids = world.spelling.chunk(word, place == 0).tolist()
        if len(PREFIX) + len(before) + len(ids) > limit:
            room, kept = limit - len(PREFIX), []
            for old in reversed(words[:place]):
                more = world.spelling.chunk(old, False).tolist()
                if len(kept) + len(more) > min(room // 2, room - len(ids)):
                    break
                kept = more + kept
            before = kept
        total += one_by_one(world.model, [*PREFIX.tolist(), *before], ids)[0]
        before = [*before, *ids]
    return total


class Sick:
    """A scorer whose answers are nan from some node on."""

    def __init__(self, scorer: Any, after: int) -> None:
        self.scorer, self.left = scorer, after
        self.open, self.retain, self.close = scorer.open, scorer.retain, scorer.close

    def extend(self, sessions: Any, nodes: Any) -> Any:
        scores = self.scorer.extend(sessions, nodes)
        self.left -= sum(len(one.tokens) for one in nodes)
        return scores if self.left > 0 else [(np.full_like(a, np.nan), b) for a, b in scores]


def test_an_utterance_whose_model_fails_is_searched_without_it_and_with_the_others() -> None:
    world = World()
    log_probs = [posteriors(seed, 40) for seed in (8, 9)]
    well = world.fusion(TRIGGERS["shortest"])
    well = replace(well, lm=replace(well.lm, source="well"))
    sick = world.fusion(TRIGGERS["every 4 frames"])
    sick = replace(sick, lm=replace(sick.lm, scorer=Sick(sick.lm.scorer, 40)))
    expected = world.search(log_probs, well)
    for found, other in zip(world.search(log_probs, sick, well), expected, strict=True):
        assert "the model gave nan" in found.left_out["causal_lm"]
        assert texts(found) == texts(other)
        assert [s.source for s in found.scores[0]] == ["well", "well/eos"]


def test_a_word_without_tokens_or_too_long_for_the_model_leaves_the_model_out() -> None:
    class Wordless(Letters):
        def chunk(self, word: str, first: bool) -> np.ndarray:
            return super().chunk(word, first)[: 0 if "c" in word else None]

    world = World(spelling=Wordless())
    (found,) = world.search([posteriors(10, 30)], world.fusion(TRIGGERS["shortest"]))
    assert "no token for" in found.left_out["causal_lm"]
    assert texts(found) == texts(world.search([posteriors(10, 30)])[0])
    world = World()
    world.lm_options = {"max_positions": 4}
    (found,) = world.search([posteriors(10, 30)], world.fusion(TRIGGERS["shortest"]))
    assert "has no room in the model's 4" in found.left_out["causal_lm"]


def test_an_utterance_without_words_has_the_score_of_an_end_at_once() -> None:
    world = World()
    silent = np.log(np.array([[0.999, 2.5e-4, 2.5e-4, 2.5e-4, 2.5e-4]] * 3))
    for log_probs in (silent, silent[:0]):
        (found,) = world.search([log_probs], world.fusion(TRIGGERS["every 4 frames"]))
        expected = one_by_one(world.model, PREFIX.tolist(), [])[1]
        assert texts(found)[0] == []
        assert [s.log_prob for s in found.scores[0]] == pytest.approx([0.0, expected], abs=1e-4)


def test_labels_are_found_in_the_language_models_vocabulary_by_their_text() -> None:
    class Tokenizer:
        def get_vocab(self) -> dict[str, int]:
            return {"</s>": 2, "\u2581": 7, "\u2581a": 8, "b": 9, "a": 10}

    assert label_tokens(("", " ", "a", " a"), [0], Tokenizer()).tolist() == [0, 7, 10, 8]
    with pytest.raises(ValueError, match="lacks 1 of 2 labels of the recogniser, the first is 'c'"):
        label_tokens(("", "a", "c"), [0], Tokenizer())


def test_the_shipped_character_lm_has_a_token_for_every_label_of_the_shipped_ctc_recogniser() -> None:
    from ctxasr_ray.experiment import asset
    from ctxasr_ray.first_pass.ctc import CtcConfig
    from ctxasr_ray.first_pass.search_lms import labels_of
    from ctxasr_ray.scorers.causal_lm import CausalLmConfig

    vocabulary = CtcConfig(model=asset("ctc")).load().vocabulary
    tokens, units, _ = labels_of(vocabulary, CausalLmConfig(model=asset("lm_characters")))
    labels = [vocabulary.pieces.index(character) for character in "call o'hara at nine"]
    (ids,) = tokens.encode(["call o'hara at nine"])
    assert [int(units.chunk(str(label), False)[0]) for label in labels] == ids.tolist()  # type: ignore[attr-defined]


@pytest.mark.slow
def test_scoring_own_words_at_every_frame_collapses_and_the_default_does_not() -> None:
    """The trap of the replication (9.99 against 6.12): who has just finished a word pays, and rivals do not."""
    from rapidfuzz.distance import Levenshtein

    from ctxasr_ray.corpora.synthetic import SyntheticConfig
    from ctxasr_ray.first_pass.ctc import CtcConfig
    from ctxasr_ray.first_pass.ctc_lists import ctc_search
    from ctxasr_ray.models.text_tokens import TextTokens
    from ctxasr_ray.models.word_tokens import WordTokens
    from ctxasr_ray.scorers.causal_lm import CausalLmConfig

    assets = Path(__file__).parents[1] / "ctxasr_ray" / "assets"
    recogniser = CtcConfig(model=str(assets / "ctc"), beam_size=16, num_hypotheses=16)
    model, scorer = recogniser.load(), CausalLmConfig(model=str(assets / "lm")).build()
    spoken = [SyntheticConfig().spoken("dev", index) for index in range(20)]
    log_probs = [model.log_probs([one.samples])[0] for one in spoken]
    tokens: TextTokens = scorer.tokens
    fused = FusedLm(
        scorer=TreeSessions(scorer.lm),
        spelling=WordTokens(tokens),
        prefix=tokens.prefix,
        eos_token_id=scorer.lm.eos_token_id,
    )
    units = WordUnits(WordBoundaries.of_ctc(model.vocabulary))
    wer = {}
    for name in ("every frame, own words", "every frame", "shortest", "every 32 frames", "never"):
        trigger = TRIGGERS.get(name, FixedInterval(frames=32))
        fusion = LmFusion(lm=fused, units=units, trigger=trigger, lm_weight=0.5, length_bonus=1.0)
        search = ctc_search(recogniser, model, fusion.kinds)
        found = search_in_lockstep(search, [search.checked(one) for one in log_probs], [fusion])
        errors = sum(
            Levenshtein.distance(model.vocabulary.text(f.labellings[0].token_ids).split(), s.text.split())
            for f, s in zip(found, spoken, strict=True)
        )
        wer[name] = 100 * errors / sum(len(s.text.split()) for s in spoken)
    assert wer["every frame, own words"] > wer["every frame"] + 4
    assert wer["every frame"] < wer["never"]
    assert max(wer["shortest"], wer["every 32 frames"]) <= wer["never"]
