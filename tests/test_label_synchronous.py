"""Beam search over an attention decoder: what generate finds, what enumeration finds, whatever else is in the batch."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_seq2seq
import torch
from transformers import GenerationMixin

from ctxasr_ray.models.checkpoint import resolve
from ctxasr_ray.models.seq2seq import Seq2SeqModel
from ctxasr_ray.search.ctc_forced import ctc_forward_score
from ctxasr_ray.search.label_beam import LabelHypothesis
from ctxasr_ray.search.label_synchronous import LabelSynchronousSearch

torch.set_num_threads(1)
BEGIN = [tiny_seq2seq.END, 11, 12]  # neither the end nor h nor i is written first


@pytest.fixture(scope="module", params=tiny_seq2seq.FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Seq2SeqModel:
    folder = tmp_path_factory.mktemp(request.param)
    made = tiny_seq2seq.make(
        request.param, folder, ends_like=tiny_seq2seq.OFTEN[request.param], begin_suppress_tokens=BEGIN
    )
    return Seq2SeqModel(resolve(str(made)))


def generated(
    model: Seq2SeqModel, waveform: np.ndarray, beams: int, max_tokens: int, **options: Any
) -> list[tuple[list[int], float]]:
    """What transformers' own beam search finds behind the model's own encoder: (tokens without end, score)."""
    features = model._features(waveform)
    with torch.inference_mode():
        out = GenerationMixin.generate(
            model._model,
            features,
            decoder_input_ids=torch.tensor([model.tokens.prompt(None).tolist()]),
            num_beams=beams,
            num_return_sequences=beams,
            max_new_tokens=max_tokens,
            max_length=None,
            early_stopping="never",
            suppress_tokens=np.flatnonzero(model.tokens.suppressed).tolist(),
            begin_suppress_tokens=BEGIN,
            return_dict_in_generate=True,
            output_scores=True,
            do_sample=False,
            **{"length_penalty": 0.0, **options},
        )
    lists = []
    for row, score in zip(out.sequences.tolist(), out.sequences_scores.tolist(), strict=True):
        tokens = row[1:]
        tokens = tokens[: tokens.index(tiny_seq2seq.END)] if tiny_seq2seq.END in tokens else tokens
        lists.append(([token for token in tokens if token != 0], score))
    return lists


def searched(model: Seq2SeqModel, waveform: np.ndarray, beams: int, max_tokens: int, **options: Any) -> Any:
    search = LabelSynchronousSearch(model, beam_size=beams, max_tokens=max_tokens, **options)
    return search.search(model.encode([waveform])[0], model.tokens.prompt(None))[0]


@pytest.mark.parametrize("length_penalty", [0.0, 0.7])
@pytest.mark.parametrize("beams", [2, 5])
def test_lists_and_scores_are_those_of_generate(model: Seq2SeqModel, beams: int, length_penalty: float) -> None:
    ended = 0
    for waveform in tiny_seq2seq.noises([0.8, 1.3, 2.0]):
        expected = generated(model, waveform, beams, 24, length_penalty=length_penalty)
        found = searched(model, waveform, beams, 24, length_penalty=length_penalty)
        assert [h.token_ids.tolist() for h in found] == [tokens for tokens, _ in expected]
        assert [h.score for h in found] == pytest.approx([score for _, score in expected], abs=5e-5)
        ended += sum(h.ended for h in found)
    assert ended, "a model that never ends proves nothing about ends"


def test_whispers_own_generate_is_no_reference(tmp_path: Path) -> None:
    made = tiny_seq2seq.make("whisper", tmp_path, ends_like="o")
    model = Seq2SeqModel(resolve(str(made)))
    waveform = tiny_seq2seq.noises([1.0])[0]
    own = model._model.generate(
        model._features(waveform), num_beams=4, num_return_sequences=4, max_new_tokens=12, max_length=None
    )
    assert len({tuple(row) for row in own.tolist()}) == 1
    assert len({tuple(h.token_ids.tolist()) for h in searched(model, waveform, 4, 12)}) == 4


@pytest.mark.parametrize("family", tiny_seq2seq.FAMILIES)
def test_a_wide_beam_is_exhaustive_enumeration(family: str, tmp_path: Path) -> None:
    made = tiny_seq2seq.make(family, tmp_path, letters="ab", ends_like="a")
    model = Seq2SeqModel(resolve(str(made)))
    states = model.encode(tiny_seq2seq.noises([1.0]))[0]
    prompt = model.tokens.prompt(None)
    usable = np.flatnonzero(~model.tokens.suppressed)
    letters = [int(i) for i in usable if i != tiny_seq2seq.END]
    texts = [np.array(t, np.int32) for n in range(4) for t in itertools.product(letters, repeat=n)]
    forced = model.forced_scores(states, prompt, texts)
    unended = np.array([len(t) == 3 for t in texts])
    scores = forced.log_probs + np.where(unended, 0.0, forced.eos_log_probs)
    order = np.argsort(-scores)
    search = LabelSynchronousSearch(model, beam_size=2 * len(texts), max_tokens=3)
    found = search.search(states, prompt)[0]
    assert [h.token_ids.tolist() for h in found] == [texts[i].tolist() for i in order]
    assert [h.score for h in found] == pytest.approx(scores[order].tolist(), abs=1e-4)


def test_tokens_carry_the_models_own_log_probs_and_entropies(model: Seq2SeqModel) -> None:
    states = model.encode(tiny_seq2seq.noises([1.1]))[0]
    prompt = model.tokens.prompt(None)
    found = LabelSynchronousSearch(model, beam_size=4, max_tokens=24).search(states, prompt)[0]
    forced = model.forced_scores(states, prompt, [h.token_ids for h in found])
    for h, total, eos in zip(found, forced.log_probs, forced.eos_log_probs, strict=True):
        logits = whole(model, states, [*prompt.tolist(), *h.token_ids.tolist()])[len(prompt) - 1 :]
        log_probs = torch.log_softmax(logits.double(), -1).numpy()
        steps = np.arange(len(h.token_ids))
        np.testing.assert_allclose(h.token_log_probs, log_probs[steps, h.token_ids], atol=1e-4)
        np.testing.assert_allclose(h.token_entropies, -(np.exp(log_probs) * log_probs).sum(1)[:-1], atol=1e-4)
        assert h.eos_log_prob == pytest.approx(log_probs[-1, tiny_seq2seq.END], abs=1e-4)
        assert h.token_log_probs.sum() == pytest.approx(total, abs=1e-4)
        assert h.eos_log_prob == pytest.approx(eos, abs=1e-4)


def whole(model: Seq2SeqModel, states: torch.Tensor, path: list[int]) -> torch.Tensor:
    """(N, V) logits of one unbranched sequence through the unmodified decoder."""
    with torch.inference_mode():
        hidden = model._decoder(
            input_ids=torch.tensor([path]), encoder_hidden_states=states, use_cache=False
        ).last_hidden_state
        logits: torch.Tensor = model._head(hidden)[0]
    return logits


@pytest.mark.parametrize("family", ["whisper", "moonshine"])
def test_utterances_searched_together_are_as_alone(family: str, tmp_path: Path) -> None:
    made = tiny_seq2seq.make(family, tmp_path, ends_like=tiny_seq2seq.OFTEN[family])
    model = Seq2SeqModel(resolve(str(made)))
    lengths_s = [0.3, 0.7, 1.1, 1.5, 2.0] if family == "whisper" else [1.0] * 5  # a window pads to one length
    waveforms = tiny_seq2seq.noises(lengths_s)
    states = model.encode(waveforms)
    search = LabelSynchronousSearch(model, beam_size=6, max_tokens=30)
    prompt = model.tokens.prompt(None)
    alone, steps = [], set()
    for one in states:
        before = search.steps
        alone.append(search.search(one, prompt)[0])
        steps.add(search.steps - before)
    together = search.search(torch.cat(states), prompt)
    assert len(steps) > 1, "utterances must finish at different steps to show that rows are dropped rightly"
    for own, other in zip(alone, together, strict=True):
        same(own, other)


def same(one: list[LabelHypothesis], other: list[LabelHypothesis]) -> None:
    assert [h.token_ids.tolist() for h in one] == [h.token_ids.tolist() for h in other]
    assert [h.score for h in one] == pytest.approx([h.score for h in other], abs=1e-4)


def test_a_long_search_gathers_its_cache_and_loses_nothing(tmp_path: Path) -> None:
    made = tiny_seq2seq.make("whisper", tmp_path, never_ends=True)
    model = Seq2SeqModel(resolve(str(made)))
    waveform = tiny_seq2seq.noises([1.0])[0]
    found = searched(model, waveform, 8, 38)
    assert max(len(h.token_ids) for h in found) * 8 > 200, "the cache was never large enough to be gathered"
    states = model.encode([waveform])[0]
    forced = model.forced_scores(states, model.tokens.prompt(None), [h.token_ids for h in found])
    np.testing.assert_allclose([h.token_log_probs.sum() for h in found], forced.log_probs, atol=1e-3)


def test_what_reaches_the_limit_stays_and_says_so(tmp_path: Path) -> None:
    made = tiny_seq2seq.make("whisper", tmp_path, never_ends=True)
    model = Seq2SeqModel(resolve(str(made)))
    waveform = tiny_seq2seq.noises([1.0])[0]
    found = searched(model, waveform, 4, 5)
    cut = [h for h in found if not h.ended]
    assert cut
    for h in cut:
        assert len(h.token_ids) == 5
        assert h.score == pytest.approx(h.token_log_probs.sum())
        assert np.isfinite(h.eos_log_prob)
    assert max(len(h.token_ids) for h in searched(model, waveform, 2, 500)) == 39, "40 positions, one is the prompt's"


@pytest.mark.parametrize("ctc_weight", [0.3, 0.8])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_wide_joint_beam_is_exhaustive_enumeration(seed: int, ctc_weight: float, tmp_path: Path) -> None:
    made = tiny_seq2seq.make("whisper", tmp_path, letters="ab", ends_like="a")
    model = Seq2SeqModel(resolve(str(tiny_seq2seq.add_ctc_head(made, seed))))
    waveform = tiny_seq2seq.noises([0.08])[0]  # 4 frames: some texts are too long for the CTC head, "aaa" is
    states = model.encode([waveform])[0]
    frames = model.ctc_log_probs(states, model.num_frames(states, len(waveform)))
    assert frames.shape[0] == 4
    prompt = model.tokens.prompt(None)
    letters = [int(i) for i in np.flatnonzero(~model.tokens.suppressed) if i != tiny_seq2seq.END]
    texts = [np.array(t, np.int32) for n in range(4) for t in itertools.product(letters, repeat=n)]
    forced = model.forced_scores(states, prompt, texts)
    prefixes = ctc_of_all_that_begin_with(frames, model.ctc_blank_id, texts)
    scores = {}
    for i, text in enumerate(texts):
        whole = ctc_forward_score(frames, text, model.ctc_blank_id).log_prob
        ctc = prefixes[i] if len(text) == 3 else whole
        if ctc is not None:
            attended = forced.log_probs[i] + (0.0 if len(text) == 3 else forced.eos_log_probs[i])
            scores[tuple(text.tolist())] = (1 - ctc_weight) * attended + ctc_weight * ctc
    assert len(scores) < len(texts)
    search = LabelSynchronousSearch(model, beam_size=2 * len(texts), max_tokens=3, ctc_weight=ctc_weight)
    found = search.search(states, prompt, [frames])[0]
    assert [tuple(h.token_ids.tolist()) for h in found] == sorted(scores, key=lambda text: -scores[text])
    assert [h.score for h in found] == pytest.approx(sorted(scores.values(), reverse=True), abs=1e-4)
    for h in found:
        i = next(i for i, text in enumerate(texts) if text.tolist() == h.token_ids.tolist())
        assert h.token_log_probs.sum() == pytest.approx(forced.log_probs[i], abs=1e-4), "the attention's own, apart"
        assert h.eos_log_prob == pytest.approx(forced.eos_log_probs[i], abs=1e-4)
    alone = LabelSynchronousSearch(model, beam_size=2 * len(texts), max_tokens=3).search(states, prompt)[0]
    assert alone[0].token_ids.tolist() != found[0].token_ids.tolist() or seed != 1


def ctc_of_all_that_begin_with(frames: np.ndarray, blank_id: int, texts: list[np.ndarray]) -> list[float | None]:
    """ln P of all texts with each beginning, by writing out every path over all labels."""
    probs = np.exp(frames.astype(np.float64))
    usable = sorted({blank_id, *(int(t) for text in texts for t in text)})
    rest = [v for v in range(probs.shape[1]) if v not in usable]
    probs = np.concatenate([probs[:, usable], probs[:, rest].sum(1, keepdims=True)], axis=1)  # the rest as one label
    totals = [0.0] * len(texts)
    for path in itertools.product(range(len(usable) + 1), repeat=len(probs)):
        names = [usable[v] if v < len(usable) else -2 for v in path]
        text = [a for a, b in zip(names, [None, *names], strict=False) if a not in (b, blank_id)]
        p = float(np.prod(probs[range(len(probs)), path]))
        for i, beginning in enumerate(texts):
            if text[: len(beginning)] == beginning.tolist():
                totals[i] += p
    return [float(np.log(total)) if total else None for total in totals]


def test_joint_searches_together_are_as_alone(tmp_path: Path) -> None:
    made = tiny_seq2seq.add_ctc_head(tiny_seq2seq.make("whisper", tmp_path, ends_like="o"), spread=0.3)
    model = Seq2SeqModel(resolve(str(made)))
    waveforms = tiny_seq2seq.noises([0.3, 0.7, 1.1, 1.9])
    states = model.encode(waveforms)
    frames = [
        model.ctc_log_probs(own, model.num_frames(own, len(waveform)))
        for own, waveform in zip(states, waveforms, strict=True)
    ]
    search = LabelSynchronousSearch(model, beam_size=5, max_tokens=20, ctc_weight=0.4)
    prompt = model.tokens.prompt(None)
    together = search.search(torch.cat(states), prompt, frames)
    for own, one, state in zip(together, frames, states, strict=True):
        same(own, search.search(state, prompt, [one])[0])
        assert [h.score for h in own] == sorted([h.score for h in own], reverse=True)


def test_a_model_without_a_ctc_head_has_no_ctc_score(model: Seq2SeqModel) -> None:
    with pytest.raises(ValueError, match=r"ctc_weight is 0\.3, but model .* has no CTC head"):
        LabelSynchronousSearch(model, beam_size=4, max_tokens=8, ctc_weight=0.3)
