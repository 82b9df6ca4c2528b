"""Weights of 8 bits: a layer is that of its rounded weights, and what a model scores depends on no neighbour."""

import dataclasses

import numpy as np
import pytest
import torch
from test_scorer_causal_lm import llama
from torch import nn

from ctxasr_ray.experiment import asset
from ctxasr_ray.first_pass.ctc import CtcConfig
from ctxasr_ray.first_pass.speech_llm import SpeechLlmConfig
from ctxasr_ray.models.int8_linear import BLOCK_BYTES, FEW_ROWS, Int8Linear, round_weights
from ctxasr_ray.models.list_trees import ScoreRequest
from ctxasr_ray.scorers.speech_lm import SpeechLmConfig
from ctxasr_ray.stage import identity
from ctxasr_ray.training.trainable import Lora

torch.set_num_threads(1)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(7,), (FEW_ROWS, 7), (2, FEW_ROWS, 7), (0, 7), (3, 0, 7)])
def test_a_layer_is_that_of_its_weights_rounded_to_255_steps(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(7, 5, bias=bias)
    with torch.inference_mode():
        layer.weight[1] = 0.0
        steps_O = layer.weight.abs().amax(1, keepdim=True) / 127
        rounded_OD = torch.where(steps_O > 0, steps_O * (layer.weight / steps_O).round(), 0.0)
        x = torch.randn(shape)
        got = Int8Linear(layer)(x)
    torch.testing.assert_close(got, nn.functional.linear(x, rounded_OD, layer.bias), rtol=1e-5, atol=1e-6)
    assert (rounded_OD - layer.weight).abs().max() <= steps_O.max() / 2


def test_a_layer_that_is_written_out_in_blocks_gives_what_one_row_gives() -> None:
    torch.manual_seed(0)
    inputs = 300
    layer = Int8Linear(nn.Linear(inputs, BLOCK_BYTES // (4 * inputs) * 2 + 5))
    x = torch.randn(FEW_ROWS + 1, inputs)
    with torch.inference_mode():
        one_by_one = torch.cat([layer(row[None]) for row in x])
        torch.testing.assert_close(layer(x), one_by_one, rtol=1e-5, atol=1e-5)


def requests(width: int) -> list[ScoreRequest]:
    """Lists behind prefixes of several lengths."""
    rng = np.random.default_rng(0)
    drawn = [[rng.integers(5, width, size=n).astype(np.int32) for n in (9, 14, 20)] for _ in range(6)]
    return [ScoreRequest(rng.integers(5, width, size=4 * n).astype(np.int32), own) for n, own in enumerate(drawn)]


def test_scores_of_the_shipped_model_are_near_float32_and_depend_on_no_neighbour() -> None:
    whole, rounded = (SpeechLmConfig(model=asset("speech_lm"), dtype=dtype).build() for dtype in ("float32", "int8"))
    layers = [type(m) for m in rounded.lm.model.modules()]
    assert layers.count(Int8Linear) == 7 * rounded.lm.model.config.num_hidden_layers, "all but the head"
    lists = requests(400)
    together = rounded.lm.score(lists)
    for request, own, near in zip(lists, together, whole.lm.score(lists), strict=True):
        alone = [rounded.lm.score([ScoreRequest(request.prefix, [text])])[0].log_probs[0] for text in request.sequences]
        np.testing.assert_allclose(own.log_probs, alone, atol=1e-4)
        lengths = np.asarray([len(text) for text in request.sequences])
        assert (np.abs(own.log_probs - near.log_probs) < 0.25 * lengths).all()
        assert (np.abs(own.log_probs - near.log_probs) > 1e-3).any(), "nothing was rounded"


def test_low_rank_updates_and_the_head_stay_in_float32() -> None:
    model = Lora(rank=2, alpha=8.0).around(llama(40))
    round_weights(model)
    linear = {name.rsplit(".", 2)[1] for name, m in model.named_modules() if type(m) is nn.Linear}
    assert linear == {"model", "lora_A", "lora_B"}  # base_model.model.lm_head
    assert {name.rsplit(".", 1)[1] for name, m in model.named_modules() if type(m) is Int8Linear} == {"base_layer"}


def test_what_int8_is_not_for_is_refused() -> None:
    with pytest.raises(ValueError, match="dtype is 'int8'; expected one of float32, bfloat16, float16"):
        CtcConfig(model=asset("ctc"), dtype="int8")
    with pytest.raises(ValueError, match="int8 is for CPUs"):
        round_weights(llama(40).to("meta"))
    with pytest.raises(ValueError, match="no linear layers to round"):
        round_weights(_Convolved())


class _Convolved(nn.Module):
    """As GPT-2, whose layers are no linear ones."""

    def get_output_embeddings(self) -> None:
        """It has none."""


def test_an_llm_recogniser_writes_with_rounded_weights_under_a_hash_of_its_own() -> None:
    whole = SpeechLlmConfig(model=asset("speech_llm"))
    config = dataclasses.replace(whole, dtype="int8")
    assert identity(config) == {**identity(whole), "dtype": "int8"}
    model, plain = config.load(), whole.load()
    samples = np.random.default_rng(0).standard_normal(16000).astype(np.float32)
    assert torch.equal(model.prefix(samples), plain.prefix(samples)), "encoder and adapter are as they were"
    text = np.asarray([20, 30, 40], np.int32)
    scores = [one.lm.score([ScoreRequest(one.prefix(samples), [text])])[0].log_probs[0] for one in (model, plain)]
    assert 0 < abs(scores[0] - scores[1]) < 1.0
