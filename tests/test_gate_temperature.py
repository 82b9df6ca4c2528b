"""The temperature at which a recogniser is as sure as it is right."""

from pathlib import Path

import numpy as np
import pytest
import tiny_seq2seq
import torch
from test_first_pass_attention import recordings, utterances  # noqa: F401  (fixture)
from test_label_synchronous import whole

from ctxasr_ray import audio
from ctxasr_ray.first_pass.attention import AttentionConfig
from ctxasr_ray.first_pass.gate_temperature import (
    TEMPERATURES,
    GateTemperatureConfig,
    balanced,
    confidences,
)
from ctxasr_ray.models.checkpoint import resolve
from ctxasr_ray.models.seq2seq import Seq2SeqModel
from ctxasr_ray.stage import Costs, StageConfig

torch.set_num_threads(1)


@pytest.mark.parametrize("true", [0.4, 1.0, 2.5])
def test_a_model_that_is_too_sure_or_not_sure_enough_gets_its_temperature(true: float) -> None:
    torch.manual_seed(0)
    logits = 4 * torch.randn(20_000, 12)
    said = (logits / true).softmax(-1).multinomial(1)[:, 0]
    accuracy = float((logits.argmax(-1) == said).double().mean())
    assert balanced(confidences(logits).mean(axis=0), accuracy) == pytest.approx(true, rel=0.05)


def test_what_no_temperature_gives_is_the_nearest_end() -> None:
    confidence = confidences(torch.tensor([[4.0, 0.0, 0.0]])).mean(axis=0)
    assert (np.diff(confidence) < 0).sum() >= len(TEMPERATURES) - 20, "falls, but for what is rounded to 1"
    assert balanced(confidence, 0.1) == pytest.approx(10.0)
    assert balanced(confidence, 1.0) <= 0.4


def test_the_fit_is_where_confidence_of_a_whole_pass_equals_accuracy(
    tmp_path: Path,
    recordings: list[str],  # noqa: F811
) -> None:
    made = tiny_seq2seq.make("whisper", tmp_path, ends_like="o")
    texts = ["oo dab", "o", None, "gaff oo", "lost"]
    table = utterances([*recordings, "nowhere.wav"], reference=texts, split=["dev"] * 5)
    config = GateTemperatureConfig(first_pass=AttentionConfig(model=str(made)))
    assert isinstance(config, StageConfig)
    costs = Costs()
    (row,) = config.build()(table, costs=costs).to_pylist()
    values = dict(row["values"])
    assert costs.counters == {"tokens": 17, "utterances_left_out": 2}
    model = Seq2SeqModel(resolve(str(made)))
    prompt, sure, right = model.tokens.prompt(None).tolist(), [], []
    for path, text in zip(recordings, texts, strict=False):
        if text is None:
            continue
        tokens = model.tokens.encode([text])[0].tolist()
        logits = whole(model, model.encode([audio.load(path)])[0], [*prompt, *tokens])[len(prompt) - 1 :]
        sure += (logits.double() / values["temperature"]).softmax(-1).amax(-1).tolist()
        right += (logits.argmax(-1) == torch.tensor([*tokens, tiny_seq2seq.END])).tolist()
    assert values["accuracy"] == pytest.approx(np.mean(right))
    assert 0.1 < values["temperature"] < 10
    assert np.mean(sure) == pytest.approx(values["accuracy"], abs=2e-3)
    assert row["objective_value"] == pytest.approx(values["accuracy"], abs=1e-6)


def test_test_is_never_fitted_on(tmp_path: Path, recordings: list[str]) -> None:  # noqa: F811
    made = tiny_seq2seq.make("whisper", tmp_path)
    with pytest.raises(ValueError, match="never on what is reported"):
        GateTemperatureConfig(first_pass=AttentionConfig(model=str(made)), splits=("test",))
    built = GateTemperatureConfig(first_pass=AttentionConfig(model=str(made))).build()
    with pytest.raises(ValueError, match=r"rows of the splits \['test'\]"):
        built(utterances(recordings, reference=["a"] * 4, split=["dev", "test", "dev", "dev"]), costs=Costs())
    with pytest.raises(ValueError, match="no utterance has usable audio"):
        built(utterances(recordings, reference=[None] * 4, split=["dev"] * 4), costs=Costs())
