"""An LM inside the attention beam: what enumeration finds, whatever is cached and whatever goes side by side."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_fusion
import tiny_seq2seq
import torch
from test_label_synchronous import whole

from ctxasr_ray.models.checkpoint import resolve
from ctxasr_ray.models.seq2seq import Seq2SeqModel
from ctxasr_ray.models.shared_vocabulary import UNSHARED, shared_tokens
from ctxasr_ray.search.gated_fusion import GatedRows, ShallowRows
from ctxasr_ray.search.label_beam import LabelHypothesis
from ctxasr_ray.search.label_fusion import RowFusion
from ctxasr_ray.search.label_synchronous import LabelSynchronousSearch
from ctxasr_ray.search.token_gate import TokenGate

torch.set_num_threads(1)
END = tiny_seq2seq.END


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Seq2SeqModel, tiny_fusion.Judge]:
    """Three letters and the space: all texts of three tokens can be enumerated."""
    folder = tmp_path_factory.mktemp("small")
    made = tiny_seq2seq.make("whisper", folder / "asr", letters="abc", ends_like="a", widen=0.6)
    model = Seq2SeqModel(resolve(str(made)))
    lm = tiny_fusion.make_lm(folder / "lm", tiny_seq2seq.tokenizer("abc"))
    return model, tiny_fusion.Judge(lm, model)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Seq2SeqModel, tiny_fusion.Judge]:
    folder = tmp_path_factory.mktemp("large")
    made = tiny_seq2seq.make("whisper", folder / "asr", ends_like="o")
    model = Seq2SeqModel(resolve(str(made)))
    return model, tiny_fusion.Judge(tiny_fusion.make_lm(folder / "lm", tiny_seq2seq.tokenizer()), model)


def texts_of(model: Seq2SeqModel, longest: int) -> list[np.ndarray]:
    letters = [int(i) for i in np.flatnonzero(~model.tokens.suppressed) if i != END]
    return [np.array(t, np.int32) for n in range(longest + 1) for t in itertools.product(letters, repeat=n)]


def own_log_probs(model: Seq2SeqModel, states: torch.Tensor, text: np.ndarray) -> np.ndarray:
    prompt = model.tokens.prompt(None).tolist()
    found: np.ndarray = whole(model, states, [*prompt, *text.tolist()])[len(prompt) - 1 :].double().numpy()
    log_probs: np.ndarray = found - np.logaddexp.reduce(found, axis=-1, keepdims=True)
    return log_probs


def by_hand(model: Seq2SeqModel, states: torch.Tensor, text: np.ndarray, longest: int, step: Any) -> float:
    """Sum over a text's tokens and, where it is shorter than the longest, its end of what `step` makes of a token."""
    path = [*text.tolist(), *([END] if len(text) < longest else [])]
    own = own_log_probs(model, states, text)
    return float(sum(step(own[n], n, token) for n, token in enumerate(path)))


def found_by(
    model: Seq2SeqModel, states: torch.Tensor, fusion: RowFusion | None, beams: int, longest: int, **options: Any
) -> list[LabelHypothesis]:
    search = LabelSynchronousSearch(model, beam_size=beams, max_tokens=longest, **options)
    return search.search(states, model.tokens.prompt(None), fusion=fusion)[0]


@pytest.mark.parametrize("bonus", [0.0, 1.5])
def test_shallow_fusion_with_a_wide_beam_is_exhaustive_enumeration(small: Any, bonus: float) -> None:
    model, judge = small
    states = model.encode(tiny_seq2seq.noises([1.0]))[0]
    texts = texts_of(model, 3)
    expected = []
    for text in texts:
        lm = judge.following(text)

        def step(own: np.ndarray, n: int, token: int, lm: np.ndarray = lm) -> float:
            return float(own[token] + 0.6 * lm[n, token] + bonus * (token != END))

        expected.append(by_hand(model, states, text, 3, step))
    rows = judge.rows(1)
    fusion = ShallowRows(lm=rows, eos_id=END, lm_weight=0.6, length_bonus=bonus)
    found = found_by(model, states, fusion, 2 * len(texts), 3)
    order = np.argsort(-np.array(expected))
    assert [h.token_ids.tolist() for h in found] == [texts[i].tolist() for i in order]
    assert [h.score for h in found] == pytest.approx(np.array(expected)[order].tolist(), abs=1e-4)
    plain = [h.token_ids.tolist() for h in found_by(model, states, None, 2 * len(texts), 3)]
    assert plain != [h.token_ids.tolist() for h in found], "an LM that changes nothing proves nothing"


@pytest.mark.parametrize("leader", ["recogniser", "lm"])
@pytest.mark.parametrize("gate", [TokenGate(), TokenGate(entropy_scale="log_vocab"), TokenGate(uncertainty="margin")])
def test_gated_fusion_with_a_wide_beam_is_exhaustive_enumeration(small: Any, gate: TokenGate, leader: str) -> None:
    model, judge = small
    states = model.encode(tiny_seq2seq.noises([1.0]))[0]
    texts = texts_of(model, 3)
    shared = judge.tokens >= 0
    expected = []
    for text in texts:
        lm = judge.following(text)

        def step(own: np.ndarray, n: int, token: int, lm: np.ndarray = lm) -> float:
            p_asr = np.exp(own / 1.3) / np.exp(own / 1.3).sum()
            p_lm = np.where(shared, np.exp(lm[n] / 0.8), 0.0)
            p_lm /= p_lm.sum()
            first, second = (p_asr, p_lm) if leader == "recogniser" else (p_lm, p_asr)
            u = -(first[first > 0] * np.log(first[first > 0])).sum()
            if gate.entropy_scale == "log_vocab":
                u /= np.log(len(first))
            if gate.uncertainty == "margin":
                u = 1 - (np.sort(first)[-1] - np.sort(first)[-2])
            w = 1 / (1 + np.exp(-u)) - 0.5
            p = (first + w * second) / (1 + w)
            assert p.sum() == pytest.approx(1.0)
            return float(np.log(p[token]))

        expected.append(by_hand(model, states, text, 3, step))
    fusion = GatedRows(lm=judge.rows(1), gate=gate, leader=leader, temperature=1.3, lm_temperature=0.8)  # type: ignore[arg-type]
    found = found_by(model, states, fusion, 2 * len(texts), 3)
    order = np.argsort(-np.array(expected))
    assert [h.score for h in found] == pytest.approx(np.array(expected)[order].tolist(), abs=1e-4)
    assert [h.token_ids.tolist() for h in found[:10]] == [texts[i].tolist() for i in order[:10]]


def fusions(judge: tiny_fusion.Judge, num: int) -> list[Any]:
    gate = TokenGate(min_weight=0.4)
    return [
        lambda n=num: ShallowRows(lm=judge.rows(n), eos_id=END, lm_weight=0.4),
        lambda n=num: GatedRows(lm=judge.rows(n), gate=TokenGate()),
        lambda n=num: GatedRows(lm=judge.rows(n), gate=gate, costs=judge.costs),
        lambda n=num: GatedRows(lm=judge.rows(n), gate=gate, opened_by="best_row", costs=judge.costs),
    ]


@pytest.mark.parametrize("kind", [0, 1, 2, 3])
def test_utterances_searched_together_are_as_alone(large: Any, kind: int) -> None:
    model, judge = large
    states = model.encode(tiny_seq2seq.noises([0.3, 0.7, 1.1, 1.5, 2.0]))
    search, prompt = LabelSynchronousSearch(model, beam_size=5, max_tokens=24), model.tokens.prompt(None)
    together = search.search(torch.cat(states), prompt, fusion=fusions(judge, 5)[kind]())
    for one, expected in zip(states, together, strict=True):
        found = search.search(one, prompt, fusion=fusions(judge, 1)[kind]())[0]
        assert [h.token_ids.tolist() for h in found] == [h.token_ids.tolist() for h in expected]
        assert [h.score for h in found] == pytest.approx([h.score for h in expected], abs=1e-4)


@pytest.mark.parametrize("kind", [0, 1, 2, 3])
def test_what_is_cached_and_caught_up_with_equals_recomputation(large: Any, kind: int) -> None:
    model, judge = large
    states = torch.cat(model.encode(tiny_seq2seq.noises([0.7, 1.5])))
    fusion = fusions(judge, 2)[kind]()
    search = LabelSynchronousSearch(model, beam_size=5, max_tokens=24)
    before = judge.costs.counters.get("lm_rows_skipped", 0)
    found = search.search(states, model.tokens.prompt(None), fusion=fusion)
    skipped = judge.costs.counters.get("lm_rows_skipped", 0) - before
    assert (skipped > 0) == (kind >= 2)
    scores = fusion.lm.scores(found)
    for own, of_own in zip(found, scores, strict=True):
        for h, (text, end) in zip(own, of_own, strict=True):
            following = judge.following(h.token_ids)
            path = judge.tokens[h.token_ids]
            assert text.log_prob == pytest.approx(following[np.arange(len(path)), path].sum(), abs=1e-4)
            assert end.log_prob == pytest.approx(following[-1, END], abs=1e-4)


def test_a_beam_whose_best_row_is_sure_asks_about_none_and_leaves_all_of_them(large: Any) -> None:
    _, judge = large
    flat, sure = torch.zeros(len(judge.tokens)), torch.zeros(len(judge.tokens))
    sure[4] = 50.0
    for rows, asked in (((sure, flat), False), ((flat, sure), True)):
        lm = judge.rows(1)
        lm.advance([([5, 6], [0, 0])])
        fusion = GatedRows(lm=lm, gate=TokenGate(min_weight=0.1), opened_by="best_row")
        own = torch.stack(rows).log_softmax(-1)[None]
        ranked = fusion.ranked(own).log_probs
        assert torch.equal(ranked, own) == (not asked)
        assert torch.equal(ranked[0, 1], own[0, 1])  # a row that is sure hears nobody


@pytest.mark.parametrize("ctc_weight", [0.0, 0.4])
def test_a_fusion_without_weight_is_no_fusion_to_the_bit(tmp_path: Path, ctc_weight: float) -> None:
    made = tiny_seq2seq.add_ctc_head(tiny_seq2seq.make("whisper", tmp_path / "asr", ends_like="o"))
    model = Seq2SeqModel(resolve(str(made)))
    judge = tiny_fusion.Judge(tiny_fusion.make_lm(tmp_path / "lm", tiny_seq2seq.tokenizer()), model)
    states = model.encode(tiny_seq2seq.noises([0.7, 1.5]))
    ctc = [model.ctc_log_probs(one, 60) for one in states]
    search = LabelSynchronousSearch(model, beam_size=5, max_tokens=20, ctc_weight=ctc_weight)

    def lists(fusion: RowFusion | None) -> list[Any]:
        found = search.search(torch.cat(states), model.tokens.prompt(None), ctc, fusion)
        return [(h.token_ids.tolist(), h.score, h.token_log_probs.tolist(), h.ended) for own in found for h in own]

    plain = lists(None)
    assert lists(ShallowRows(lm=judge.rows(2), eos_id=END, lm_weight=0.0)) == plain
    calls = judge.costs.counters["llm_calls"]
    assert lists(GatedRows(lm=judge.rows(2), gate=TokenGate(min_weight=0.5))) == plain
    assert judge.costs.counters["llm_calls"] == calls, "an LM without weight is not asked"
    assert lists(ShallowRows(lm=judge.rows(2), eos_id=END, lm_weight=0.5)) != plain


def test_an_end_at_once_has_an_lm_score(small: Any) -> None:
    model, judge = small
    states = model.encode(tiny_seq2seq.noises([1.0]))[0]
    fusion = ShallowRows(lm=judge.rows(1), eos_id=END, lm_weight=0.3)
    found = found_by(model, states, fusion, 200, 2)
    empty = next(n for n, h in enumerate(found) if not len(h.token_ids))
    text, end = fusion.lm.scores([found])[0][empty]
    assert text.log_prob == 0.0
    assert end.log_prob == pytest.approx(judge.following([])[-1, END], abs=1e-5)


def test_a_text_beyond_the_context_gives_a_reason_and_no_distribution(large: Any) -> None:
    model, judge = large
    rows = judge.rows(2)
    letters = [int(i) for i in np.flatnonzero(judge.tokens >= 0) if i != END]
    rows.log_probs(np.ones((2, 1), np.bool_))
    for _ in range(judge.lm.max_positions - 1):
        rows.advance([(letters[:1], [0]), (letters[1:2], [0])])
    assert rows.log_probs(np.ones((2, 1), np.bool_))[1].tolist() == [[True], [True]]
    rows.advance([(letters[:1], [0]), (letters[1:2], [0])])
    assert rows.log_probs(np.array([[True], [False]]))[1].tolist() == [[False], [False]]
    assert rows.reasons == {0: "65 tokens with the prefix, but the model takes 64"}
    assert rows.num_rows == [0, 1]
    assert model.tokens.eos_id == END


def test_pieces_are_matched_by_spelling_and_other_tokenizers_are_refused() -> None:
    one, other = tiny_seq2seq.tokenizer("abc"), tiny_seq2seq.tokenizer("cab")
    written = np.zeros(len(one), np.bool_)
    written[[END, 4, 5, 6, 7]] = True

    def match(recogniser: Any, lm: Any, eos: int | None = END) -> np.ndarray:
        return shared_tokens(recogniser, lm, written, recogniser_eos=END, lm_eos=eos, name="other")

    assert match(one, other)[[END, 4, 5, 6, 7]].tolist() == [END, 5, 6, 4, 7]
    assert (match(one, other)[~written] == UNSHARED).all()
    with pytest.raises(ValueError, match=r"'other' does not write with the recogniser's pieces.*lacks: 'd'"):
        match(one, tiny_seq2seq.tokenizer("abcd"))
    with pytest.raises(ValueError, match="lacks: 'c'"):
        match(one, tiny_seq2seq.tokenizer("ab"))
    with pytest.raises(ValueError, match="names no end of sequence"):
        match(one, other, None)
