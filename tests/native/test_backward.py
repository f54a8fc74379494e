"""The backward of native matrices: by the input, by every field, tile by tile, with nothing kept."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.backends.gguf.files import random_blocks
from tests.kernels.packed import MATRICES
from tests.toy import toy_layer
from zoquant.backends.gguf.blocks import CODECS
from zoquant.native import DenseWeight, PackedWeight, QuantEmbedding, QuantLinear, QuantWeight, packed
from zoquant.native.packed import Rows

BLOCKS = [name for name, codec in CODECS.items() if codec.fields]


def blocks(name: str, *, order: bool = False) -> QuantWeight:
    codec = CODECS[name]
    codes, values = codec.split(torch.from_numpy(random_blocks(codec, 24, 2)))
    return QuantWeight(codec, codes, values, torch.randperm(24) if order else None)


def moved(weight: PackedWeight) -> dict[str, Tensor]:
    """Let all fields move, and return what collects their gradients."""
    leaves = {field.name: torch.zeros(weight.value(field.name).shape).requires_grad_() for field in weight.fields}
    weight.moving = leaves
    return leaves


def by_autograd(weight: PackedWeight, rows: Rows, gradient: Tensor) -> dict[str, Tensor]:
    """Return the gradients by autograd through the torch code that decodes some rows."""
    found = {field.name: torch.zeros(weight.value(field.name).shape) for field in weight.fields}
    PackedWeight.add_field_gradients(weight, rows, gradient, found)
    return found


MAKERS: dict[str, Callable[[], PackedWeight]] = {
    **MATRICES,
    **{name: lambda name=name: blocks(name) for name in BLOCKS},  # type: ignore[misc]
    "rows in another order": lambda: blocks("Q4_1", order=True),
    "dense": lambda: DenseWeight(torch.randn(24, 64).bfloat16()),
}


@pytest.mark.parametrize("tile", [1, 1000, 1 << 20])
@pytest.mark.parametrize("name", MAKERS)
def test_gradients_are_those_of_a_dense_copy(name: str, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "TILE", tile)
    torch.manual_seed(0)
    weight = MAKERS[name]()
    dense = weight.dequantize().double().requires_grad_()
    x, asked = torch.randn(5, weight.columns), torch.randn(5, weight.rows)
    copied = x.double().requires_grad_()
    ((copied @ dense.t()) * asked).sum().backward()  # type: ignore[no-untyped-call]
    assert dense.grad is not None
    expected = by_autograd(weight, slice(0, weight.rows), dense.grad.float())
    leaves = moved(weight)
    x.requires_grad_()
    (QuantLinear(weight, compute_dtype=torch.float32)(x) * asked).sum().backward()
    torch.testing.assert_close(x.grad, copied.grad, check_dtype=False, rtol=1e-4, atol=1e-4)
    for key, leaf in leaves.items():
        assert leaf.grad is not None
        error = (leaf.grad - expected[key]).norm() / expected[key].norm()
        assert error < 1e-4, (key, error)


@pytest.mark.parametrize("name", MAKERS)
def test_autograd_through_the_decoder_is_a_difference(name: str) -> None:
    """Weights are linear in a field: along any direction they change by what the gradient says, to rounding."""
    torch.manual_seed(0)
    weight = MAKERS[name]().float()
    gradient = torch.randn(weight.rows, weight.columns)
    for field, found in by_autograd(weight, slice(0, weight.rows), gradient).items():
        value = weight.value(field)
        before, step = value.clone(), torch.randn(value.shape) * value.float().abs().mean() * 0.05
        sides = []
        for sign in (1, -1):
            value.copy_(before + sign * step)
            sides.append(float((weight.dequantize().double() * gradient).sum()))
        value.copy_(before)
        expected = 2 * float((found.double() * step).sum())
        assert abs(sides[0] - sides[1] - expected) < 5e-3 * float((2 * found * step).norm()), field


@pytest.mark.parametrize("name", ["Q4_1", "rows in another order", "gptq", "nf4", "dense"])
def test_rows_and_lookups(name: str) -> None:
    torch.manual_seed(0)
    maker = MAKERS.get(name, next(make for key, make in MAKERS.items() if key.startswith(name)))
    weight = maker()
    some = torch.tensor([3, 0, 3, 22])
    x, asked = torch.randn(2, 3, weight.columns, requires_grad=True), torch.randn(2, 3, 4)
    leaves = moved(weight)
    layer = QuantLinear(weight, torch.randn(weight.rows), compute_dtype=torch.float32)
    (layer.rows(x, some) * asked).sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    torch.testing.assert_close(x.grad, asked @ weight.dequantize()[some], rtol=1e-4, atol=1e-4)
    by_rows = by_autograd(weight, some, asked.flatten(0, 1).t() @ x.detach().flatten(0, 1))
    for key, leaf in leaves.items():
        torch.testing.assert_close(leaf.grad, by_rows[key], rtol=1e-3, atol=1e-4)
        leaf.grad = None
    asked = torch.randn(2, 2, weight.columns)
    (QuantEmbedding(weight, scale=3.0)(some.view(2, 2)) * asked).sum().backward()
    by_ids = by_autograd(weight, some, 3.0 * asked.flatten(0, 1))
    for key, leaf in leaves.items():
        torch.testing.assert_close(leaf.grad, by_ids[key], rtol=1e-3, atol=1e-4)


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_any_shape_in_bfloat16(data: st.DataObject) -> None:
    rows, groups, tokens = (data.draw(st.integers(1, 9)) for _ in range(3))
    layer = toy_layer(data.draw(st.integers(0, 9)), rows=rows, groups=groups)
    layer.compute_dtype = torch.bfloat16
    leaves = moved(layer.packed)
    x, asked = torch.randn(tokens, 4 * groups), torch.randn(tokens, rows)
    (layer(x.requires_grad_()) * asked).sum().backward()
    expected = by_autograd(layer.packed, slice(0, rows), asked.t() @ x.detach())
    for key, leaf in leaves.items():
        assert leaf.grad is not None
        assert (leaf.grad - expected[key]).norm() <= 0.05 * expected[key].norm() + 1e-3


def test_what_is_kept_for_the_backward_is_the_input_alone() -> None:
    layer, x = toy_layer(rows=24, groups=3), torch.randn(5, 12, requires_grad=True)
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer(x)
        assert not kept  # the input, too, is only needed where a field moves
        moved(layer.packed)
        layer(x)
    assert [tensor.shape for tensor in kept] == [x.shape]
    assert kept[0].data_ptr() == x.data_ptr()


def test_a_layer_below_everything_that_moves_has_no_backward() -> None:
    layer, x = toy_layer(), torch.randn(2, 8)
    assert not layer(x).requires_grad
    moved(layer.packed)
    assert layer(x).requires_grad
    with torch.no_grad():
        assert not layer(x).requires_grad


def test_the_forward_has_the_same_bits() -> None:
    torch.manual_seed(0)
    for make in MAKERS.values():
        weight = make()
        layer, x = QuantLinear(weight, compute_dtype=torch.float32), torch.randn(3, weight.columns)
        expected = layer(x)
        moved(weight)
        assert torch.equal(layer(x.requires_grad_()), expected)
