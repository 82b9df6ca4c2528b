"""Training of the copy head: speech of several seeds, states that are read once, kinds of names that are left out."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ctxasr_ray.corpora.sentences import lexicon
from ctxasr_ray.corpora.synthetic import SyntheticConfig
from ctxasr_ray.models.copy_head import load
from ctxasr_ray.recipes.tiny_models import ATTENTION, LM
from ctxasr_ray.training.assets import ASSETS
from ctxasr_ray.training.config import Optimiser, TrainingConfig
from ctxasr_ray.training.copy import CopyTask
from ctxasr_ray.training.loop import run
from ctxasr_ray.training.sources import SyntheticSpeech

torch.set_num_threads(1)
SPEECH = SyntheticSpeech(num_utterances=6, corpus=SyntheticConfig(seed=100), num_seeds=2)


def task(directory: Path, **changes: Any) -> CopyTask:
    speech = {"train": SPEECH, "dev": SyntheticSpeech(num_utterances=2, split="dev")}
    return CopyTask(**{**speech, "recogniser": ATTENTION, "lm": LM, "states_directory": str(directory), **changes})


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("states")
    task(directory).build(directory, 0)
    return directory


def test_utterances_of_several_seeds_are_those_of_each_one() -> None:
    for index, (seed, number) in enumerate([(100, 0), (100, 1), (100, 2), (101, 0), (101, 1), (101, 2)]):
        own = SyntheticConfig(seed=seed)
        assert SPEECH.sentence(index) == own.sentence("train", number)
        assert SPEECH.example(index).name == f"seed-{seed}/{own.spoken('train', number).utterance_id}"
        np.testing.assert_array_equal(SPEECH.example(index).samples, own.spoken("train", number).samples)
    with pytest.raises(ValueError, match="num_seeds is 4, num_utterances 6"):
        SyntheticSpeech(num_utterances=6, num_seeds=4)


def test_states_are_read_once_and_those_of_other_settings_apart(states: Path) -> None:
    files = {path: path.stat().st_mtime_ns for path in states.rglob("states-*/*.npz")}
    assert len(files) == 2  # train and dev
    first, again = (task(states).build(states, 0) for _ in range(2))
    assert {path: path.stat().st_mtime_ns for path in states.rglob("states-*/*.npz")} == files
    batches = [one.batch(np.arange(4), np.random.default_rng(3)) for one in (first, again)]
    for name, tensor in batches[0].items():
        torch.testing.assert_close(tensor, batches[1][name])
    task(states, wrong_tokens=0.5).build(states, 0)
    assert len(list(states.rglob("states-*/*.npz"))) == 4


def test_a_kind_that_is_left_out_is_neither_spoken_nor_listed_and_says_so(states: Path) -> None:
    whole, without = task(states).build(states, 0), task(states, without_kinds=("surname", "first")).build(states, 0)
    people = {w for seed in (100, 101) for kind in ("surname", "first") for w in lexicon(seed, "train").names[kind]}
    spoken = [not people.isdisjoint(SPEECH.sentence(i).text.split()) for i in range(6)]
    assert len(whole.lengths) == 6
    assert 0 < sum(spoken) < 6
    assert len(without.lengths) == 6 - sum(spoken)
    assert set(without.left_out.values()) == {"a name of a kind that is left out is spoken in it"}
    assert set(without.left_out) == {SPEECH.example(i).name for i, said in enumerate(spoken) if said}


def test_a_recogniser_without_a_ctc_head_is_refused_in_words(states: Path, tmp_path: Path) -> None:
    headless = shutil.copytree(ATTENTION, tmp_path / "headless", ignore=shutil.ignore_patterns("ctc_head*"))
    with pytest.raises(ValueError, match="headless' has no CTC head"):
        task(states, recogniser=str(headless)).build(states, 0)


def test_a_few_steps_lower_the_loss_and_the_recognisers_ctc_head_stays(states: Path, tmp_path: Path) -> None:
    config = TrainingConfig(
        name="copy_head",
        task=task(states),
        num_steps=12,
        batch_size=2000,
        optimiser=Optimiser(learning_rate=2e-3, warm_up_steps=1),
        log_every=4,
        num_threads=1,
        num_processes=0,
    )
    head = load(run(config, tmp_path))
    losses = [float(line.split('"loss": ')[1].split(",")[0]) for line in (tmp_path / "log.jsonl").open()]
    assert losses[-1] < 0.7 * losses[0]
    built = config.task.build(states, 0).model
    torch.testing.assert_close(head.ctc.weight, built.ctc.weight, atol=1e-3, rtol=1e-3)


def test_the_shipped_copy_head_leaves_room_for_the_mandarin_recogniser() -> None:
    assert sum(path.stat().st_size for path in (ASSETS / "copy_head").iterdir()) <= 1_450_000
