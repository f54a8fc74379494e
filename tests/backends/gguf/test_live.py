"""diffusers' GGUF layers: every type that diffusers computes, and weights that are no packed blocks."""

from typing import Any

import gguf
import pytest
import torch
from torch import Tensor, nn

from tests.backends.gguf.samples import gguf_linear
from zoquant import attach
from zoquant.backends.gguf.blocks import CODECS
from zoquant.backends.gguf.live import GGUFLinearBackend
from zoquant.errors import UnsupportedLayoutError
from zoquant.testing import check_backend
from zoquant.testing.tensors import same_bits

utils = pytest.importorskip("diffusers.quantizers.gguf.utils", reason="diffusers is not installed")
KINDS = [kind.name for kind in utils.SUPPORTED_GGUF_QUANT_TYPES if kind.name != "BF16"]


def by_the_reader(layer: Any) -> Tensor:
    """Return the weight as the `gguf` package dequantizes the layer's bytes."""
    return torch.from_numpy(gguf.quants.dequantize(layer.weight.as_tensor().numpy(), layer.weight.quant_type))


@pytest.mark.parametrize("kind", KINDS)
def test_every_type(kind: str) -> None:
    layer, backend = gguf_linear(kind), GGUFLinearBackend()
    before = layer.weight.as_tensor().clone()
    views = attach(nn.ModuleDict({"a": layer}))
    assert [view.name for view in views] == [f"a.{field.name}" for field in CODECS[kind].fields]
    assert all(view.shape == (12, 2) and view.dtype == torch.float16 for view in views)
    views.add(1, 0.25, "rademacher")
    views.write()
    torch.testing.assert_close(backend.dequantize(layer), by_the_reader(layer), rtol=1e-5, atol=1e-7)
    with torch.no_grad():
        x = backend.sample_input(layer)
        expected = x @ by_the_reader(layer).t() + layer.bias
        assert (layer(x) - expected).norm() < 1e-3 * expected.norm()
    views.reset()
    assert torch.equal(layer.weight.as_tensor(), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["Q4_1", "Q6_K", "Q8_0"])
def test_conforms(kind: str, dtype: torch.dtype) -> None:
    check_backend(lambda: gguf_linear(kind, dtype=dtype), steps=20)


def test_grids_scale_the_matrix() -> None:
    layer, backend = gguf_linear("Q5_1"), GGUFLinearBackend()
    before, grids = backend.dequantize(layer), backend.grids(layer)
    assert set(grids) == {"d", "m"}
    factors = torch.linspace(0.5, 2.0, 24).view(12, 2)
    for view in backend.open(layer):
        view.write(view.read() * factors)
    grid = grids["d"]
    expected = before * factors[grid.rows][:, grid.columns]
    assert (backend.dequantize(layer) - expected).norm() < 1e-3 * expected.norm()


def test_a_weight_of_bfloat16_is_plain() -> None:
    layer = gguf_linear()
    numbers = torch.randn(12, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    layer.weight = utils.GGUFParameter(numbers.clone().view(torch.uint8), quant_type=gguf.GGMLQuantizationType.BF16)
    view = attach(nn.ModuleDict({"a": layer}), roles=("dense",), exclude="*.bias")[0]
    assert (view.name, view.shape, view.dtype) == ("a.weight", (12, 64), torch.bfloat16)
    assert same_bits(view.read(), numbers.float())
    view.write(view.read() * 2)
    x = torch.ones(1, 64)
    with torch.no_grad():
        torch.testing.assert_close(layer(x) - layer.bias, x @ (numbers.float() * 2).t(), rtol=1e-4, atol=1e-4)
    assert same_bits(GGUFLinearBackend().dequantize(layer), numbers.float() * 2)


def test_what_is_no_packed_weight_is_refused() -> None:
    layer = gguf_linear()
    layer.weight = nn.Parameter(torch.zeros(12, 64))
    with pytest.raises(
        UnsupportedLayoutError, match=r"a \(gguf-diffusers\): the weight of GGUFLinear is a Parameter of torch\.float32"
    ):
        attach(nn.ModuleDict({"a": layer}))


def test_an_unknown_type_is_refused() -> None:
    layer = gguf_linear()
    layer.weight.quant_type = gguf.GGMLQuantizationType.Q8_K
    with pytest.raises(
        UnsupportedLayoutError, match=r"a \(gguf-diffusers\): blocks of type Q8_K, expected one of Q4_0"
    ):
        attach(nn.ModuleDict({"a": layer}))
