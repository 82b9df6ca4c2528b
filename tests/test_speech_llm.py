"""The LLM recogniser: adapter, prefix, search, scores and what is refused, against transformers' own forward."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file
from tiny_ctc import noise
from tiny_speech_llm import make
from transformers import AutoModelForCausalLM, GenerationMixin

from ctxasr_ray.first_pass.speech_llm import SpeechLlmConfig, SpeechLlmKeywordsConfig
from ctxasr_ray.models import checkpoint, speech_llm
from ctxasr_ray.models.audio_lm import load_audio_lm
from ctxasr_ray.models.list_trees import ScoreRequest
from ctxasr_ray.models.prefix_decoding import Writer
from ctxasr_ray.models.speech_adapter import AdapterConfig, stack_frames
from ctxasr_ray.models.speech_prompt import Prompt
from ctxasr_ray.nbest import Hypothesis, NBest, hypotheses_table
from ctxasr_ray.schema import conform
from ctxasr_ray.scorers.speech_llm import SpeechLlmScorerConfig
from ctxasr_ray.search.label_synchronous import LabelSynchronousSearch
from ctxasr_ray.stage import Costs
from ctxasr_ray.training.assets import ASSETS
from ctxasr_ray.training.sources import SyntheticSpeech
from ctxasr_ray.training.trainable import Lora, train_parts

TEXTS = ["a time of you", "a time of", "", "of a time"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("speech_llm"), prompt="of {speech} a time ", lora=Lora(rank=2, alpha=4.0))


@pytest.fixture(scope="module")
def model(directory: Path) -> speech_llm.SpeechLlm:
    found = load_audio_lm(checkpoint.resolve(str(directory)), device="cpu")
    assert isinstance(found, speech_llm.SpeechLlm)
    return found


@pytest.mark.parametrize("stack", [1, 2, 3])
def test_stacked_frames_of_an_odd_length_end_in_zeros_and_know_no_neighbour(stack: int) -> None:
    states_BTD = torch.arange(2 * 7 * 3, dtype=torch.float32).reshape(2, 7, 3) + 1
    stacked_BSD, lengths_B = stack_frames(states_BTD, torch.tensor([7, 5]), stack)
    for row, length in enumerate((7, 5)):
        (alone_1SD, alone_1) = stack_frames(states_BTD[row : row + 1, :length], torch.tensor([length]), stack)
        assert int(lengths_B[row]) == int(alone_1[0]) == -(-length // stack)
        torch.testing.assert_close(stacked_BSD[row, : lengths_B[row]], alone_1SD[0])
        flat = stacked_BSD[row].flatten()
        torch.testing.assert_close(flat[: 3 * length], states_BTD[row, :length].flatten())
        assert not flat[3 * length :].any()


def _log_probs(model: speech_llm.SpeechLlm, prefix_PD: torch.Tensor, text: np.ndarray) -> torch.Tensor:
    """(L + 1, V) by transformers' own forward on embeddings: the second opinion."""
    ids = torch.from_numpy(text.astype(np.int64))
    inputs = torch.cat([prefix_PD, model.lm.body.embed(ids)])[None]
    with torch.inference_mode():
        logits_NV = model.lm.model(inputs_embeds=inputs, use_cache=False).logits[0]
    return logits_NV[len(prefix_PD) - 1 :].double().log_softmax(-1)


def test_teacher_forcing_equals_transformers_forward_behind_prompt_and_speech(model: speech_llm.SpeechLlm) -> None:
    for seconds in (0.31, 1.0):  # odd and even numbers of frames
        prefix_PD = model.prefix(noise(1, seconds))
        texts = model.tokens.encode(TEXTS)
        (scores,) = model.lm.score([ScoreRequest(prefix_PD, texts)])
        for i, text in enumerate(texts):
            log_probs = _log_probs(model, prefix_PD, text)
            expected = sum(float(log_probs[n, token]) for n, token in enumerate(text))
            assert scores.log_probs[i] == pytest.approx(expected, abs=1e-4)
            assert scores.eos_log_probs[i] == pytest.approx(float(log_probs[-1, model.lm.eos_token_id]), abs=1e-4)


@pytest.mark.parametrize("no_repeat", [0, 2, 6])
def test_the_beam_is_that_of_transformers_generate(model: speech_llm.SpeechLlm, no_repeat: int) -> None:
    prefix_PD = model.prefix(noise(3, 0.6))
    search = LabelSynchronousSearch(Writer(model), beam_size=8, max_tokens=9, no_repeat=no_repeat)
    (found,) = search.search(prefix_PD[None], np.zeros(len(prefix_PD), np.int32))
    special = [i for i in model.tokens.special_ids if i != model.lm.eos_token_id]
    with torch.inference_mode():
        theirs = GenerationMixin.generate(
            model.lm.model,
            inputs_embeds=prefix_PD[None],
            attention_mask=torch.ones(1, len(prefix_PD), dtype=torch.int64),
            num_beams=8,
            num_return_sequences=8,
            max_new_tokens=9,
            no_repeat_ngram_size=no_repeat,
            suppress_tokens=special,
            length_penalty=0.0,
            early_stopping="never",
            do_sample=False,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_scores=True,
        )
    best = theirs.sequences[0].tolist()
    eos = model.lm.eos_token_id
    best = best[: best.index(eos)] if eos in best else best
    assert found[0].token_ids.tolist() == best
    ours = [one.score for one in found]
    assert ours[0] == pytest.approx(float(theirs.sequences_scores[0]), abs=2e-3)
    for one in found:  # evidence is that of the plain model, whatever the search forbids
        log_probs = _log_probs(model, prefix_PD, one.token_ids)
        picked = [float(log_probs[n, token]) for n, token in enumerate(one.token_ids)]
        assert one.token_log_probs == pytest.approx(picked, abs=1e-3)
        entropies = -(log_probs.exp() * log_probs).sum(-1)[:-1]
        assert one.token_entropies == pytest.approx(entropies.numpy(), abs=1e-3)


def test_no_run_of_tokens_stands_twice_in_a_text(model: speech_llm.SpeechLlm) -> None:
    prefix_PD = model.prefix(noise(5, 0.5))
    search = LabelSynchronousSearch(Writer(model), beam_size=8, max_tokens=40, no_repeat=2)
    (found,) = search.search(prefix_PD[None], np.zeros(len(prefix_PD), np.int32))
    for one in found:
        ids = one.token_ids.tolist()
        pairs = list(itertools.pairwise(ids))
        assert len(set(pairs)) == len(pairs)


@pytest.mark.parametrize("lora", [Lora(rank=2), Lora(rank=2, alpha=0.0)], ids=["fresh", "alpha_0"])
def test_a_lora_that_says_nothing_leaves_the_base_model(directory: Path, lora: Lora) -> None:
    base = AutoModelForCausalLM.from_pretrained(directory / "llm").eval()
    ids = torch.arange(5, 25)[None]
    with torch.inference_mode():
        expected = base(input_ids=ids).logits
        updated = lora.around(base).eval()
        if lora.alpha == 0:
            for name, weight in updated.named_parameters():
                if "lora_B" in name:
                    weight.normal_()
        torch.testing.assert_close(updated(input_ids=ids).logits, expected, rtol=0, atol=1e-6)


def test_named_parts_alone_are_trained() -> None:
    parts = {"adapter": torch.nn.Linear(2, 2), "llm": torch.nn.Linear(2, 2)}
    train_parts(parts, ("adapter",))
    assert all(w.requires_grad for w in parts["adapter"].parameters())
    assert not any(w.requires_grad for w in parts["llm"].parameters())
    with pytest.raises(ValueError, match=r"trained parts are \['encoder'\]; expected some of"):
        train_parts(parts, ("encoder",))


def test_keywords_and_history_change_what_is_heard(directory: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, noise(1, 0.5), 16000)
    row = {"utterance_id": "a", "corpus": "made", "split": "dev", "audio_uri": str(path), "start_s": 0.0}
    utterances = conform(pa.Table.from_pylist([row]), "utterances")
    prompt = "a {keywords} of {history} {speech}"
    config = SpeechLlmKeywordsConfig(model=str(directory), prompt=prompt, max_tokens=4)
    stage = config.build()

    def score(**known: object) -> float:
        context = conform(pa.Table.from_pylist([{"utterance_id": "a", **known}]), "context")
        (listed,) = stage(utterances, context, costs=Costs()).to_pylist()
        return float(listed["hypotheses"][0]["search_score"])

    assert len({score(), score(phrases=["a time"]), score(history="of you")}) == 3
    with pytest.raises(ValueError, match=r"has no \{keywords\}"):
        replace(config, prompt="{speech}").build()(
            utterances,
            conform(pa.Table.from_pylist([{"utterance_id": "a", "phrases": ["x"]}]), "context"),
            costs=Costs(),
        )


def test_the_control_hears_the_next_utterance(directory: Path, tmp_path: Path) -> None:
    rows = []
    for number in range(3):
        path = tmp_path / f"{number}.wav"
        soundfile.write(path, noise(number, 0.5), 16000)
        rows.append(
            {"utterance_id": str(number), "corpus": "made", "split": "dev", "audio_uri": str(path), "start_s": 0}
        )
    utterances = conform(pa.Table.from_pylist(rows), "utterances")
    lists = hypotheses_table(
        [NBest(utterance_id=str(number), hypotheses=[Hypothesis(text="a time of you")]) for number in range(3)]
    )
    own, control = (SpeechLlmScorerConfig(model=str(directory), hears=sound).build() for sound in ("own", "next"))
    said, misheard = (
        [row["sources"][0]["log_probs"][0] for row in stage(utterances, lists, costs=Costs()).to_pylist()]
        for stage in (own, control)
    )
    assert misheard == pytest.approx([said[1], said[2], said[0]], abs=1e-4)
    assert len({round(score, 4) for score in said}) == 3
    with pytest.raises(ValueError, match="a shard of one utterance has no other sound"):
        control(utterances.slice(0, 1), lists.slice(0, 1), costs=Costs())


def test_audio_shorter_than_a_frame_keeps_its_row_and_its_reason(directory: Path, tmp_path: Path) -> None:
    path = tmp_path / "short.wav"
    soundfile.write(path, noise(1, 0.02), 16000)
    row = {"utterance_id": "a", "corpus": "made", "split": "dev", "audio_uri": str(path), "start_s": 0.0}
    stage = SpeechLlmConfig(model=str(directory), max_tokens=4).build()
    (listed,) = stage(conform(pa.Table.from_pylist([row]), "utterances"), costs=Costs()).to_pylist()
    assert listed["error_type"] == "model_limit"
    assert "20 ms of audio, the model needs at least 40 ms" in listed["error"]


def test_an_adapter_whose_width_does_not_fit_is_refused(tmp_path: Path) -> None:
    broken = make(tmp_path)
    weights = load_file(broken / "model.safetensors")
    weights["2.weight"] = weights["2.weight"][:-1].contiguous()
    save_file(weights, broken / "model.safetensors")
    with pytest.raises(ValueError, match=r"its adapter does not fit: encoder .* has width 32 and LLM"):
        load_audio_lm(checkpoint.resolve(str(broken)), device="cpu")


def test_parts_of_another_training_are_refused(tmp_path: Path) -> None:
    broken = make(tmp_path)
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, "llm_digest": "sha256:0000"}))
    with pytest.raises(ValueError, match="was trained with the llm sha256:0000"):
        SpeechLlmConfig(model=str(broken)).fingerprint()
    with pytest.raises(ValueError, match="is no LLM recogniser"):
        speech_llm.read_parts(checkpoint.resolve(str(broken / "encoder")))


def test_a_prompt_has_one_place_for_the_speech(model: speech_llm.SpeechLlm) -> None:
    with pytest.raises(ValueError, match=r"must hold \{speech\} once; it stands there 0 times"):
        Prompt(model.tokens.tokenizer, "transcribe")
    with pytest.raises(ValueError, match="activation 'tanh' is unknown"):
        AdapterConfig(activation="tanh")  # type: ignore[arg-type]


def test_the_shipped_model_believes_what_was_said_and_not_what_another_said() -> None:
    speech = SyntheticSpeech(num_utterances=2, split="dev")
    examples = [speech.example(index) for index in range(2)]
    found = load_audio_lm(checkpoint.resolve(str(ASSETS / "speech_llm")), device="cpu")
    said = found.tokens.encode([example.text for example in examples])
    sounds = [found.prefix(example.samples) for example in examples]
    scores = found.lm.score([ScoreRequest(sound, said) for sound in sounds], Costs())
    (own_0, other_1), (other_0, own_1) = (one.log_probs.tolist() for one in scores)
    assert own_0 > other_1 + 20  # nats
    assert own_1 > other_0 + 20
