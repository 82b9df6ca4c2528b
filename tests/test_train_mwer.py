"""MWER training of a speech-text LM on the tables of an ordinary run, and the scorer on what it writes."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from test_speech_lm import saved_speech_lm

from ctxasr_ray import pipeline
from ctxasr_ray.corpora.manifest import read_corpus
from ctxasr_ray.corpora.synthetic import SyntheticConfig, prepare
from ctxasr_ray.experiment import Experiment, Rescoring, asset
from ctxasr_ray.first_pass.ctc import CtcConfig
from ctxasr_ray.models import checkpoint
from ctxasr_ray.models.speech_units import Quantiser, SpeechEncoder, fit_centroids, load_quantiser
from ctxasr_ray.scorers.speech_lm import SpeechLmConfig
from ctxasr_ray.scorers.speech_units import SpeechUnitsConfig
from ctxasr_ray.stage import Costs
from ctxasr_ray.storage.store import Store
from ctxasr_ray.training.committed_lists import CommittedLists
from ctxasr_ray.training.config import Optimiser, TrainingConfig
from ctxasr_ray.training.loop import run
from ctxasr_ray.training.mwer import MwerTask
from ctxasr_ray.training.trainable import Lora

torch.set_num_threads(1)
pytestmark = pytest.mark.slow

WEIGHT = 0.7


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random speech-text LM with its quantiser, and a run whose lists it has rescored."""
    folder = tmp_path_factory.mktemp("made")
    model, _, _ = saved_speech_lm(folder / "lm", max_position_embeddings=512)
    encoder = SpeechEncoder(checkpoint.resolve(asset("ctc")), layer=2)
    noise = (0.1 * np.random.default_rng(0).standard_normal(16000)).astype(np.float32)
    Quantiser(
        centroids=fit_centroids(encoder.hidden(noise), 7, seed=0),
        encoder=checkpoint.fingerprint(asset("ctc"))["model"],
        layer=2,
        seed=0,
        num_frames=25,
    ).save(folder / "lm" / "units.safetensors")
    units = SpeechUnitsConfig(encoder=asset("ctc"), quantiser=str(folder / "lm" / "units.safetensors"))
    rescoring = Rescoring(scorers=(SpeechLmConfig(model=model),), units=units, fixed_weights={"speech_lm": WEIGHT})
    experiment = Experiment(
        first_pass=CtcConfig(model=asset("ctc"), beam_size=10, num_hypotheses=6),
        rescorings={"rescored": rescoring},
        executor="inline",
        num_replicates=10,
    )
    corpus = prepare(SyntheticConfig(num_train=6, num_dev=2, num_test=1), folder / "corpus")
    store = Store(folder / "run")
    shards = pipeline.add_corpus(experiment, store, read_corpus(str(corpus)))
    pipeline.run(experiment, store, shards)
    return folder


def _lists(made: Path, **changes: Any) -> CommittedLists:
    return dataclasses.replace(CommittedLists(root=str(made / "run"), hypotheses="ctc-", num_hypotheses=4), **changes)


def _task(made: Path, **changes: Any) -> MwerTask:
    task = MwerTask(
        train=_lists(made),
        dev=_lists(made, split="dev"),
        initial=str(made / "lm"),
        lm_weight=WEIGHT,
        lora=Lora(rank=4, alpha=8.0),
    )
    return dataclasses.replace(task, **changes)


def test_the_score_that_is_trained_is_the_score_that_rescoring_ranks_by(made: Path) -> None:
    built = _task(made).build(made, 0)
    assert built.left_out == {} or set(built.left_out.values()) == {"its hypotheses all have the same number of errors"}
    rows = [
        row
        for path in (made / "run" / "transcripts").glob("*/synthetic-train-00000-*.parquet")
        for row in pq.read_table(path).to_pylist()
        if row["fused_scores"] is not None
    ]
    fused = {row["utterance_id"]: row["fused_scores"] for row in rows}
    everyone = np.arange(len(built.lengths))
    with torch.no_grad():
        _, scores_BH = built._scores(built.batch(everyone, np.random.default_rng(0)))
    for name, scores_H in zip(built.names(everyone), scores_BH.tolist(), strict=True):
        assert scores_H == pytest.approx(fused[name][: len(scores_H)], abs=1e-3)


def test_lists_that_the_model_cannot_read_are_left_out_and_named_where_none_is_left(made: Path, tmp_path: Path) -> None:
    saved_speech_lm(tmp_path, max_position_embeddings=32)
    with pytest.raises(ValueError, match=r"no list of split 'dev' .*2 left out \(.*the model takes 32.*give a run"):
        _task(made, initial=str(tmp_path)).build(tmp_path, 0)


def test_expected_errors_fall_and_the_scorer_takes_the_updates(made: Path, tmp_path: Path) -> None:
    config = TrainingConfig(
        name="mwer",
        task=_task(made),
        num_steps=15,
        batch_size=4000,
        optimiser=Optimiser(learning_rate=5e-3, warm_up_steps=2),
        log_every=1,
        num_threads=1,
        num_processes=0,
    )
    directory = run(config, tmp_path / "run")
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
    plain = SpeechLmConfig(model=str(made / "lm"))
    tuned = dataclasses.replace(plain, adapter=str(directory))
    assert tuned.fingerprint() != plain.fingerprint()
    (hypotheses,) = (made / "run" / "hypotheses").glob("ctc-*/synthetic-dev-*.parquet")
    (units,) = (made / "run" / "units").glob("*/synthetic-dev-*.parquet")
    tables = pq.read_table(hypotheses), pq.read_table(units)
    before, after = (c.build()(*tables, costs=Costs())["sources"].to_pylist() for c in (plain, tuned))
    assert before != after


def test_units_of_another_quantiser_than_the_one_beside_the_model_are_refused(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "lm", tmp_path / "lm")
    own = load_quantiser(tmp_path / "lm" / "units.safetensors")
    dataclasses.replace(own, centroids=own.centroids[::-1].copy()).save(tmp_path / "lm" / "units.safetensors")
    with pytest.raises(ValueError, match=r"lm/units\.safetensors.*made with the quantiser of run folder .*made"):
        _task(made, initial=str(tmp_path / "lm")).build(tmp_path, 0)


def test_lists_without_a_choice_are_left_out_with_their_reason(made: Path) -> None:
    kept, left_out = _lists(made, num_hypotheses=2).read()
    assert len(kept) + len(left_out) == 6
    assert set(left_out.values()) <= {"its hypotheses all have the same number of errors"}
    assert all(len(set(example.errors.tolist())) > 1 for example in kept)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "test"}, "may not be trained on"),
        ({"num_hypotheses": 1}, "at least 2"),
        ({"hypotheses": "whisper-"}, r"expected one folder of hypotheses named 'whisper-\*', got none"),
    ],
)
def test_what_cannot_be_learnt_from_is_refused(made: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _lists(made, **changes).read()
