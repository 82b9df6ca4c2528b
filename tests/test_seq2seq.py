"""Attention recognisers: forced scores, prompts, what may be written, and what is refused by name."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_seq2seq
import torch
from tiny_seq2seq import END, START

from ctxasr_ray.models.checkpoint import resolve
from ctxasr_ray.models.seq2seq import Seq2SeqModel

torch.set_num_threads(1)
TEXTS = ("a cab", "a cab", "", "a cap", "abba a cabbage bed", "b", "kidnap kidnap")


@pytest.fixture(scope="module", params=tiny_seq2seq.FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Seq2SeqModel:
    return Seq2SeqModel(resolve(str(tiny_seq2seq.make(request.param, tmp_path_factory.mktemp(request.param)))))


@pytest.fixture(scope="module")
def multilingual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_seq2seq.make("whisper", tmp_path_factory.mktemp("many"), **tiny_seq2seq.multilingual())


def load_seq2seq(directory: str, **options: Any) -> Seq2SeqModel:
    return Seq2SeqModel(resolve(directory), **options)


def one_by_one(model: Seq2SeqModel, states: torch.Tensor, prompt: list[int], text: list[int]) -> tuple[float, float]:
    """(sum over the text, end) by plain teacher forcing of one sequence."""
    with torch.inference_mode():
        hidden = model._decoder(
            input_ids=torch.tensor([prompt + text]), encoder_hidden_states=states, use_cache=False
        ).last_hidden_state
        log_probs = torch.log_softmax(model._head(hidden)[0].double(), -1)[len(prompt) - 1 :]
    return float(log_probs[range(len(text)), text].sum()), float(log_probs[-1, END])


def test_forced_scores_are_teacher_forcing_one_by_one(model: Seq2SeqModel) -> None:
    texts = model.tokens.encode(TEXTS)
    prompt = model.tokens.prompt(None)
    for states in model.encode(tiny_seq2seq.noises([0.7, 1.6])):
        forced = model.forced_scores(states, prompt, texts)
        assert forced.reasons == [None] * len(texts)
        for i, text in enumerate(texts):
            log_prob, eos_log_prob = one_by_one(model, states, prompt.tolist(), text.tolist())
            assert forced.log_probs[i] == pytest.approx(log_prob, abs=1e-4)
            assert forced.eos_log_probs[i] == pytest.approx(eos_log_prob, abs=1e-4)
    assert forced.log_probs[2] == 0.0
    assert forced.log_probs[0] == forced.log_probs[1]


def test_scores_hear_the_audio(model: Seq2SeqModel) -> None:
    one, other = model.encode(tiny_seq2seq.noises([1.0, 1.0]))
    texts, prompt = model.tokens.encode(TEXTS[:1]), model.tokens.prompt(None)
    first, second = (model.forced_scores(states, prompt, texts).log_probs[0] for states in (one, other))
    assert abs(first - second) > 1e-2


def test_many_texts_in_bounded_passes_score_as_few(model: Seq2SeqModel, monkeypatch: pytest.MonkeyPatch) -> None:
    texts, prompt = model.tokens.encode(TEXTS), model.tokens.prompt(None)
    states = model.encode(tiny_seq2seq.noises([0.9]))[0]
    whole = model.forced_scores(states, prompt, texts)
    monkeypatch.setattr("ctxasr_ray.models.seq2seq_forced.MAX_NODES", 12)
    monkeypatch.setattr("ctxasr_ray.models.seq2seq_ahead.LOGITS_LIMIT_BYTES", 4 * model.num_outputs * 3)
    parts = model.forced_scores(states, prompt, texts)
    np.testing.assert_allclose(parts.log_probs, whole.log_probs, atol=1e-4)
    np.testing.assert_allclose(parts.eos_log_probs, whole.eos_log_probs, atol=1e-4)


def test_looking_ahead_is_forced_scoring_behind_the_rows_and_leaves_the_decoding_as_it_was(model: Seq2SeqModel) -> None:
    states = torch.cat(model.encode(tiny_seq2seq.noises([1.0, 1.0])))[: 2 if model.many_utterances else 1]
    num, prompt = len(states), model.tokens.prompt(None)
    phrases = [tuple(ids.tolist()) for ids in model.tokens.encode(["badge", "ba", "bad", "p", "kidnap"])]
    (first, second), parents = model.tokens.encode(["ab", "cd"]), [[0, 0], [1, 0]]
    rows = [(second[0], first[1]), (first[0], second[1])]  # "cb", "ad"
    with torch.inference_mode():
        decodings = [model.decode(states), model.decode(states)]
        for looking in decodings:
            looking.start(torch.tensor([prompt.tolist()] * num))
        assert decodings[0].ahead(num - 1, [0], [(int(first[0]),)]).tolist() == [0.0]
        for step in range(2):
            tokens, above = torch.tensor([[first[step], second[step]]] * num), torch.tensor([parents[step]] * num)
            if step:
                asked = [0, 1, 0, 1, 1]
                decodings[0].ahead(0, asked, phrases)
            logits = [one.advance(tokens, above) for one in decodings]
            torch.testing.assert_close(*logits, rtol=0, atol=0)
        got = decodings[0].ahead(num - 1, asked, phrases)
    for row, phrase, value in zip(asked, phrases, got, strict=True):
        text = np.array([*rows[row], *phrase], np.int32)
        whole, before = (
            model.forced_scores(states[num - 1 :], prompt, [text[:end]]).log_probs[0] for end in (len(text), 3)
        )
        assert value == pytest.approx(whole - before, abs=1e-4)


def test_encoder_states_do_not_depend_on_the_batch(model: Seq2SeqModel) -> None:
    waveforms = tiny_seq2seq.noises([0.5, 1.9, 0.5, 1.2])
    together = model.encode(waveforms)
    for waveform, states in zip(waveforms, together, strict=True):
        torch.testing.assert_close(model.encode([waveform])[0], states, atol=1e-5, rtol=1e-5)


def test_a_tree_is_used_where_the_decoder_takes_positions(model: Seq2SeqModel) -> None:
    rows = type(model._model).__name__.startswith("Speech2Text")
    assert model.many_utterances is not rows
    assert (model.refusal or "").startswith("its decoder takes no position_ids" if rows else "")


def test_texts_longer_than_the_decoder_have_a_reason_and_no_score(model: Seq2SeqModel) -> None:
    texts = model.tokens.encode(["ab" * 19 + "a", "ab" * 20])
    forced = model.forced_scores(model.encode(tiny_seq2seq.noises([0.5]))[0], model.tokens.prompt(None), texts)
    assert forced.reasons[0] is None
    assert forced.reasons[1] == "model_limit: 41 tokens with the prompt, the decoder takes 40"
    assert np.isnan(forced.log_probs[1])


def test_language_task_and_text_before_are_the_prompt(multilingual: Path) -> None:
    model = load_seq2seq(str(multilingual), task="translate", before="a bad cab")
    names = model.tokens._tokenizer.convert_ids_to_tokens(model.tokens.prompt("de").tolist())
    assert names == ["<|prev|>", *"a bad cab", "<s>", "<|de|>", "<|translate|>", "<|notimes|>"]
    assert model.tokens.prompt("<|en|>").tolist() != model.tokens.prompt("de").tolist()
    assert model.tokens.is_multilingual
    spelled = load_seq2seq(str(multilingual), prompt_tokens=("<s>", "<|de|>"))
    assert spelled.tokens.prompt(None).tolist()[0] == START
    assert not spelled.tokens.is_multilingual


def test_special_tokens_and_timestamps_are_never_written(multilingual: Path) -> None:
    tokens = load_seq2seq(str(multilingual)).tokens
    written = tokens._tokenizer.convert_ids_to_tokens(np.flatnonzero(~tokens.suppressed).tolist())
    assert sorted(written) == sorted(["</s>", " ", *tiny_seq2seq.LETTERS])


@pytest.mark.parametrize(
    ("options", "language", "message"),
    [
        ({}, "xx", "language 'xx': the model has no token for it; it has de, en."),
        ({}, None, "no language is given"),
        ({"task": "sing"}, "en", "task 'sing': the model has no token for it; it has transcribe, translate."),
        ({"prompt_tokens": ("<|no|>",)}, None, "the model has no token '<|no|>'"),
        ({"before": "ab" * 20}, "en", "the prompt has 45 tokens, prompt and text together may have 40"),
    ],
)
def test_what_the_model_lacks_is_refused_by_name(
    multilingual: Path, options: dict[str, Any], language: str | None, message: str
) -> None:
    def start() -> None:
        model = load_seq2seq(str(multilingual), **options)
        model.check_prompt(language)
        model.tokens.prompt(language)

    with pytest.raises(ValueError, match=message.replace("|", r"\|").replace(".", r"\.")):
        start()


def test_a_model_without_languages_takes_none(model: Seq2SeqModel) -> None:
    with pytest.raises(ValueError, match="language 'en': the model has no language tokens"):
        model.tokens.prompt("en")
    with pytest.raises(ValueError, match="no token for text that came before"):
        load_seq2seq(model.name, before="a cab")


def test_a_directory_that_does_not_fit_is_refused(multilingual: Path, tmp_path: Path) -> None:
    def broken(name: str, file: str, **fields: object) -> str:
        folder = shutil.copytree(multilingual, tmp_path / name)
        content = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({**content, **fields}))
        return str(folder)

    with pytest.raises(ValueError, match=r"pads to 300 frames, the encoder of config\.json takes 200"):
        load_seq2seq(broken("window", "preprocessor_config.json", chunk_length=3, nb_max_frames=300, n_samples=48000))
    (Path(broken("pickle", "config.json")) / "model.safetensors").rename(tmp_path / "pickle" / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin"):
        load_seq2seq(str(tmp_path / "pickle"))
