"""One training loop: batches, objectives, resume, refusals, published directories, and the shipped models."""

import contextlib
import dataclasses
import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import (
    AutoFeatureExtractor,
    AutoModelForCausalLM,
    AutoModelForCTC,
    AutoModelForSpeechSeq2Seq,
    AutoProcessor,
    AutoTokenizer,
    ParakeetFeatureExtractor,
    WhisperFeatureExtractor,
)

from ctxasr_ray import train_command
from ctxasr_ray.corpora.sentences import lexicon
from ctxasr_ray.models import attention, checkpoint
from ctxasr_ray.models.frame_encoder import FrameEncoder
from ctxasr_ray.recipes import tiny_models
from ctxasr_ray.search.ctc_alignment import Alignment
from ctxasr_ray.training import aligned, batches, encoded, features, objectives, sources
from ctxasr_ray.training.assets import ASSETS, DIGESTS, ship
from ctxasr_ray.training.augment import SpecAugment
from ctxasr_ray.training.config import Optimiser, Task, TrainingConfig
from ctxasr_ray.training.ctc import CtcTask
from ctxasr_ray.training.joint import JointTask, greedy
from ctxasr_ray.training.language import LanguageModelTask
from ctxasr_ray.training.loop import TrainingDivergedError, run
from ctxasr_ray.training.publish import digests
from ctxasr_ray.training.sources import Example, SyntheticSpeech, SyntheticText, TableSpeech, TextFile
from ctxasr_ray.training.vocabulary import CHARACTERS, SPACE, character_lm_tokenizer, character_tokenizer, train_bpe


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ToneSpeech:
    """Each letter is a tone of its own pitch: speech that can be learnt in seconds."""

    num_utterances: int
    nan_at: int = -1
    """Utterance with a broken sample."""
    seconds_per_letter: float = 0.12

    def __len__(self) -> int:
        return self.num_utterances

    def example(self, index: int) -> Example:
        rng = np.random.default_rng(index)
        letters = rng.choice(list("abcde"), size=int(rng.integers(3, 9)))
        time = np.arange(int(16000 * self.seconds_per_letter)) / 16000
        samples = np.concatenate([np.sin(2 * np.pi * (300 + 400 * (ord(c) - ord("a"))) * time) for c in letters])
        samples = (samples + 0.01 * rng.standard_normal(len(samples))).astype(np.float32)
        if index == self.nan_at:
            samples[0] = np.nan
        return Example(f"tone-{index}", "".join(letters), samples)


def short(config: TrainingConfig, **changes: object) -> TrainingConfig:
    here = dataclasses.replace(config, checkpoint_every=2, num_threads=1, num_processes=0)
    return dataclasses.replace(here, **changes)  # type: ignore[arg-type]


def tone_task(train: Any = ToneSpeech(num_utterances=12)) -> CtcTask:
    dev: Any = ToneSpeech(num_utterances=3)
    return CtcTask(
        train=train,
        dev=dev,
        hidden_size=16,
        num_layers=1,
        num_heads=2,
        intermediate_size=32,
        subsampling_channels=4,
    )


def tone_ctc(**changes: object) -> TrainingConfig:
    task = tone_task()
    return short(TrainingConfig(name="tones", task=task, num_steps=9, batch_size=300, seed=3), **changes)


def small_lm(**changes: object) -> TrainingConfig:
    task = LanguageModelTask(
        train=SyntheticText(num_sentences=200),
        dev=SyntheticText(num_sentences=5, split="dev"),
        vocabulary_size=80,
        hidden_size=16,
        num_layers=1,
        num_heads=2,
        intermediate_size=32,
        dropout=0.2,
    )
    return short(TrainingConfig(name="lm", task=task, num_steps=9, batch_size=500, seed=3), **changes)


# ---- batches


def test_an_epoch_holds_every_example_once_and_bounds_the_padded_size() -> None:
    lengths = np.random.default_rng(0).integers(1, 50, 300)
    made = batches.epoch_batches(lengths, 100, 5, 0)
    assert sorted(np.concatenate(made).tolist()) == list(range(300))
    assert all(lengths[batch].max() * len(batch) <= 100 for batch in made)
    padded = sum(lengths[batch].max() * len(batch) for batch in made)
    assert padded <= 1.25 * lengths.sum()


def test_an_example_longer_than_the_batch_size_is_a_batch_of_its_own() -> None:
    made = batches.epoch_batches(np.array([5, 1000, 5]), 20, 0, 0)
    assert sorted(batch.tolist() for batch in made)[-1] == [1] or [1] in [batch.tolist() for batch in made]


def test_steps_from_the_middle_are_the_rest_of_the_steps_from_the_start() -> None:
    lengths = np.random.default_rng(1).integers(1, 50, 40)
    whole = list(batches.steps(lengths, 100, 5, start=0, stop=37))
    assert [step for step, _ in whole] == list(range(37))
    for start in (0, 1, 13, 36, 37):
        rest = list(batches.steps(lengths, 100, 5, start=start, stop=37))
        assert [(s, b.tolist()) for s, b in rest] == [(s, b.tolist()) for s, b in whole[start:]]


def test_what_nothing_is_left_of_is_refused_before_training_with_the_reasons(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"num_utterances of split 'dev' is 0"):
        SyntheticSpeech(num_utterances=0, split="dev")
    row = {"audio_filepath": str(tmp_path / "a.wav"), "text": "abc", "split": "train", "duration": 1.0}
    (tmp_path / "corpus.jsonl").write_text(json.dumps(row) + "\n")
    soundfile.write(tmp_path / "a.wav", np.zeros(16000), 16000)
    own = TableSpeech(path=str(tmp_path / "corpus.jsonl"))
    task = dataclasses.replace(tone_task(own), dev=dataclasses.replace(own, split="dev"))
    with pytest.raises(ValueError, match=r'no recording of split \'dev\' of .*corpus.jsonl.*"split": "dev"'):
        run(tone_ctc(task=task), tmp_path / "no_dev")
    unwritable = dataclasses.replace(tone_task(own), characters="xy")
    with pytest.raises(ValueError, match=r"1 left out \(.*its text 'abc' has"):
        run(tone_ctc(task=unwritable), tmp_path / "no_train")
    (tmp_path / "dev.txt").write_text("\n")
    task = small_lm().task
    assert isinstance(task, LanguageModelTask)
    silent = dataclasses.replace(task, dev=TextFile(path=str(tmp_path / "dev.txt"), split="dev"))
    with pytest.raises(ValueError, match=r"no sentence of TextFile.*dev\.txt"):
        run(small_lm(task=silent), tmp_path / "no_text")


# ---- objectives


def test_ctc_equals_the_sum_over_all_paths() -> None:
    torch.manual_seed(0)
    logits_BTV = torch.randn(2, 4, 3)
    log_probs = logits_BTV.log_softmax(-1)
    targets, lengths, blank = [[0, 0], [1]], [4, 3], 2
    expected = 0.0
    for row, (target, length) in enumerate(zip(targets, lengths, strict=True)):
        total = 0.0
        for path in itertools.product(range(3), repeat=length):
            collapsed = [token for token, _ in itertools.groupby(path)]
            if [t for t in collapsed if t != blank] == target:
                total += float(np.exp(sum(float(log_probs[row, t, v]) for t, v in enumerate(path))))
        expected -= np.log(total)
    padded = torch.tensor([[0, 0], [1, objectives.IGNORED]])
    got = objectives.ctc(logits_BTV, torch.tensor(lengths), padded, blank=blank, count=3)
    assert float(got) == pytest.approx(expected / 3, abs=1e-5)


def test_cross_entropy_ignores_padding() -> None:
    logits = torch.randn(2, 3, 5)
    targets = torch.tensor([[1, 2, objectives.IGNORED], [4, objectives.IGNORED, objectives.IGNORED]])
    log_probs = logits.log_softmax(-1)
    expected = -(log_probs[0, 0, 1] + log_probs[0, 1, 2] + log_probs[1, 0, 4]) / 3
    assert float(objectives.cross_entropy(logits, targets, count=3)) == pytest.approx(float(expected), abs=1e-5)


def test_joint_loss_is_the_weighted_sum() -> None:
    assert float(objectives.joint(torch.tensor(2.0), torch.tensor(1.0), ctc_weight=0.3)) == pytest.approx(1.3)


def test_repeated_tokens_need_a_blank_between() -> None:
    assert objectives.frames_needed([1, 1, 2, 2, 2]) == 8
    assert objectives.frames_needed([]) == 0


# ---- features


def test_augmentation_is_repeatable_and_bounded() -> None:
    original = np.random.default_rng(0).standard_normal((100, 80)).astype(np.float32)
    one, two = original.copy(), original.copy()
    SpecAugment()(one, np.random.default_rng(4))
    SpecAugment()(two, np.random.default_rng(4))
    np.testing.assert_array_equal(one, two)
    hidden = (one != original).mean()
    assert 0 < hidden < 0.75


def test_log_mel_is_what_the_extractor_gives_at_inference() -> None:
    samples = np.random.default_rng(0).standard_normal(16000 * 2 + 77).astype(np.float32) * 0.1
    parakeet = ParakeetFeatureExtractor()
    got, frames = features.log_mel(parakeet, samples)
    direct = parakeet(samples, sampling_rate=16000, return_tensors="np")
    assert frames == len(got) == direct["attention_mask"].sum()
    np.testing.assert_allclose(got, direct["input_features"][0, :frames], atol=1e-6)

    whisper = WhisperFeatureExtractor(feature_size=80, chunk_length=8)
    got, frames = features.log_mel(whisper, samples)
    direct = whisper(samples, sampling_rate=16000, return_tensors="np")["input_features"][0].T
    filled = np.concatenate([got, np.repeat(got[-1:], len(direct) - len(got), axis=0)])
    np.testing.assert_allclose(filled, direct, atol=1e-6)
    assert frames == 200


def test_an_utterance_longer_than_the_window_is_left_out_with_its_reason(tmp_path: Path) -> None:
    source = ToneSpeech(num_utterances=4, seconds_per_letter=0.19)
    made = features.compute(source, WhisperFeatureExtractor(chunk_length=1), tmp_path, num_processes=0)
    assert len(made) + len(made.left_out) == 4
    assert made.left_out
    assert all("longer than the model's window of 1 s" in reason for reason in made.left_out.values())


def test_features_in_processes_equal_features_in_this_one(tmp_path: Path) -> None:
    source = SyntheticSpeech(num_utterances=3, split="dev")
    extractor = ParakeetFeatureExtractor()
    here = features.compute(source, extractor, tmp_path / "here", num_processes=0)
    there = features.compute(source, extractor, tmp_path / "there", num_processes=1)
    assert here.texts == there.texts
    for index in range(3):
        np.testing.assert_array_equal(here[index], there[index])


def test_what_was_computed_of_another_source_extractor_or_warp_is_not_reused(tmp_path: Path) -> None:
    source, other = (SyntheticSpeech(num_utterances=2, first=first) for first in (0, 7))
    extractor = ParakeetFeatureExtractor()
    spoken = features.compute(source, extractor, tmp_path / "train", num_processes=0)
    made = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("part-*")}
    for unlike, by in ((other, extractor), (source, ParakeetFeatureExtractor(feature_size=40))):
        heard = features.compute(unlike, by, tmp_path / "train", num_processes=0)
        assert (heard.names, heard[0].shape) != (spoken.names, spoken[0].shape)
    again = features.compute(source, extractor, tmp_path / "train", num_processes=0)
    assert (again.names, again.digest) == (spoken.names, spoken.digest)
    assert all(p.stat().st_mtime_ns == when for p, when in made.items())

    encoder = FrameEncoder(checkpoint.resolve(str(ASSETS / "ctc")))
    plain, warped = (encoded.encode(spoken, encoder, tmp_path / "states.npy", warp=w) for w in (0.0, 0.3))
    assert not np.array_equal(plain.states, warped.states)
    reopened = encoded.encode(spoken, encoder, tmp_path / "states.npy")
    np.testing.assert_array_equal(reopened.states, plain.states)


def test_a_manifest_that_says_something_else_is_another_source(tmp_path: Path) -> None:
    table = TableSpeech(path=str(tmp_path / "corpus.jsonl"))
    row = {"audio_filepath": "a.wav", "text": "one", "split": "train", "duration": 1.0}
    seen = set()
    for said in ("one", "two"):
        Path(table.path).write_text(json.dumps({**row, "text": said}) + "\n")
        sources._rows.cache_clear()
        seen.add(json.dumps(sources.described(table)))
    assert len(seen) == 2


# ---- the loop


class StoppedError(Exception):
    pass


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Stopping:
    """A task that dies at a step, as a killed process does: between two checkpoints, with nothing written."""

    task: object
    steps: int

    def build(self, directory: Path, num_processes: int) -> Task:
        built = self.task.build(directory, num_processes)  # type: ignore[attr-defined]
        left = itertools.count(1)
        loss = built.loss

        def stop(batch: object, counts: object) -> object:
            if next(left) > self.steps:
                raise StoppedError
            return loss(batch, counts)

        built.loss = stop
        return built  # type: ignore[no-any-return]


@pytest.mark.parametrize("make", [tone_ctc, small_lm])
def test_a_killed_and_resumed_run_ends_with_the_same_weights(make: object, tmp_path: Path) -> None:
    config = make()  # type: ignore[operator]
    whole = run(config, tmp_path / "whole")
    steps = int(np.random.default_rng().integers(1, 8))
    dying = dataclasses.replace(config, task=Stopping(task=config.task, steps=steps))
    with pytest.raises(StoppedError):
        run(dying, tmp_path / "killed")
    (tmp_path / "killed" / "config.json").write_text((tmp_path / "whole" / "config.json").read_text())
    resumed = run(config, tmp_path / "killed")
    same_weights(whole, resumed, f"killed after {steps} steps")
    figures = [json.loads((p.parent / "training.json").read_text())["figures"] for p in (whole, resumed)]
    assert figures[0] == figures[1]


def same_weights(one: Path, two: Path, what: str) -> None:
    weights = [load_file(model.parent / "checkpoint.safetensors") for model in (one, two)]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, atol=1e-5, rtol=0, msg=f"{name}, {what}")


@pytest.mark.slow
def test_a_process_killed_at_any_moment_loses_nothing_but_time(tmp_path: Path) -> None:
    config = tone_ctc(num_steps=200)
    whole = run(config, tmp_path / "whole")
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_training import tone_ctc\nfrom ctxasr_ray.training.loop import run\n"
        f"run(tone_ctc(num_steps=200), {str(tmp_path / 'killed')!r})"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    checkpoint_file, seen = tmp_path / "killed" / "checkpoint.safetensors", set()
    wanted = int(np.random.default_rng().integers(1, 20))
    while len(seen) < wanted:  # counted in checkpoints, not in seconds, which depend on the machine
        assert process.poll() is None, "it ended before it was killed; give it more steps"
        if checkpoint_file.exists():
            seen.add(checkpoint_file.stat().st_mtime_ns)
        time.sleep(0.002)
    process.kill()
    assert process.wait() != 0, "it finished before it was killed; give it more steps"
    assert not (tmp_path / "killed" / "training.json").exists()
    same_weights(whole, run(config, tmp_path / "killed"), "killed by SIGKILL")


def test_a_finished_run_is_not_repeated(tmp_path: Path) -> None:
    model = run(small_lm(), tmp_path)
    before = (tmp_path / "training.json").stat().st_mtime_ns
    assert run(small_lm(), tmp_path) == model
    assert (tmp_path / "training.json").stat().st_mtime_ns == before


def test_a_finished_run_whose_text_has_changed_is_refused_and_an_equal_one_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "dev.txt"
    text.write_text("one two\n")
    task = small_lm().task
    assert isinstance(task, LanguageModelTask)
    config = small_lm(task=dataclasses.replace(task, dev=TextFile(path=str(text), split="dev")), num_steps=1)
    run(config, tmp_path / "run")
    text.write_text("one three\n")
    with pytest.raises(ValueError, match=r"files that said other things \(different: dev\)"):
        run(config, tmp_path / "run")
    words = ["lm", "--directory", str(tmp_path / "lm"), "--num-steps", "1", "--task.train.num-sentences", "400"]
    words += ["--task.train.num-seeds", "1", "--batch-size", "200", "--num-threads", "1"]
    assert train_command.train(words) == 0
    assert "finished before" not in capsys.readouterr().out
    assert train_command.train(words) == 0
    assert "was finished before; nothing was trained" in capsys.readouterr().out


def test_a_directory_of_another_config_is_refused_by_name(tmp_path: Path) -> None:
    run(small_lm(num_steps=1), tmp_path)
    with pytest.raises(ValueError, match=r"another config \(different: num_steps, seed\)"):
        run(small_lm(num_steps=2, seed=4), tmp_path)
    run(small_lm(num_steps=1, num_threads=2, checkpoint_every=7), tmp_path)


def test_a_loss_that_is_not_finite_stops_and_names_the_batch(tmp_path: Path) -> None:
    broken = tone_ctc(task=tone_task(ToneSpeech(num_utterances=12, nan_at=5)), checkpoint_every=1)
    with pytest.raises(TrainingDivergedError, match=r"tone-5\b.*last good checkpoint|tone-5\b.*no checkpoint"):
        run(broken, tmp_path)
    kept = tmp_path / "checkpoint.safetensors"
    if kept.exists():
        assert all(bool(t.isfinite().all()) for t in load_file(kept).values())


@pytest.mark.parametrize("field", ["log_every", "checkpoint_every", "evaluate_every"])
def test_steps_between_that_are_none_are_refused(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field}.* 0.*at least 1"):
        small_lm(**{field: 0})


@pytest.mark.parametrize("rate", [0.0, -1e-3, float("nan"), float("inf")])
def test_a_learning_rate_that_cannot_teach_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match=r"learning_rate is .*more than 0"):
        Optimiser(learning_rate=rate)


def test_a_checkpoint_that_is_cut_short_is_refused_and_a_cut_line_of_the_log_is_dropped(tmp_path: Path) -> None:
    config = small_lm(log_every=1)
    with pytest.raises(TrainingDivergedError):
        run(dataclasses.replace(config, task=Spoiling(task=config.task, step=5, loss=float("nan"))), tmp_path)  # type: ignore[arg-type]
    whole = small_lm(log_every=1)
    (tmp_path / "config.json").unlink()
    log, kept = tmp_path / "log.jsonl", tmp_path / "checkpoint.safetensors"
    log.write_text(log.read_text() + '{"step": 3, "lo')
    content = kept.read_bytes()
    kept.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"checkpoint\.safetensors cannot be read.*remove it"):
        run(whole, tmp_path)
    kept.write_bytes(content)
    run(whole, tmp_path)
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == list(range(1, 10))


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Spoiling:
    """A task whose weights or loss are multiplied in one step, as by an update that was far too long."""

    task: Any
    step: int
    weights: float = 1.0
    loss: float = 1.0
    figure: float | None = None
    """What dev gives."""

    def build(self, directory: Path, num_processes: int) -> Task:
        built: Any = self.task.build(directory, num_processes)
        count, loss, evaluate = itertools.count(), built.loss, built.evaluate

        def spoil(parameter: Any) -> None:
            parameter.data.mul_(self.weights)

        def spoilt(batch: object, counts: object) -> object:
            if next(count) != self.step:
                return loss(batch, counts)
            next(built.model.parameters()).register_post_accumulate_grad_hook(spoil)
            return loss(batch, counts) * self.loss

        built.loss = spoilt
        built.evaluate = lambda: evaluate() if self.figure is None else {"dev_wer": self.figure}
        return built  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("factor", "figure", "message"),
    [
        (float("nan"), None, "after step 4: .* weights are not finite"),
        (1e30, None, "after step 4: .* weights are not finite in half precision"),  # published as infinities
        (1.0, float("nan"), "after step 4: figures on dev are not finite.*dev_wer"),
    ],
)
def test_what_the_last_step_breaks_is_not_published(
    factor: float, figure: float | None, message: str, tmp_path: Path
) -> None:
    config = small_lm(num_steps=4)
    spoilt: Any = Spoiling(task=config.task, step=3, weights=factor, figure=figure)
    with pytest.raises(TrainingDivergedError, match=f"{message}.*last good checkpoint"):
        run(dataclasses.replace(config, task=spoilt), tmp_path)
    assert not (tmp_path / "training.json").exists()
    assert not (tmp_path / "model").exists()
    with safe_open(tmp_path / "checkpoint.safetensors", "pt") as file:
        assert file.metadata()["step"] == "2"


def test_a_checkpoint_whose_weights_ruin_the_next_loss_does_not_count(tmp_path: Path) -> None:
    config = small_lm(checkpoint_every=1)
    spoilt: Any = Spoiling(task=config.task, step=3, loss=float("nan"))
    with pytest.raises(TrainingDivergedError, match=r"step 3: the loss is nan.*last good checkpoint"):
        run(dataclasses.replace(config, task=spoilt), tmp_path)
    with safe_open(tmp_path / "checkpoint.safetensors", "pt") as file:
        assert file.metadata()["step"] == "2"


@pytest.mark.parametrize(
    "make",
    [
        lambda: SyntheticSpeech(num_utterances=1, split="test"),
        lambda: SyntheticText(num_sentences=1, split="test"),
        lambda: TextFile(path="x.txt", split="test"),
    ],
)
def test_nothing_is_trained_on_a_test_split(make: object) -> None:
    with pytest.raises(ValueError, match=r"'test'.*reporting only"):
        make()  # type: ignore[operator]


def test_sentences_of_further_seeds_hold_no_name_of_dev_or_test() -> None:
    source = SyntheticText(num_sentences=1000, num_seeds=3)
    sentences = list(source.sentences())
    assert len(sentences) == 1000
    held_out = lexicon(source.corpus.seed, "dev").words | lexicon(source.corpus.seed, "test").words
    words = {word for sentence in sentences for word in sentence.split()}
    assert held_out.isdisjoint(words)
    assert len(words - lexicon(source.corpus.seed, "train").words) > 500
    assert sentences[:300] == list(source.corpus.training_sentences(300))
    with pytest.raises(ValueError, match="1 for dev"):
        SyntheticText(num_sentences=1, split="dev", num_seeds=2)


def test_texts_that_cannot_be_written_are_left_out_with_their_reason(tmp_path: Path) -> None:
    @dataclasses.dataclass(frozen=True)
    class Odd:
        def __len__(self) -> int:
            return 3

        def example(self, index: int) -> Example:
            text = ("fine", "route 66", "far too long a text for a tenth of a second")[index]
            return Example(f"odd-{index}", text, np.full(16000 if index == 0 else 1600, 0.1, np.float32))

    built = tone_task(Odd()).build(tmp_path, 0)
    assert built.names(np.arange(len(built.lengths))) == ["odd-0"]
    assert "'6'" in built.left_out["odd-1"]
    assert "output frames" in built.left_out["odd-2"]


# ---- the recipes and what they write


def shrunk(config: TrainingConfig, tmp_path: Path) -> TrainingConfig:
    """The recipe on a few examples, in small batches, for 20 steps at once at its full rate."""
    task = config.task
    if isinstance(task, LanguageModelTask):
        task = dataclasses.replace(
            task, train=SyntheticText(num_sentences=300), dev=SyntheticText(num_sentences=5, split="dev")
        )
        size = 600
    else:
        assert isinstance(task, CtcTask | JointTask)
        if isinstance(task, JointTask):  # its teacher is a run of another recipe; the shipped model is as good here
            task = dataclasses.replace(task, teacher=str(ASSETS / "ctc"))
        speech, dev = SyntheticSpeech(num_utterances=6), SyntheticSpeech(num_utterances=2, split="dev")
        task = dataclasses.replace(task, train=speech, dev=dev)
        size = 1600
    optimiser = dataclasses.replace(config.optimiser, warm_up_steps=5)
    return dataclasses.replace(
        config,
        task=task,
        num_steps=20,
        batch_size=size,
        optimiser=optimiser,
        precision="float32",
        log_every=1,
        num_threads=1,
        num_processes=0,
    )


@pytest.mark.parametrize(
    "recipe",
    [
        tiny_models.train_ctc_start,
        tiny_models.train_lm,
        tiny_models.train_lm_characters,
        tiny_models.train_attention_start,
    ],
)
def test_the_loss_of_each_recipe_falls_within_twenty_steps(recipe: object, tmp_path: Path) -> None:
    run(shrunk(recipe(), tmp_path), tmp_path)  # type: ignore[operator]
    losses = [json.loads(line)["loss"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert len(losses) == 20
    assert np.mean(losses[-3:]) < 0.93 * np.mean(losses[:3])


def test_the_command_trains_and_says_where_the_model_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = str(tmp_path / "run")
    words = ["lm", "--directory", directory, "--num-steps", "1", "--task.hidden-size", "8", "--task.num-layers", "1"]
    words += ["--task.train.num-sentences", "50", "--task.dev.num-sentences", "3", "--num-threads", "1"]
    assert train_command.train(words) == 0
    printed = capsys.readouterr().out
    assert f"{directory}/model" in printed
    assert "dev_perplexity" in printed
    with pytest.raises(
        ValueError,
        match="recipes: ctc_start, ctc, ctc_mandarin, ctc_spanish, ctc_own, lm, lm_small, lm_characters, lm_spanish",
    ):
        train_command.train(["ctcc"])


def test_a_published_ctc_model_loads_with_transformers_alone(tmp_path: Path) -> None:
    directory = run(tone_ctc(), tmp_path)
    model = AutoModelForCTC.from_pretrained(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert model.dtype == torch.float32
    assert model.config.pad_token_id == tokenizer.pad_token_id == len(tokenizer) - 1 != 0
    processor = AutoProcessor.from_pretrained(directory)
    samples = ToneSpeech(num_utterances=1).example(0).samples
    logits = model(**processor(samples, sampling_rate=16000, return_tensors="pt")).logits
    assert logits.shape[-1] == len(tokenizer)
    ids = tokenizer("hello there", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids, group_tokens=False) == "hello there"


def test_a_character_lm_writes_with_the_labels_of_the_character_recogniser() -> None:
    lm, recogniser = character_lm_tokenizer(CHARACTERS), character_tokenizer(CHARACTERS)
    text = "it's a test"
    assert lm(text)["input_ids"][0] == lm.bos_token_id
    for tokenizer in (lm, recogniser):  # no space before the first letter: a recogniser writes none there
        assert tokenizer.tokenize(text) == [letter.replace(" ", SPACE) for letter in text]
    assert lm.decode(lm(text)["input_ids"], skip_special_tokens=True) == text


def test_a_training_can_start_from_an_earlier_model(tmp_path: Path) -> None:
    fast = Optimiser(learning_rate=5e-3, warm_up_steps=3)
    first = run(tone_ctc(num_steps=30, log_every=1, optimiser=fast), tmp_path / "first")
    again = dataclasses.replace(tone_task(), initial=str(first))
    run(tone_ctc(task=again, num_steps=1, log_every=1), tmp_path / "second")
    before, after = (json.loads((tmp_path / d / "log.jsonl").read_text().splitlines()[0]) for d in ("first", "second"))
    assert after["loss"] < 0.8 * before["loss"]
    with pytest.raises(ValueError, match="not a model of this architecture"):
        dataclasses.replace(again, hidden_size=32).build(tmp_path / "third", 0)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(["aa", "ab", "b", "a", "abc"]), min_size=1, max_size=5), st.integers(0, 2**32 - 1))
def test_spread_frame_labels_collapse_to_the_tokens(words: list[str], seed: int) -> None:
    rng = np.random.default_rng(seed)
    vocabulary = ["<pad>", "\u2581", "\u2581a", "a", "b", "ab", "c"]
    pieces: list[str] = []
    for word in words:
        rest = "\u2581" + word
        while rest:
            choices = [piece for piece in vocabulary[1:] if rest.startswith(piece)]
            pieces.append(choices[rng.integers(len(choices))])
            rest = rest.removeprefix(pieces[-1])
    target = [vocabulary.index(piece) for piece in pieces]
    spans, frame, spelt = [], int(rng.integers(0, 2)), " ".join(words)
    for letter, after in zip(spelt, [*spelt[1:], ""], strict=True):
        end = frame + int(rng.integers(1, 3))
        spans.append((frame, end))
        frame = end + (1 if letter == after else int(rng.integers(0, 2)))
    starts, ends = (np.asarray(side, np.int32) for side in zip(*spans, strict=True))
    labels = aligned.spread(
        Alignment(start_frame=starts, end_frame=ends, peak_frame=starts), target, pieces, frame + 1, 2, 0
    )
    assert [token for token, _ in itertools.groupby(labels.tolist()) if token != 0] == target


def test_frame_labels_place_tokens_where_they_are_heard(tmp_path: Path) -> None:
    fast = Optimiser(learning_rate=5e-3, warm_up_steps=20)
    teacher = run(tone_ctc(num_steps=150, optimiser=fast), tmp_path / "teacher")
    spoken = features.compute(ToneSpeech(num_utterances=3), ParakeetFeatureExtractor(), tmp_path / "f", num_processes=0)
    letters = train_bpe(["abcde"], 40)
    targets = {
        n: letters(t, add_special_tokens=False)["input_ids"] for n, t in zip(spoken.names, spoken.texts, strict=True)
    }
    labels = aligned.frame_labels(str(teacher), spoken, targets, letters, 2, tmp_path / "labels.npz")
    assert labels.keys() == targets.keys()
    for name, target in targets.items():
        assert [t for t, _ in itertools.groupby(labels[name].tolist()) if t != letters.pad_token_id] == target


def joint_task(folder: Path, *, num_utterances: int) -> JointTask:
    """A tiny recogniser and the tokenizer that it writes with."""
    speech: Any = ToneSpeech(num_utterances=num_utterances)
    return JointTask(
        train=speech,
        dev=speech,
        tokenizer=str(run(small_lm(num_steps=1), folder / "lm")),
        hidden_size=12,
        num_encoder_layers=1,
        num_decoder_layers=1,
        intermediate_size=12,
        window_s=1,
    )


def test_a_joint_training_goes_on_from_an_earlier_one_and_keeps_its_head(tmp_path: Path) -> None:
    task = joint_task(tmp_path, num_utterances=2)
    first = run(tone_ctc(task=task, num_steps=1, batch_size=200), tmp_path / "first")
    recogniser = attention.load(checkpoint.resolve(str(first)))
    again = dataclasses.replace(task, initial=str(first)).build(tmp_path / "second", 0)
    assert recogniser.ctc_head is not None
    torch.testing.assert_close(again.model["ctc_head"].weight, recogniser.ctc_head.weight)
    torch.testing.assert_close(again.model["whisper"].state_dict(), recogniser.model.state_dict())
    with pytest.raises(ValueError, match="not a model of this architecture"):
        dataclasses.replace(task, initial=str(first), hidden_size=24).build(tmp_path / "third", 0)


def test_a_published_lm_begins_a_text_by_its_own_convention(tmp_path: Path) -> None:
    directory = run(small_lm(), tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory)
    assert model.dtype == torch.float32
    assert json.loads((directory / "tokenizer_config.json").read_text())["add_bos_token"] is True
    ids = tokenizer("call bob")["input_ids"]
    assert ids[0] == tokenizer.bos_token_id == model.config.bos_token_id
    assert tokenizer.eos_token_id not in ids
    assert tokenizer.convert_ids_to_tokens(ids)[1].startswith("\u2581")
    assert tokenizer(" call bob")["input_ids"] == ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "call bob"


def test_finished_runs_are_shipped_with_their_digests(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no finished training"):
        ship(tmp_path / "nothing", "lm", tmp_path)
    run(small_lm(num_steps=1), tmp_path / "run")
    (tmp_path / "assets" / "lm").mkdir(parents=True)
    (tmp_path / "assets" / "lm" / "stale.txt").write_text("old")
    ship(tmp_path / "run", "lm", tmp_path / "assets")
    known = json.loads((tmp_path / "assets" / DIGESTS).read_text())
    assert known["lm"]["files"] == digests(tmp_path / "assets" / "lm")
    assert "stale.txt" not in known["lm"]["files"]


# ---- the shipped models


SHIPPED = sorted({path.parent.name for path in ASSETS.glob("*/*config.json")})


def test_every_shipped_model_has_its_digests() -> None:
    assert {"attention", "copy_head", "ctc", "lm", "speech_llm", "speech_lm", "speech_lm_mwer"} <= set(SHIPPED)
    assert sorted(json.loads((ASSETS / DIGESTS).read_text())) == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_files_are_those_whose_digests_are_committed(name: str) -> None:
    known = json.loads((ASSETS / DIGESTS).read_text())
    assert digests(ASSETS / name) == known[name]["files"]


def test_shipped_models_take_at_most_twentyfour_megabytes() -> None:
    size = sum(p.stat().st_size for n in SHIPPED for p in (ASSETS / n).rglob("*"))
    assert size <= 24e6  # 12 for the recognisers and the LM, 5 for context, 7 for the models that hear


def test_the_shipped_attention_model_and_lm_share_one_vocabulary() -> None:
    recogniser = attention.load(checkpoint.resolve(str(ASSETS / "attention")))
    lm = AutoTokenizer.from_pretrained(ASSETS / "lm")
    assert recogniser.tokenizer.get_vocab() == lm.get_vocab()
    assert recogniser.start_id == lm.bos_token_id
    assert recogniser.eos_id == lm.eos_token_id
    assert recogniser.ctc_head is not None
    assert recogniser.ctc_head.out_features == len(lm)


def test_the_shipped_attention_model_hears_with_transformers_alone_what_it_hears_with_us() -> None:
    torch.set_num_threads(1)
    directory = ASSETS / "attention"
    samples = SyntheticSpeech(num_utterances=1, split="dev").example(0).samples
    model = AutoModelForSpeechSeq2Seq.from_pretrained(directory)
    extractor = AutoFeatureExtractor.from_pretrained(directory)
    inputs = extractor(samples, sampling_rate=16000, return_tensors="pt").input_features
    with torch.inference_mode():
        theirs = model.generate(inputs, num_beams=1, do_sample=False)
        recogniser = attention.load(checkpoint.resolve(str(directory)))
        features_BMF, _ = recogniser.features(samples)
        ours = greedy(recogniser, recogniser.encode(features_BMF), 96)
    assert AutoTokenizer.from_pretrained(directory).decode(theirs[0], skip_special_tokens=True).strip() == ours[0]


def test_a_terminal_shows_the_steps_that_workers_log_and_goes_back_where_they_start_again(tmp_path: Path) -> None:
    script = (
        "import json, sys, time, pathlib\n"
        "from ctxasr_ray.training import progress\n"
        "progress.POLL_S = 0.05\n"
        "log = pathlib.Path(sys.argv[1])\n"
        "def say(*steps):\n"
        "    log.write_text(''.join(json.dumps({'step': s, 'loss': 1 / s}) + '\\n' for s in steps))\n"
        "    time.sleep(0.4)\n"
        "with progress.follow(log, 'workers', 40):\n"
        "    time.sleep(0.2); say(10, 20, 30); say(10); say(10, 40)\n"
    )
    ours, theirs = os.openpty()
    shown = b""
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "log.jsonl")], stderr=theirs) as process:
        os.close(theirs)
        with contextlib.suppress(OSError):  # how a terminal ends
            while found := os.read(ours, 4096):
                shown += found
        os.close(ours)
    assert process.returncode == 0
    places = [shown.find(each) for each in (b"30/40", b"10/40", b"40/40")]
    assert places == sorted(places)
    assert places[0] >= 0
    assert b"loss 0.025" in shown
