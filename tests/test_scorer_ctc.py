"""Forced CTC scores: what the first pass says, what torch says, any spelling, and reasons where there is none."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import soundfile
import tiny_ctc
import torch

from ctxasr_ray.first_pass.ctc import CtcConfig
from ctxasr_ray.models.checkpoint import resolve
from ctxasr_ray.models.ctc import CtcModel
from ctxasr_ray.nbest import Hypothesis, NBest, hypotheses_table, score_matrix
from ctxasr_ray.schema import TABLES
from ctxasr_ray.scorers.ctc import CtcScorerConfig
from ctxasr_ray.stage import Costs, StageConfig, identity

torch.set_num_threads(1)
CAPITALS = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ'"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_ctc.make("parakeet-4x", tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("audio")
    paths = [str(folder / f"{n}.wav") for n in range(3)]
    for n, path in enumerate(paths):
        soundfile.write(path, tiny_ctc.noise(n, 0.6 + 0.3 * n), 16000)
    return paths


def utterances(paths: list[str]) -> pa.Table:
    rows = [
        {"utterance_id": f"u{n}", "audio_uri": path, "start_s": 0.0, "duration_s": None, "channel": None}
        for n, path in enumerate(paths)
    ]
    schema = TABLES["utterances"]
    return pa.Table.from_pylist(rows, schema=pa.schema([schema.field(name) for name in rows[0]]))


def lists(*texts: list[str]) -> pa.Table:
    return hypotheses_table(
        [NBest(utterance_id=f"u{n}", hypotheses=[Hypothesis(text=text) for text in own]) for n, own in enumerate(texts)]
    )


def scored(config: CtcScorerConfig, paths: list[str], *texts: list[str]) -> tuple[list[dict[str, Any]], Costs]:
    costs = Costs()
    rows = config.build()(utterances(paths), lists(*texts), costs=costs).to_pylist()
    return [row["sources"][0] for row in rows], costs


def test_scores_are_those_of_torch(model: str, recordings: list[str]) -> None:
    texts = ["call anna", "a", "", "bill's"]
    rows, costs = scored(CtcScorerConfig(model=model), recordings[:2], texts, texts[:1])
    recogniser = CtcModel(resolve(model))
    for row, path, own in zip(rows, recordings, (texts, texts[:1]), strict=False):
        log_probs = torch.from_numpy(recogniser.log_probs([soundfile.read(path, dtype="float32")[0]])[0]).double()
        for text, value in zip(own, row["log_probs"], strict=True):
            labels = torch.tensor([[tiny_ctc.LETTERS.index(c) for c in text.replace(" ", "|")]], dtype=torch.int64)
            loss = torch.nn.functional.ctc_loss(
                log_probs[:, None], labels, torch.tensor([len(log_probs)]), torch.tensor([len(text)]), reduction="none"
            )
            assert value == pytest.approx(-float(loss), abs=1e-4)
    assert rows[0]["num_tokens"] == [9, 1, 0, 6]
    assert rows[0]["eos_log_probs"] is None
    assert costs.counters["forwards"] == 1


def test_the_first_pass_is_scored_as_it_scores_itself(model: str, recordings: list[str]) -> None:
    first_pass = CtcConfig(model=model, beam_size=8, num_hypotheses=8, source="search")
    table = utterances(recordings)
    hypotheses = first_pass.build()(table, costs=Costs())
    scores = CtcScorerConfig(model=model).build()(table, hypotheses, costs=Costs())
    matrix = score_matrix(hypotheses, [scores])
    assert matrix.sources == ["search", "ctc"]
    own = [h for row in hypotheses["hypotheses"].to_pylist() for h in row]
    spelling = CtcModel(resolve(model)).spelling
    compared = 0
    for value, h in zip(matrix.values, own, strict=True):
        (labels,) = spelling.labels([h["text"]])
        assert labels is not None
        if labels.tolist() == h["token_ids"]:
            assert value[0] == pytest.approx(value[1], abs=1e-3)
            compared += 1
    assert compared > 4


def test_case_follows_the_model(tmp_path: Path, recordings: list[str]) -> None:
    small = str(tiny_ctc.make("parakeet-4x", tmp_path / "small"))
    capital = str(tiny_ctc.make("parakeet-4x", tmp_path / "capital"))
    tiny_ctc.save_letters(Path(capital), CAPITALS)
    texts = ["Call  Anna", "call anna", "CALL ANNA"]
    for model in (small, capital):
        rows, costs = scored(CtcScorerConfig(model=model), recordings[:1], texts)
        assert rows[0]["log_probs"][0] is not None
        assert len(set(rows[0]["log_probs"])) == 1
        assert costs.counters["texts_scored"] == 1, "equal spellings are scored once"
    both = [*tiny_ctc.LETTERS[:5], *"abcdefghijklnABCDEFGHIJKLN'"]
    tiny_ctc.save_letters(Path(small), both)
    rows, _ = scored(CtcScorerConfig(model=small), recordings[:1], texts)
    assert len(set(rows[0]["log_probs"])) == 3, "a vocabulary of both cases takes texts as they stand"


def test_what_cannot_be_scored_has_a_reason_and_is_never_minus_infinity(
    model: str, recordings: list[str], tmp_path: Path
) -> None:
    (tmp_path / "broken.wav").write_bytes(b"no audio")
    texts = ["call anna", "call <s>", "call|anna", "caf\u00e9", "2 cats", "ab" * 40]
    rows, _ = scored(CtcScorerConfig(model=model), [recordings[0], str(tmp_path / "broken.wav")], texts, texts[:2])
    assert [value is None for value in rows[0]["log_probs"]] == [False, True, True, True, True, True]
    assert rows[0]["reasons"][0] is None
    assert rows[0]["reasons"][3] == "text: the model's vocabulary cannot spell 'caf\u00e9'"
    assert rows[0]["reasons"][5].startswith("model_limit: text needs at least 80 frames")
    assert rows[1]["log_probs"] == [None, None]
    assert all("broken.wav" in reason for reason in rows[1]["reasons"])


def test_a_normaliser_lets_a_model_without_punctuation_score_a_text_with_it(model: str, recordings: list[str]) -> None:
    texts = ["Call Anna, at noon.", "call anna at noon"]
    raw, _ = scored(CtcScorerConfig(model=model), recordings[:1], texts)
    basic, _ = scored(CtcScorerConfig(model=model, normaliser="basic"), recordings[:1], texts)
    assert raw[0]["log_probs"][0] is None
    assert basic[0]["log_probs"] == [raw[0]["log_probs"][1]] * 2


def test_the_identity_is_what_changes_numbers(model: str) -> None:
    config = CtcScorerConfig(model=model)
    assert isinstance(config, StageConfig)
    assert identity(config) == identity(CtcScorerConfig(model="elsewhere", batch_size=1, device="cpu"))
    assert identity(config) != identity(CtcScorerConfig(model=model, normaliser="basic"))
    assert config.fingerprint()["normaliser"] == "none.v1"
    with pytest.raises(ValueError, match="normaliser 'loud' is unknown"):
        CtcScorerConfig(model=model, normaliser="loud")


def test_batches_do_not_change_scores(model: str, recordings: list[str]) -> None:
    texts = [["call", "anna"], ["noon"], ["a", "b", "c"]]
    one, other = (scored(CtcScorerConfig(model=model, batch_size=n), recordings, *texts)[0] for n in (1, 3))
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a["log_probs"], b["log_probs"], atol=1e-3)
