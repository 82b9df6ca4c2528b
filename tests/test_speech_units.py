"""Encoder layers, k-means, the quantiser's file and the UNITS stage."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import soundfile
import torch
from safetensors.numpy import save_file
from tiny_ctc import make, noise
from tiny_seq2seq import make as make_seq2seq

from ctxasr_ray.models.checkpoint import fingerprint, resolve
from ctxasr_ray.models.speech_units import Quantiser, SpeechEncoder, fit_centroids, load_quantiser, merge_runs
from ctxasr_ray.schema import conform
from ctxasr_ray.scorers.speech_units import SpeechUnitsConfig
from ctxasr_ray.stage import Costs

torch.set_num_threads(1)


def quantiser(encoder: Path, path: Path, layer: int = 1, num_units: int = 8) -> Path:
    """Fits on two seconds of noise."""
    hidden = SpeechEncoder(resolve(str(encoder)), layer=layer).hidden(noise(3, 2.0))
    Quantiser(
        centroids=fit_centroids(hidden, num_units, seed=5),
        encoder=fingerprint(str(encoder))["model"],
        layer=layer,
        seed=5,
        num_frames=len(hidden),
    ).save(path)
    return path


def utterances(folder: Path, waves: dict[str, np.ndarray]) -> pa.Table:
    for name, wave in waves.items():
        soundfile.write(folder / f"{name}.wav", wave, 16000)
    rows = [
        {"utterance_id": n, "corpus": "made", "split": "dev", "audio_uri": str(folder / f"{n}.wav"), "start_s": 0.0}
        for n in waves
    ]
    return conform(pa.Table.from_pylist(rows), "utterances")


def units(config: SpeechUnitsConfig, table: pa.Table) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = config.build()(table, costs=Costs()).to_pylist()
    return rows


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make("parakeet-4x", tmp_path_factory.mktemp("encoder") / "ctc")


@pytest.mark.parametrize(("family", "rate"), [("parakeet-4x", 25.0), ("hubert", 50.0), ("wavlm", 50.0)])
def test_every_layer_of_an_encoder_is_what_transformers_gives(tmp_path: Path, family: str, rate: float) -> None:
    from transformers import AutoFeatureExtractor, AutoModelForCTC

    folder = make(family, tmp_path)
    samples = noise(1, 1.3)
    model = AutoModelForCTC.from_pretrained(folder).eval()
    inputs = AutoFeatureExtractor.from_pretrained(folder)([samples], sampling_rate=16000, return_tensors="pt")
    with torch.inference_mode():
        theirs = model(**inputs, output_hidden_states=True).hidden_states
    for layer in range(len(theirs)):
        ours = SpeechEncoder(resolve(str(folder)), layer=layer)
        assert ours.frame_rate_hz == rate
        hidden = ours.hidden(samples)
        assert abs(len(hidden) - 1.3 * rate) <= 2
        np.testing.assert_allclose(hidden, theirs[layer][0, : len(hidden)].numpy(), atol=1e-4)


def test_a_windowed_encoder_gives_no_frames_of_padding(tmp_path: Path) -> None:
    encoder = SpeechEncoder(resolve(str(make_seq2seq("whisper", tmp_path))), layer=1)
    samples = noise(1, 0.7)
    assert len(encoder.hidden(samples)) == np.ceil(0.7 * encoder.frame_rate_hz)
    assert encoder.limits(1000.0).max_s <= 30.0


def test_a_layer_that_the_encoder_lacks_is_refused(encoder: Path) -> None:
    with pytest.raises(ValueError, match="layer 9 is asked for, it has layers 0 to 2"):
        SpeechEncoder(resolve(str(encoder)), layer=9)


def test_centroids_find_clusters_and_repeat_themselves() -> None:
    rng = np.random.default_rng(0)
    middles = rng.normal(0, 20, (6, 4))
    hidden = (middles[rng.integers(0, 6, 600)] + rng.normal(0, 0.1, (600, 4))).astype(np.float32)
    found = fit_centroids(hidden, 6, seed=1)
    assert np.array_equal(found, fit_centroids(hidden, 6, seed=1))
    nearest = np.abs(found[:, None] - middles[None]).sum(-1).min(0)
    assert nearest.max() < 0.2


def test_no_centroid_is_left_without_frames() -> None:
    hidden = np.repeat(np.eye(5, dtype=np.float32), 20, axis=0)
    own = Quantiser(centroids=fit_centroids(hidden, 5, seed=0), encoder="e", layer=0, seed=0, num_frames=100)
    assert len(set(own.units(hidden).tolist())) == 5


@pytest.mark.parametrize(
    ("hidden", "message"),
    [(np.zeros((3, 2), np.float32), "cannot be learnt from 3 frames"), (np.full((9, 2), np.nan), "not finite")],
)
def test_unusable_frames_are_refused(hidden: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_centroids(hidden, 4, seed=0)


def test_runs_are_merged_and_add_up() -> None:
    merged, runs = merge_runs(np.asarray([4, 4, 4, 0, 4, 4], np.int32))
    assert (merged.tolist(), runs.tolist()) == ([4, 0, 4], [3, 1, 2])
    assert [len(part) for part in merge_runs(np.zeros(0, np.int32))] == [0, 0]
    assert [part.tolist() for part in merge_runs(np.zeros(2, np.int32))] == [[0], [2]]


def test_a_quantiser_is_what_was_saved_with_its_provenance(tmp_path: Path, encoder: Path) -> None:
    one = load_quantiser(quantiser(encoder, tmp_path / "one.safetensors"))
    one.save(tmp_path / "two.safetensors")
    two = load_quantiser(tmp_path / "two.safetensors")
    assert np.array_equal(one.centroids, two.centroids)
    assert (two.encoder, two.layer, two.seed) == (fingerprint(str(encoder))["model"], 1, 5)


def test_a_quantiser_of_another_encoder_is_refused(tmp_path: Path, encoder: Path) -> None:
    other = make("parakeet-8x", tmp_path / "other")
    path = quantiser(encoder, tmp_path / "units.safetensors")
    with pytest.raises(ValueError, match="units of one encoder mean nothing to another"):
        SpeechUnitsConfig(encoder=str(other), quantiser=str(path)).build()
    with pytest.raises(ValueError, match=r"width 32, the states 7"):
        load_quantiser(path).units(np.zeros((2, 7), np.float32))


def test_a_file_that_is_no_quantiser_is_refused(tmp_path: Path, encoder: Path) -> None:
    path = tmp_path / "units.safetensors"
    with pytest.raises(ValueError, match="no quantiser at"):
        load_quantiser(path)
    path.write_bytes(b"no safetensors")
    with pytest.raises(ValueError, match="cannot be read as safetensors"):
        load_quantiser(path)
    with pytest.raises(ValueError, match="is no quantiser of speech units"):
        load_quantiser(encoder / "model.safetensors")
    save_file({"centroids": np.zeros((2, 2), np.float32)}, path)
    with pytest.raises(ValueError, match="format None"):
        load_quantiser(path)


def test_units_are_a_table_whose_runs_are_the_frames(tmp_path: Path, encoder: Path) -> None:
    table = utterances(
        tmp_path, {"a": noise(1, 1.0), "b": noise(2, 0.6), "short": noise(4, 0.03), "none": noise(5, 0.0)}
    )
    path = str(quantiser(encoder, tmp_path / "units.safetensors", num_units=3))
    config = SpeechUnitsConfig(encoder=str(encoder), quantiser=path)
    merged = units(config, table)
    frames = units(SpeechUnitsConfig(encoder=str(encoder), quantiser=path, merge_runs=False), table)
    for one, other in zip(merged, frames, strict=True):
        assert np.repeat(one["units"], one["run_lengths"]).tolist() == other["units"]
        assert set(other["run_lengths"]) <= {1}
    assert len(merged[0]["units"]) < len(frames[0]["units"]) == 25
    assert {row["frame_rate_hz"] for row in merged} == {25.0}
    assert [row["error_type"] for row in merged] == [None, None, "model_limit", "audio"]
    assert "needs at least 40 ms" in str(merged[2]["error"])
    assert merged[2]["units"] == []


def test_the_identity_of_units_is_the_centroids_and_the_encoder(tmp_path: Path, encoder: Path) -> None:
    one, other = (
        SpeechUnitsConfig(
            encoder=str(encoder), quantiser=str(quantiser(encoder, tmp_path / f"{n}.safetensors", num_units=n))
        ).fingerprint()
        for n in (4, 5)
    )
    assert one["model"] == other["model"] == fingerprint(str(encoder))["model"]
    assert one["quantiser"] != other["quantiser"]
