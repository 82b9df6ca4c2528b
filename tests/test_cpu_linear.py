"""Linear layers through oneDNN are those of torch, for every shape, dtype and kind of layer."""

import pytest
import torch

from ctxasr_ray.models.cpu_linear import LEAST_ROWS, OneDnnLinear, multiply_in_onednn

needs_avx512 = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() != "AVX512", reason="models stay as they are without AVX-512"
)


@needs_avx512
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 7), (3, 1, 7), (2, LEAST_ROWS, 7), (400, 7), (0, 7)])
def test_a_product_in_onednn_is_that_of_torch(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(7, 5, bias=bias)
    x = torch.randn(shape)
    with torch.inference_mode():
        expected = layer(x)
        got = multiply_in_onednn(torch.nn.Sequential(layer))(x)
        strided = layer(torch.randn(7, LEAST_ROWS, 2).permute(2, 1, 0))
    assert type(layer) is OneDnnLinear
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    assert strided.shape == (2, LEAST_ROWS, 5)


@needs_avx512
def test_gradients_and_other_dtypes_are_those_of_torch() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(8, 3)
    x = torch.randn(LEAST_ROWS, 8)
    expected = torch.autograd.grad(layer(x).square().sum(), layer.weight)[0]
    multiply_in_onednn(torch.nn.Sequential(layer))
    torch.testing.assert_close(torch.autograd.grad(layer(x).square().sum(), layer.weight)[0], expected)
    half = layer.to(torch.bfloat16)
    with torch.inference_mode():
        assert half(x.to(torch.bfloat16)).dtype == torch.bfloat16


@needs_avx512
def test_layers_of_other_classes_stay() -> None:
    class Adapted(torch.nn.Linear):
        pass

    model = torch.nn.Sequential(Adapted(2, 2), torch.nn.Conv1d(2, 2, 1))
    multiply_in_onednn(model)
    assert [type(one) for one in model] == [Adapted, torch.nn.Conv1d]
