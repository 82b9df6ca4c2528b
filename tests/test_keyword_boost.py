from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctxasr_ray import schema
from ctxasr_ray.first_pass.ctc import CtcConfig
from ctxasr_ray.first_pass.ctc_keywords import CtcKeywordsConfig
from ctxasr_ray.keywords.automaton import build, spellings, word_shape
from ctxasr_ray.keywords.automaton_kernels import Automaton
from ctxasr_ray.keywords.context import ContextConfig
from ctxasr_ray.nbest import Score, read_nbest
from ctxasr_ray.search.ctc_beam import CtcBeamSearch, Labelling
from ctxasr_ray.search.fusion import Fusion, Wake, Work
from ctxasr_ray.search.keyword_boost import KeywordBoost
from ctxasr_ray.search.lockstep import search_in_lockstep
from ctxasr_ray.stage import Costs, Resources

PIECES = (" ", "a", "b", "c", "d", "")
SHAPE = word_shape(PIECES)
SEARCH = CtcBeamSearch(blank_id=5, num_labels=6, beam_size=16)


def _automaton(*phrases: str, weight: float = 1.0) -> Automaton:
    ids = [[np.asarray([PIECES.index(c) for c in phrase], dtype=np.int32)] for phrase in phrases]
    return build(spellings(ids), np.full(len(phrases), weight), SHAPE)


def _log_probs(seed: int, num_frames: int = 14, sharpness: float = 1.5) -> np.ndarray:  # type: ignore[type-arg]
    logits = np.random.default_rng(seed).normal(size=(num_frames, len(PIECES))) * sharpness
    return SEARCH.checked(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))


def search_with_boost(
    search: CtcBeamSearch, log_probs: np.ndarray, shared: Automaton, own: Automaton, *others: Fusion
) -> list[Labelling]:
    """In compiled code, unless another fusion changes candidates too."""
    return search_in_lockstep(search, [log_probs], [KeywordBoost(automata=[(shared, own)]), *others])[0].labellings


class EveryFrame:
    """A fusion that changes candidates by nothing, so that the search goes frame by frame."""

    name, num_states, max_bonus, work = "every_frame", 0, 0.0, Work()

    def begin(self, num_utterances: int) -> list[Any]:
        return [self] * num_utterances

    def compiled(self, column: int) -> None:
        return None

    def expanded(self, beam: Any, candidates: Any, states: Any) -> None:
        pass

    def wake(self) -> Wake:
        return Wake()

    def pruned(self, view: Any) -> tuple[()]:
        return ()

    def ended(self, view: Any) -> tuple[()]:
        return ()

    def scores(self, row: int) -> tuple[Score, ...]:
        return ()

    def close(self) -> None:
        pass


def _key(found: list[Labelling]) -> list[tuple[list[int], float, float]]:
    return [(one.token_ids.tolist(), one.log_prob, one.fusion) for one in found]


def _text(one: Labelling) -> str:
    return " ".join("".join(PIECES[token] for token in one.token_ids).split())


def test_an_empty_list_is_no_fusion_to_the_bit() -> None:
    empty = _automaton()
    for seed in range(20):
        plain = SEARCH.search(_log_probs(seed))
        assert _key(search_with_boost(SEARCH, _log_probs(seed), empty, empty)) == _key(plain)
        assert _key(search_with_boost(SEARCH, _log_probs(seed), empty, empty, EveryFrame())) == _key(plain)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.floats(-1.0, 3.0, width=32))
def test_compiled_and_frame_by_frame_searches_agree(seed: int, weight: float) -> None:
    shared, own = _automaton("ab", "cd ab", "b", weight=weight), _automaton("abc", "d", weight=1.0)
    boost = KeywordBoost(automata=[(shared, own)])
    (compiled,) = search_in_lockstep(SEARCH, [_log_probs(seed)], [boost])
    (fused,) = search_in_lockstep(SEARCH, [_log_probs(seed)], [boost, EveryFrame()])
    assert [_text(one) for one in compiled.labellings] == [_text(one) for one in fused.labellings]
    for found in (compiled, fused):
        assert [s[0].kind for s in found.scores] == ["bonus"] * len(found.labellings)
        bonuses = [found.scores[n][0].log_prob for n in range(len(found.labellings))]
        assert np.allclose(bonuses, [one.fusion for one in found.labellings])


def test_a_bonus_belongs_to_whole_words_that_stand_in_the_text() -> None:
    boosted = _automaton("ab", "cd ab", weight=2.0)
    for seed in range(30):
        for one in search_with_boost(SEARCH, _log_probs(seed), boosted, _automaton()):
            words, expected, at = _text(one).split(), 0.0, 0
            while at < len(words):
                size = 2 if words[at : at + 2] == ["cd", "ab"] else 1
                expected += 8.0 if size == 2 else 4.0 * (words[at] == "ab")
                at += size
            assert one.fusion == expected


def test_a_boosted_phrase_rises() -> None:
    ranks = []
    for seed in range(30):
        texts = [
            [_text(o) for o in search_with_boost(SEARCH, _log_probs(seed), a, _automaton())]
            for a in (_automaton(), _automaton("ab", weight=3.0))
        ]
        ranks.append([sum("ab" in text.split() for text in found[:4]) for found in texts])
    before, after = np.sum(ranks, axis=0)
    assert after > before


def test_a_phrase_that_occurs_nowhere_changes_nothing_where_nothing_is_pruned() -> None:
    wide = CtcBeamSearch(
        blank_id=5, num_labels=6, beam_size=4000, beam_threshold=1e9, min_label_log_prob=-1e9, blank_skip_prob=None
    )
    fewer, more = _automaton("ab", weight=2.0), _automaton("ab", "dddddddd", weight=2.0)
    for seed in range(4):
        log_probs = _log_probs(seed, 5)
        found = [_key(search_with_boost(wide, log_probs, automaton, _automaton())) for automaton in (fewer, more)]
        assert found[0] == found[1]


def test_the_log_prob_of_a_labelling_holds_no_bonus() -> None:
    plain = {tuple(o.token_ids): o.log_prob for o in SEARCH.search(_log_probs(1))}
    for one in search_with_boost(SEARCH, _log_probs(1), _automaton("ab", weight=3.0), _automaton()):
        if tuple(one.token_ids) in plain:
            assert one.log_prob == pytest.approx(plain[tuple(one.token_ids)], abs=0.5)  # other paths survive


def test_the_stage_writes_boosted_lists_and_counts_what_it_cannot_write(tmp_path) -> None:  # type: ignore[no-untyped-def]
    import soundfile

    from ctxasr_ray.corpora.synthetic import SyntheticConfig
    from ctxasr_ray.experiment import asset

    corpus, rows, said = SyntheticConfig(), [], []
    for index in (0, 1, 2):
        spoken = corpus.spoken("dev", index)
        path = str(tmp_path / f"{index}.wav")
        soundfile.write(path, spoken.samples, 16_000)
        rows.append(
            {"utterance_id": spoken.utterance_id, "audio_uri": path, "start_s": 0.0, "keywords": spoken.keywords}
        )
        said.append(spoken.keywords)
    utterances = pa.table(
        {
            "utterance_id": [row["utterance_id"] for row in rows],
            "audio_uri": [row["audio_uri"] for row in rows],
            "start_s": pa.array([0.0] * 3),
            "duration_s": pa.nulls(3, pa.float64()),
            "channel": pa.nulls(3, pa.int32()),
            "keywords": pa.array([list(row["keywords"]) for row in rows], pa.list_(pa.string())),
        }
    )
    (tmp_path / "names.txt").write_text("zimbrato\n\u6771\u4eac\nkowalski\n")
    catalogue = str(tmp_path / "names.txt")
    first_pass = CtcConfig(model=asset("ctc"), beam_size=20, num_hypotheses=10)
    lists = {}
    for name, boost in (("none", 0.0), ("boosted", 2.0)):
        config = CtcKeywordsConfig(first_pass=first_pass, catalogue=catalogue, boost=boost)
        given_lists = ContextConfig(catalogue=catalogue, true_keywords=True, num_distractors=3).build()
        context = given_lists(utterances, costs=Costs())
        costs = Costs()
        lists[name] = read_nbest(schema.conform(config.build()(utterances, context, costs=costs), "hypotheses"))
        assert list(costs.named["unwritable_phrases"]) == ["\u6771\u4eac"]
    plain = read_nbest(first_pass.build()(utterances, costs=Costs()))
    for one, other in zip(lists["none"], plain, strict=True):
        assert [h.text for h in one.hypotheses] == [h.text for h in other.hypotheses]
        assert [h.scores[0] for h in one.hypotheses] == [h.scores[0] for h in other.hypotheses]
    for row in lists["boosted"]:
        totals = [sum(score.log_prob for score in h.scores) for h in row.hypotheses]
        assert totals == sorted(totals, reverse=True)
        assert {score.kind for h in row.hypotheses for score in h.scores} == {"log_prob", "bonus"}
    hits = {
        name: sum(word in row.hypotheses[0].text for row, words in zip(rows_, said, strict=True) for word in words)
        for name, rows_ in lists.items()
    }
    assert hits["boosted"] >= hits["none"]


def test_a_language_model_in_the_search_goes_with_the_list(tmp_path: Path) -> None:
    import soundfile

    from ctxasr_ray.corpora.synthetic import SyntheticConfig
    from ctxasr_ray.experiment import asset
    from ctxasr_ray.first_pass.ctc_fused import CtcFusedConfig
    from ctxasr_ray.scorers.causal_lm import CausalLmConfig

    spoken = [SyntheticConfig().spoken("dev", index) for index in (0, 1)]
    for one in spoken:
        soundfile.write(tmp_path / f"{one.utterance_id}.wav", one.samples, 16_000)
    ids = [one.utterance_id for one in spoken]
    utterances = pa.table(
        {
            "utterance_id": ids,
            "audio_uri": [str(tmp_path / f"{one}.wav") for one in ids],
            "start_s": pa.array([0.0] * 2),
            "duration_s": pa.nulls(2, pa.float64()),
            "channel": pa.nulls(2, pa.int32()),
            "keywords": pa.array([list(one.keywords) for one in spoken], pa.list_(pa.string())),
        }
    )
    (tmp_path / "names.txt").write_text("zimbrato\nkowalski\n")
    catalogue = str(tmp_path / "names.txt")
    given = ContextConfig(catalogue=catalogue, true_keywords=True, num_distractors=2).build()
    context = given(utterances, costs=Costs())
    lm = CausalLmConfig(model=asset("lm"))
    fused = CtcFusedConfig(
        first_pass=CtcConfig(model=asset("ctc"), beam_size=16, num_hypotheses=16), lm=lm, lm_weight=0.5
    )
    lists = {}
    for boost in (0.0, 2.0):
        config = CtcKeywordsConfig(first_pass=fused, catalogue=catalogue, boost=boost)
        table = schema.conform(config.build()(utterances, context, costs=Costs()), "hypotheses")
        lists[boost] = read_nbest(table)
    for with_none, alone in zip(lists[0.0], read_nbest(fused.build()(utterances, costs=Costs())), strict=True):
        assert [h.text for h in with_none.hypotheses] == [h.text for h in alone.hypotheses]
        assert [h.scores[:3] for h in with_none.hypotheses] == [h.scores for h in alone.hypotheses]
    weights = {"ctc": 1.0, "causal_lm": 0.5, "causal_lm/eos": 0.5, "keyword_boost": 1.0}
    for row in lists[2.0]:
        totals = [sum(weights[s.source] * s.log_prob for s in h.scores) for h in row.hypotheses]
        assert totals == pytest.approx(sorted(totals, reverse=True))
        assert {s.source for s in row.hypotheses[0].scores} == set(weights)
    assert any(s.log_prob > 0 for row in lists[2.0] for h in row.hypotheses for s in h.scores if s.kind == "bonus")
    with pytest.raises(ValueError, match="no pool of its own"):
        CtcKeywordsConfig(first_pass=replace(fused, lm_pool=Resources()))
    with pytest.raises(ValueError, match=r"first_pass\.lm\.source are both 'causal_lm'"):
        CtcKeywordsConfig(first_pass=fused, source="causal_lm")
