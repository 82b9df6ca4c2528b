"""The sanity tests T1 to T6 of delayed fusion in the attention beam; `test_lm_fusion` has those of the CTC beam."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_fusion
import tiny_seq2seq
import torch
from test_label_fusion import END, found_by, texts_of
from test_lm_fusion import NEVER
from test_word_rows import TRIGGERS, World

from ctxasr_ray.models.checkpoint import resolve
from ctxasr_ray.models.seq2seq import Seq2SeqModel
from ctxasr_ray.models.tree_host import TreeHost
from ctxasr_ray.search.ctc_forced import ctc_forward_scores
from ctxasr_ray.search.delayed_fusion import FixedInterval
from ctxasr_ray.search.gated_fusion import ShallowRows
from ctxasr_ray.search.label_beam import LabelHypothesis
from ctxasr_ray.search.label_synchronous import LabelSynchronousSearch
from ctxasr_ray.search.lm_texts import FusedLm
from ctxasr_ray.search.lm_units import LabelUnits, Words
from ctxasr_ray.search.shallow_fusion import EveryWord
from ctxasr_ray.search.word_rows import WordRows

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Writes until it may not: what goes on in the beam is then what is found."""
    return World(tmp_path_factory.mktemp("endless"), "abc", never_ends=True)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("small"), "abc", ends_like="a", widen=0.6)


def texts(found: Sequence[LabelHypothesis]) -> list[list[int]]:
    return [one.token_ids.tolist() for one in found]


def test_never_fusing_is_rescoring_of_the_plain_beam(endless: World, small: World) -> None:  # T1
    states = endless.model.encode(tiny_seq2seq.noises([1.5]))[0]
    plain = found_by(endless.model, states, None, 5, 10)
    rows = endless.rows(NEVER, bonus=0.0)
    fused = found_by(endless.model, states, rows, 5, 10)
    assert texts(fused) == texts(plain)
    assert rows.work[0].triggers == 0
    for one, (text, end) in zip(plain, rows.scores([fused])[0], strict=True):
        assert [text.log_prob, end.log_prob] == pytest.approx(endless.lm(one.token_ids)[:2], abs=1e-4)
    states, longest = small.model.encode(tiny_seq2seq.noises([1.0]))[0], 3
    wide = 2 * len(texts_of(small.model, longest))
    rescored = {}
    for one in found_by(small.model, states, None, wide, longest):
        log_prob, eos, num_words = small.lm(one.token_ids)
        if one.ended:
            rescored[tuple(one.token_ids)] = one.score + 0.6 * (log_prob + eos) + 0.9 * num_words
    late = found_by(small.model, states, small.rows(NEVER), wide, longest)
    assert {tuple(one.token_ids): one.score for one in late if one.ended} == pytest.approx(rescored, abs=1e-4)


@pytest.mark.parametrize("trigger", TRIGGERS)
def test_with_one_row_the_language_model_changes_nothing(endless: World, trigger: str) -> None:  # T2
    for states in endless.model.encode(tiny_seq2seq.noises([0.5, 1.0, 1.5])):
        fused = found_by(endless.model, states, endless.rows(TRIGGERS[trigger]), 1, 20)
        assert texts(fused) == texts(found_by(endless.model, states, None, 1, 20))


class Tokens(LabelUnits):
    """Every token of the recogniser is a word, complete at once."""

    def complete_words(self, token_ids: Sequence[int]) -> tuple[Words, str]:
        return self.words(token_ids), ""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Seq2SeqModel, tiny_fusion.Judge]:
    """An LM that writes with the recogniser's own tokens."""
    folder = tmp_path_factory.mktemp("shared")
    made = tiny_seq2seq.make("whisper", folder / "asr", letters="abc", ends_like="a", widen=0.6)
    model = Seq2SeqModel(resolve(str(made)))
    return model, tiny_fusion.Judge(tiny_fusion.make_lm(folder / "lm", tiny_seq2seq.tokenizer("abc")), model)


def by_token(judge: tiny_fusion.Judge) -> WordRows:
    units: Any = Tokens(np.maximum(judge.tokens, 0))
    lm = FusedLm(
        scorer=TreeHost(judge.lm).sessions(judge.costs),
        spelling=units,
        prefix=tiny_fusion.PREFIX,
        eos_token_id=END,
    )
    trigger = FixedInterval(frames=1, scope="own_last_word")
    return WordRows(
        lm, units, trigger, eos_id=END, lm_weight=0.2, length_bonus=0.4, end_within=math.inf, num_utterances=1
    )


def test_by_token_after_every_pruning_is_shallow_fusion_but_for_what_was_pruned_unseen(shared: Any) -> None:  # T3
    model, judge = shared
    best, kept = [], []
    for seconds in (0.3, 0.7, 1.0, 1.4, 1.8):
        states = model.encode(tiny_seq2seq.noises([seconds]))[0]
        lists = {}
        for beam, longest in ((2 * len(texts_of(model, 3)), 3), (5, 12)):
            shallow = ShallowRows(lm=judge.rows(1), eos_id=END, lm_weight=0.2, length_bonus=0.4)
            late, early = (found_by(model, states, fusion, beam, longest) for fusion in (by_token(judge), shallow))
            lists[longest] = [
                {tuple(one.token_ids): one.score for one in found if one.ended} for found in (late, early)
            ]
            common = lists[longest][0].keys() & lists[longest][1].keys()
            for text in common:
                assert lists[longest][0][text] == pytest.approx(lists[longest][1][text], abs=1e-4)
            if longest == 12:
                best.append(texts(late)[0] == texts(early)[0])
                kept.append(len({tuple(t) for t in texts(late)} & {tuple(t) for t in texts(early)}))
        assert lists[3][0].keys() == lists[3][1].keys(), "nothing is pruned, so nothing differs"
        assert max(lists[3][0], key=lists[3][0].__getitem__) == max(lists[3][1], key=lists[3][1].__getitem__)
    assert np.mean(best) >= 0.6
    assert np.mean(kept) >= 2


def test_a_longer_delay_costs_fewer_calls_and_none_more_nodes_than_shallow_fusion(endless: World) -> None:  # T6
    states = endless.model.encode(tiny_seq2seq.noises([1.5]))[0]
    triggers = {"shallow": EveryWord(), **{f"every {n}": FixedInterval(frames=n) for n in (1, 4, 16)}}
    calls, nodes = [], []
    for trigger in triggers.values():
        rows = endless.rows(trigger, end_within=0.0)
        found_by(endless.model, states, rows, 5, 32)
        calls.append(endless.costs.counters.get("llm_calls", 0))
        nodes.append(rows.work[0].nodes)
        assert rows.work[0].nodes < rows.work[0].tokens_flat
    assert calls == sorted(calls, reverse=True)
    assert max(nodes) == nodes[0]
    assert calls[0] > calls[-1] >= 1


@pytest.mark.parametrize("trigger", ["shallow", "every 2 tokens", "never"])
def test_a_wide_joint_beam_is_exhaustive_enumeration_with_the_model_in_it(tmp_path: Path, trigger: str) -> None:
    world, longest = World(tmp_path, "abc", ends_like="a", widen=0.6, ctc_head=True), 3
    states = world.model.encode(tiny_seq2seq.noises([1.0]))[0]
    ctc_log_probs = world.model.ctc_log_probs(states, 12)
    wide = 2 * len(texts_of(world.model, longest))
    search = LabelSynchronousSearch(world.model, beam_size=wide, max_tokens=longest, ctc_weight=0.3)
    prompt = world.model.tokens.prompt(None)
    plain = [one for one in search.search(states, prompt, [ctc_log_probs])[0] if one.ended]
    expected = {}
    for one in plain:
        (ctc,) = ctc_forward_scores(ctc_log_probs, [one.token_ids.tolist()], world.model.ctc_blank_id)
        attended = float(one.token_log_probs.sum() + one.eos_log_prob)
        log_prob, eos, num_words = world.lm(one.token_ids)
        if ctc.log_prob is not None:
            fused = 0.7 * attended + 0.3 * ctc.log_prob + 0.6 * (log_prob + eos) + 0.9 * num_words
            expected[tuple(one.token_ids)] = fused
    found = search.search(states, prompt, [ctc_log_probs], world.rows(TRIGGERS[trigger]))[0]
    got = {tuple(one.token_ids): one.score for one in found if one.ended}
    assert {text: got[text] for text in expected} == pytest.approx(expected, abs=1e-4)
    assert max(got, key=got.__getitem__) == max(expected, key=expected.__getitem__)
