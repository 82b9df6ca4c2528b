"""Vocabularies with speech, the scorer on them, and the training that makes them."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from test_scorer_causal_lm import bpe, llama
from tiny_causal_lms import one_by_one
from transformers import AutoTokenizer

from ctxasr_ray.models.speech_lm import QUANTISER, SpeechTokens, extend_vocabulary, unit_token
from ctxasr_ray.models.speech_units import load_quantiser
from ctxasr_ray.models.text_tokens import TextTokens
from ctxasr_ray.nbest import Hypothesis, NBest, hypotheses_table
from ctxasr_ray.recipes.tiny_models import CTC, LM, train_speech_lm
from ctxasr_ray.schema import conform
from ctxasr_ray.scorers.causal_lm import CausalLmConfig
from ctxasr_ray.scorers.speech_lm import SpeechLmConfig
from ctxasr_ray.stage import Costs, StageConfig
from ctxasr_ray.training.heard import warp_mel, word_ends
from ctxasr_ray.training.loop import run
from ctxasr_ray.training.objectives import expected_word_errors, mwer
from ctxasr_ray.training.sources import SyntheticSpeech, SyntheticText
from ctxasr_ray.training.speech_text import Mix, SpeechText, SpeechTextTask

torch.set_num_threads(1)

EXACT = 1e-4
UNITS = (3, 0, 6, 3, 5, 1)
TEXTS = ("once upon a time", "once upon a town", "", "a girl", "<unit_3> </speech>")


def saved_speech_lm(directory: Path, num_units: int = 7, **options: Any) -> tuple[str, Any, Any]:
    """(directory, model, tokenizer) of a random LM that knows units."""
    tokenizer = bpe(bos="<s>")
    ends = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
    model = llama(len(tokenizer), **ends, **options)
    extend_vocabulary(model, tokenizer, num_units, seed=1)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return str(directory), model, tokenizer


@pytest.fixture(scope="module")
def speech_lm(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any, Any]:
    return saved_speech_lm(tmp_path_factory.mktemp("speech_lm"))


def lists(*texts: tuple[str, ...]) -> pa.Table:
    return hypotheses_table(
        [NBest(utterance_id=f"u{i}", hypotheses=[Hypothesis(text=text) for text in own]) for i, own in enumerate(texts)]
    )


def units_table(*units: tuple[int, ...] | None) -> pa.Table:
    rows = [
        {
            "utterance_id": f"u{i}",
            "units": list(own or ()),
            "run_lengths": [1] * len(own or ()),
            "frame_rate_hz": 25.0,
            "error_type": "audio" if own is None else None,
            "error": "cut short" if own is None else None,
        }
        for i, own in enumerate(units)
    ]
    return conform(pa.Table.from_pylist(rows), "units")


def sources(config: StageConfig, *tables: pa.Table) -> list[list[dict[str, Any]]]:
    handed = [
        table.select(["utterance_id", *columns]) for table, columns in zip(tables, config.READS.values(), strict=True)
    ]
    out = config.build()(*handed, costs=Costs())
    assert out.equals(conform(out, "scores"))
    return [row["sources"] for row in out.to_pylist()]


def sequence_log_prob(model: Any, ids: list[int]) -> float:
    """Log P of all but the first token, the second opinion."""
    with torch.inference_mode():
        log_probs = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1)
    return float(log_probs[torch.arange(len(ids) - 1), ids[1:]].sum())


# ---- the vocabulary


def test_old_tokens_keep_their_ids_and_their_rows() -> None:
    tokenizer = bpe(bos="<s>")
    num, model = len(tokenizer), llama(len(tokenizer))
    before, text = model.get_input_embeddings().weight.clone(), tokenizer("once upon a time")["input_ids"]
    extend_vocabulary(model, tokenizer, 5, seed=1)
    assert torch.equal(model.get_input_embeddings().weight[:num], before)
    assert len(tokenizer) == model.config.vocab_size == num + 3 + 5
    assert tokenizer("once upon a time")["input_ids"] == text
    with pytest.raises(ValueError, match="has <speech> already"):
        extend_vocabulary(model, tokenizer, 5, seed=1)


def test_a_text_that_spells_a_unit_is_read_as_letters(speech_lm: tuple[str, Any, Any]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(speech_lm[0])
    (ids,) = TextTokens(tokenizer).encode(["<unit_3>"])
    assert tokenizer.convert_tokens_to_ids(unit_token(3)) not in ids.tolist()


def test_units_out_of_range_are_refused_with_the_remedy(speech_lm: tuple[str, Any, Any]) -> None:
    speech = SpeechTokens(speech_lm[2])
    assert speech.num_units == 7
    for wrong in (7, -1):
        with pytest.raises(ValueError, match=f"unit {wrong} is out of range.*0 to 6.*quantiser"):
            speech.spoken(np.asarray([0, wrong], np.int32))
    with pytest.raises(ValueError, match="unit 9 is out of range"):
        sources(SpeechLmConfig(model=speech_lm[0]), lists(("a",)), units_table((9,)))


def test_a_model_of_text_alone_is_refused() -> None:
    with pytest.raises(ValueError, match="knows no speech units"):
        SpeechLmConfig(model=LM).build()


# ---- the scorer


def test_speech_first_is_the_forward_pass_of_each_text_behind_the_units(speech_lm: tuple[str, Any, Any]) -> None:
    directory, model, tokenizer = speech_lm
    rows = sources(SpeechLmConfig(model=directory), lists(TEXTS, ("a girl",)), units_table(UNITS, (2,)))
    tokens, speech = TextTokens(tokenizer), SpeechTokens(tokenizer)
    for units, texts, (scores,) in zip((UNITS, (2,)), (TEXTS, ("a girl",)), rows, strict=True):
        prefix = [*tokens.prefix.tolist(), *speech.heard(np.asarray(units, np.int32)).tolist()]
        for n, ids in enumerate(tokens.encode(texts)):
            expected = one_by_one(model, prefix, ids.tolist(), eos=tokenizer.eos_token_id)
            got = scores["log_probs"][n], scores["eos_log_probs"][n]
            assert got == pytest.approx(expected, abs=EXACT)


def test_speech_first_ranks_as_with_the_probability_of_the_units_added(speech_lm: tuple[str, Any, Any]) -> None:
    directory, model, tokenizer = speech_lm
    ((scores,),) = sources(SpeechLmConfig(model=directory), lists(TEXTS), units_table(UNITS))
    tokens, speech = TextTokens(tokenizer), SpeechTokens(tokenizer)
    before = [*tokens.prefix.tolist(), *speech.heard(np.asarray(UNITS, np.int32)).tolist()]
    whole = [sequence_log_prob(model, [*before, *ids.tolist()]) for ids in tokens.encode(TEXTS)]
    constant = np.asarray(whole) - np.asarray(scores["log_probs"])
    np.testing.assert_allclose(constant, constant[0], atol=EXACT)
    assert np.argsort(whole).tolist() == np.argsort(scores["log_probs"]).tolist()


def test_text_first_is_the_sum_of_its_parts(speech_lm: tuple[str, Any, Any]) -> None:
    directory, model, tokenizer = speech_lm
    config = SpeechLmConfig(model=directory, order="text_first", source="joint")
    ((text, units),) = sources(config, lists(TEXTS), units_table(UNITS))
    assert (text["source"], units["source"]) == ("joint_text", "joint_units")
    tokens = TextTokens(tokenizer)
    spoken = SpeechTokens(tokenizer).spoken(np.asarray(UNITS, np.int32)).tolist()
    for n, ids in enumerate(tokens.encode(TEXTS)):
        whole = sequence_log_prob(model, [*tokens.prefix.tolist(), *ids.tolist(), *spoken])
        assert text["log_probs"][n] + units["log_probs"][n] == pytest.approx(whole, abs=EXACT)
    ((alone,),) = sources(CausalLmConfig(model=directory), lists(TEXTS))
    assert text["log_probs"] == pytest.approx(alone["log_probs"], abs=EXACT)


def test_the_units_decide(speech_lm: tuple[str, Any, Any]) -> None:
    one, other = sources(SpeechLmConfig(model=speech_lm[0]), lists(TEXTS, TEXTS), units_table(UNITS, UNITS[::-1]))
    assert abs(one[0]["log_probs"][0] - other[0]["log_probs"][0]) > 0.01


@pytest.mark.parametrize("order", ["speech_first", "text_first"])
def test_what_cannot_be_scored_is_null_with_its_reason(speech_lm: tuple[str, Any, Any], order: str) -> None:
    long = tuple([1, 2] * 70)  # 140 units, the model takes 128 positions
    config = SpeechLmConfig(model=speech_lm[0], order=order)  # type: ignore[arg-type]  # parametrised
    unheard, unfit, fine = sources(config, lists(("a", "b"), ("a",), ("a",)), units_table(None, long, UNITS))
    assert all(source["log_probs"] == [None, None] for source in unheard)
    assert unheard[0]["reasons"] == ["audio: cut short"] * 2
    assert unfit[-1]["log_probs"] == [None]
    assert "model_limit" in unfit[-1]["reasons"][0]
    assert fine[-1]["reasons"] == [None]


# ---- what it learns from


def test_a_mix_whose_shares_are_not_one_is_refused() -> None:
    with pytest.raises(ValueError, match="1 in all"):
        Mix(text=0.5, speech_then_text=0.9)


def test_words_end_between_their_letters() -> None:
    tokenizer = AutoTokenizer.from_pretrained(CTC)
    blank = tokenizer.pad_token_id
    path = [blank, *tokenizer("ab", add_special_tokens=False)["input_ids"], blank, 0, blank, blank]
    path += [*tokenizer("c", add_special_tokens=False)["input_ids"], blank]
    logits = np.full((len(path), len(tokenizer)), -20.0, np.float32)
    logits[np.arange(len(path)), path] = 20.0
    assert word_ends(logits, "ab c", tokenizer).tolist() == [5, 9]
    assert word_ends(logits[:3], "ab c", tokenizer).tolist() == []
    assert word_ends(logits, "ab c", None).tolist() == []


def test_a_warp_of_nothing_is_the_features_and_a_warp_moves_a_peak() -> None:
    features = np.zeros((3, 80), np.float32)
    features[:, 40] = 1.0
    assert np.array_equal(warp_mel(features, 0.0), features)
    assert warp_mel(features, 0.25).argmax(1).tolist() == [32] * 3


def task(**options: Any) -> SpeechTextTask:
    return SpeechTextTask(
        train=SyntheticSpeech(num_utterances=6),
        dev=SyntheticSpeech(num_utterances=2, split="dev"),
        text=SyntheticText(num_sentences=20),
        initial=LM,
        encoder=CTC,
        num_units=12,
        num_quantiser_utterances=6,
        num_examples=40,
        **options,
    )


def test_examples_stand_in_the_layouts_of_the_scorer(tmp_path: Path) -> None:
    mix = Mix(text=0.2, speech=0.2, speech_then_text=0.2, text_then_speech=0.2, alternating=0.2)
    built = task(mix=mix).build(tmp_path, 0)
    assert isinstance(built, SpeechText)
    tokens = built.tokenizer.convert_ids_to_tokens
    shown = [tokens(built._sequences[n].tolist()) for n in (0, 8, 16, 24, 32)]
    marks = [[t for t in own if t in ("<speech>", "</speech>", "<text>")] for own in shown]
    assert marks[:4] == [[], ["<speech>", "</speech>"], ["<speech>", "</speech>", "<text>"], ["<speech>", "</speech>"]]
    assert len(marks[4]) % 3 == 0
    assert all(own[0] == "<s>" and own[-1] == "</s>" for own in shown)
    text, spoken = (
        built.tokenizer.decode(built._sequences[16].tolist(), skip_special_tokens=True),
        built.names(np.asarray([16])),
    )
    assert text.split() == SyntheticSpeech(num_utterances=6).example(int(spoken[0][-6:])).text.split()
    pieces = [[t for t in own if not t.startswith("<")] for own in (shown[2], shown[4])]
    assert pieces[0] == pieces[1]


def test_what_cannot_be_learnt_from_is_left_out_with_its_reason(tmp_path: Path) -> None:
    built = task(mix=Mix(text=0.0, speech=0.5, speech_then_text=0.0, text_then_speech=0.0, alternating=0.5))
    whole = built.build(tmp_path, 0)
    assert whole.left_out == {}
    (units,) = tmp_path.glob("train_units-*.npz")
    with np.load(units) as file:
        kept = {name: file[name] for name in file.files}
    kept["num_ends"][1:] += np.eye(5, dtype=np.int64)[0] * kept["num_ends"][0]  # the first text has no alignment
    kept["num_ends"][0] = 0
    kept["num_units"][5] += 600
    kept["units"] = np.append(kept["units"], np.arange(600) % 2).astype(np.int16)
    np.savez(units, **kept)
    odd = built.build(tmp_path, 0)
    assert odd.left_out["train-000000, alternating"] == "its text cannot be aligned with its audio"
    assert "the model takes 512" in odd.left_out["train-000005, speech"]
    assert len(odd.lengths) < len(whole.lengths)


def test_the_control_sees_the_same_texts_in_the_same_batches_and_nothing_spoken(tmp_path: Path) -> None:
    mix = Mix(text=0.25, speech_then_text=0.25, text_then_speech=0.25, alternating=0.25)
    hears = task(mix=mix).build(tmp_path, 0)
    deaf = task(mix=mix, speech=False).build(tmp_path, 0)
    assert np.array_equal(hears.lengths, deaf.lengths), "batches are cut by the lengths"
    assert hears.names(np.arange(40)) == deaf.names(np.arange(40))
    for index in range(len(hears.lengths)):
        one, other = (t.batch(np.asarray([index]), np.random.default_rng(0)) for t in (hears, deaf))
        assert one["input_ids"][one["weights"] == 1].tolist() == other["input_ids"].flatten().tolist()
        assert set(other["weights"].flatten().tolist()) == {1.0}
    same = sum(p.numel() for p in hears.model.parameters()) == sum(p.numel() for p in deaf.model.parameters())
    assert same, "a control of another size controls nothing"
    with torch.inference_mode():
        figures = deaf.evaluate()
    assert set(figures) == {"dev_word_perplexity_alone"}
    with pytest.raises(ValueError, match="nothing is left without speech"):
        task(mix=Mix(speech=0.5, speech_then_text=0.0, alternating=0.15), speech=False)


def test_units_weigh_what_the_task_says_and_padding_nothing(tmp_path: Path) -> None:
    built = task(unit_weight=0.25).build(tmp_path, 0)
    text, spoken = 0, next(i for i, own in enumerate(built._sequences) if built._written.speech.text in own)
    batch = built.batch(np.asarray([text, spoken]), np.random.default_rng(0))
    assert set(batch["weights"][0, : built.lengths[text]].tolist()) == {1.0}
    assert batch["weights"][0, built.lengths[text] :].sum() == 0
    heard = batch["input_ids"][1] >= built._written.speech.speech
    assert set(batch["weights"][1][heard].tolist()) == {0.25}


def test_the_loss_falls_and_what_is_written_scores(tmp_path: Path) -> None:
    config = train_speech_lm()
    small = dataclasses.replace(
        config,
        task=task(),
        num_steps=12,
        batch_size=600,
        optimiser=dataclasses.replace(config.optimiser, warm_up_steps=3),
        precision="float32",
        log_every=1,
        num_threads=1,
        num_processes=0,
    )
    directory = run(small, tmp_path)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert np.mean(losses[-3:]) < 0.93 * np.mean(losses[:3])
    assert load_quantiser(directory / QUANTISER).num_units == 12
    ((scores,),) = sources(SpeechLmConfig(model=str(directory)), lists(("call anna",)), units_table((0, 11, 4)))
    assert scores["log_probs"][0] < 0
    figures = json.loads((tmp_path / "training.json").read_text())["figures"]
    assert set(figures) == {f"dev_word_perplexity_{k}" for k in ("alone", "heard", "misheard")}


# ---- MWER


def drawn_lists() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scores, errors and mask of three lists, one of them shorter, one with equal errors."""
    generator = torch.Generator().manual_seed(3)
    scores = 2.0 * torch.randn((3, 4), generator=generator, dtype=torch.float64)
    errors = torch.tensor([[0, 2, 1, 5], [1, 0, 9, 9], [3, 3, 3, 3]])
    mask = torch.tensor([[True] * 4, [True, True, False, False], [True] * 4])
    return scores, errors, mask


def test_the_gradient_of_expected_errors_is_its_closed_form_and_finite_differences() -> None:
    scores, errors, mask = drawn_lists()
    leaf = scores.clone().requires_grad_()
    expected_word_errors(leaf, errors, mask, count=3).backward()  # type: ignore[no-untyped-call]  # torch
    assert leaf.grad is not None

    def by_hand(values: np.ndarray[Any, Any]) -> float:
        total = 0.0
        for own, wrong, there in zip(values, errors.numpy(), mask.numpy(), strict=True):
            weights = np.exp(own[there] - own[there].max())
            total += float((weights / weights.sum()) @ wrong[there]) / len(values)
        return total

    assert float(expected_word_errors(scores, errors, mask, count=3)) == pytest.approx(
        by_hand(scores.numpy()), abs=1e-6
    )
    for row in range(3):
        there = mask[row]
        posteriors = scores[row][there].softmax(-1)
        wrong = errors[row][there].double()
        closed = posteriors * (wrong - posteriors @ wrong) / 3
        torch.testing.assert_close(leaf.grad[row][there], closed, atol=1e-6, rtol=0)
        for place in range(4):
            step = np.zeros((3, 4))
            step[row, place] = 1e-5
            slope = (by_hand(scores.numpy() + step) - by_hand(scores.numpy() - step)) / 2e-5
            assert float(leaf.grad[row, place]) == pytest.approx(slope, abs=1e-6)
    assert leaf.grad[2].abs().max() < 1e-7, "equal errors teach nothing"
    assert leaf.grad[1, 2:].tolist() == [0.0, 0.0], "padding is nobody's hypothesis"


def test_an_empty_list_is_refused_and_the_share_of_cross_entropy_is_added() -> None:
    scores, errors, mask = drawn_lists()
    mask[1] = False
    with pytest.raises(ValueError, match=r"utterances \[1\] of the batch have an empty N-best list.*leave them out"):
        expected_word_errors(scores, errors, mask, count=3)
    whole = mwer(torch.tensor(2.0), torch.tensor(3.0), cross_entropy_share=0.01)
    assert float(whole) == pytest.approx(2.03)
