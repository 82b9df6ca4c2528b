"""Adaptation by sound alone: no transcript reaches it, units get likelier, and what is written rescores."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ctxasr_ray.corpora import synthetic
from ctxasr_ray.corpora.synthetic import VARIANTS
from ctxasr_ray.corpora.unheard import UnheardConfig
from ctxasr_ray.experiment import asset
from ctxasr_ray.layout import line
from ctxasr_ray.models.speech_lm import QUANTISER
from ctxasr_ray.models.speech_units import load_quantiser
from ctxasr_ray.recipes.adaptation import ADAPTED, BEFORE, WAYS, trainings
from ctxasr_ray.recipes.evaluation import find
from ctxasr_ray.recipes.own_speech import train_speech_lm_adapted
from ctxasr_ray.scorers.speech_lm import SpeechLmConfig
from ctxasr_ray.training.adaptation import Adaptation, AdaptationTask
from ctxasr_ray.training.loop import run
from ctxasr_ray.training.sources import Recordings, SyntheticText

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """manifest.jsonl with transcripts, unread.jsonl without."""
    folder = tmp_path_factory.mktemp("unheard")
    rows = [
        json.loads(row)
        for row in synthetic.prepare(UnheardConfig(num_train=6, num_dev=3, num_test=0), folder).read_text().splitlines()
    ]
    unread = [{k: v for k, v in row.items() if k not in ("text", "keywords")} for row in rows]
    (folder / "unread.jsonl").write_text("".join(json.dumps(row) + "\n" for row in unread))
    return folder


def task(manifest: Path, text: SyntheticText | None = None) -> AdaptationTask:
    return AdaptationTask(
        train=Recordings(path=str(manifest)),
        dev=Recordings(path=str(manifest), split="dev"),
        initial=asset("speech_lm"),
        encoder=asset("ctc"),
        text=text,
    )


def test_what_is_learnt_from_is_the_same_without_any_transcript(corpus: Path, tmp_path: Path) -> None:
    built = [task(corpus / name).build(tmp_path / name, 0) for name in ("manifest.jsonl", "unread.jsonl")]
    everything = np.arange(6)
    batches = [one.batch(everything, np.random.default_rng(0)) for one in built]
    assert torch.equal(batches[0]["input_ids"], batches[1]["input_ids"])
    assert built[0].names(everything) == built[1].names(everything)
    with pytest.raises(ValueError, match="may not be trained on"):
        Recordings(path=str(corpus / "manifest.jsonl"), split="test")


def test_every_example_is_speech_alone_and_sentences_stand_beside_them(corpus: Path, tmp_path: Path) -> None:
    text = SyntheticText(num_sentences=4)
    built = task(corpus / "unread.jsonl", text).build(tmp_path, 0)
    assert isinstance(built, Adaptation)
    tokens = [built._written.tokenizer.convert_ids_to_tokens(own.tolist()) for own in built._sequences]
    assert [own[1] == "<speech>" for own in tokens] == [True] * 6 + [False] * 4
    assert all(own[-2:] == ["</speech>", "</s>"] and "<text>" not in own for own in tokens[:6])
    assert built._written.tokenizer.decode(built._sequences[6][1:-1]).strip() == next(text.sentences())


def test_units_get_likelier_and_what_is_written_rescores(corpus: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(
        train_speech_lm_adapted(),
        task=task(corpus / "unread.jsonl"),
        num_steps=6,
        optimiser=dataclasses.replace(train_speech_lm_adapted().optimiser, warm_up_steps=1),
        precision="float32",
        num_threads=1,
        num_processes=0,
    )
    with torch.inference_mode():
        before = config.task.build(tmp_path, 0).evaluate()
    directory = run(config, tmp_path)
    after = json.loads((tmp_path / "training.json").read_text())["figures"]
    assert after["dev_unit_perplexity"] < before["dev_unit_perplexity"]
    shipped = load_quantiser(Path(asset("speech_lm")) / QUANTISER)
    assert np.array_equal(load_quantiser(directory / QUANTISER).centroids, shipped.centroids)
    assert SpeechLmConfig(model=str(directory)).build().speech.num_units == shipped.num_units


def test_a_corpus_without_dev_recordings_is_refused_with_the_remedy(corpus: Path, tmp_path: Path) -> None:
    rows = [row for row in (corpus / "unread.jsonl").read_text().splitlines() if '"dev"' not in row]
    (corpus / "train_alone.jsonl").write_text("\n".join(rows))
    with pytest.raises(ValueError, match=r'no recording of split \'dev\'.*give some of its rows "split": "dev"'):
        task(corpus / "train_alone.jsonl").build(tmp_path, 0)


def test_an_encoder_of_another_quantiser_is_refused(corpus: Path, tmp_path: Path) -> None:
    other = dataclasses.replace(task(corpus / "unread.jsonl"), encoder=asset("attention"))
    with pytest.raises(ValueError, match="units of one encoder mean nothing to another"):
        other.build(tmp_path, 0)


def test_the_domain_speaks_in_timbres_that_no_shipped_model_has_heard() -> None:
    config = UnheardConfig()
    speakers = {split: {config.spoken(split, n).speaker_id for n in range(8)} for split in ("train", "dev", "test")}
    assert len(set.union(*speakers.values())) == 24, "a speaker belongs to one split"
    timbres = {timbre for own in config.TIMBRES.values() for timbre in own}
    assert not timbres & {timbre for own in VARIANTS.values() for timbre in own}
    assert {config.spoken("train", n).snr_db for n in range(3)} == set(config.snrs_db)


def test_the_study_rescores_before_and_after_with_what_its_trainings_write() -> None:
    laid = line(find("study_adaptation")())
    assert {f"{name}/{way}" for name in (BEFORE, *ADAPTED) for way in WAYS} < set(laid.transcripts)
    made = trainings("somewhere")
    assert list(made) == list(ADAPTED)
    plain, with_text = (config.task for config in made.values())
    assert isinstance(plain, AdaptationTask)
    assert isinstance(with_text, AdaptationTask)
    assert (plain.text, dataclasses.replace(with_text, text=None)) == (None, plain)
