"""zoquant's own layers: what they compute, in every mode and order."""

import copy
from collections.abc import Callable

import pytest
import torch

from tests.operators import Operators
from tests.toy import ToyCodec, toy_layer
from zoquant.backends.awq.layout import gemv_zeros
from zoquant.backends.bitsandbytes.quant_state import QuantState
from zoquant.backends.bitsandbytes.weights import NestedAbsmax
from zoquant.backends.hqq.weights import QuantizedValues, striped
from zoquant.errors import ShapeError
from zoquant.native import FieldSpec, QuantEmbedding, QuantLinear, QuantWeight, Values, packed
from zoquant.native.numbers import _strides, numbers_of
from zoquant.native.packed_rows import PackedRows, of_first_row
from zoquant.native.values import GroupLookup, flat_groups, tall_groups


def dense(layer: QuantLinear) -> torch.Tensor:
    """Return the weight, written out."""
    weight = layer.packed
    assert isinstance(weight, QuantWeight)
    d, m = (weight.value(name).double().unsqueeze(-1) for name in ("d", "m"))
    return (d * (weight.codes.double() - 128) + m).flatten(1).float()


@pytest.mark.parametrize("tile", [1, 24, 1 << 20])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_linear(monkeypatch: pytest.MonkeyPatch, tile: int, bias: bool, mode: type) -> None:
    monkeypatch.setattr(packed, "TILE", tile)
    layer = toy_layer(rows=24, groups=3, bias=bias)
    x = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(1))
    weight = dense(layer)
    with mode():
        y = layer(x)
    torch.testing.assert_close(y, torch.nn.functional.linear(x, weight, layer.bias))
    torch.testing.assert_close(layer.packed.dequantize(), weight)
    outputs = torch.tensor([3, 0, 23])
    torch.testing.assert_close(layer.rows(x, outputs), y[..., outputs])
    assert repr(layer).startswith("QuantLinear(\n  12, 24, layout=toy")


def test_rows_in_another_order() -> None:
    plain = toy_layer(rows=12, bias=True)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    words = plain.packed
    assert isinstance(words, QuantWeight)
    packed = QuantWeight(words.codec, words.codes, [words.value("d"), words.value("m")], order)
    layer = QuantLinear(packed, plain.bias, compute_dtype=torch.float32)
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))
    weight = dense(plain)[order]
    torch.testing.assert_close(layer(x), torch.nn.functional.linear(x, weight, plain.bias))
    torch.testing.assert_close(packed.dequantize(), weight)
    outputs = torch.tensor([11, 2])
    torch.testing.assert_close(layer.rows(x, outputs), layer(x)[..., outputs])
    ids = torch.tensor([[0, 5], [7, 7]])
    torch.testing.assert_close(QuantEmbedding(packed)(ids), weight[ids])


def test_dtypes() -> None:
    layer = toy_layer(bias=True)
    half = QuantLinear(layer.packed, layer.bias, compute_dtype=torch.bfloat16)
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
    y = half(x)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, layer(x), rtol=5e-2, atol=5e-2)
    assert layer(x[:0]).shape == (0, 8)


@pytest.mark.parametrize("scale", [None, 3.0])
def test_embedding(scale: float | None) -> None:
    layer = toy_layer()
    table = QuantEmbedding(layer.packed, scale=scale, dtype=torch.bfloat16)
    ids = torch.tensor([[1, 0, 7], [7, 7, 2]])
    rows = table(ids)
    assert (rows.shape, rows.dtype) == ((2, 3, 8), torch.bfloat16)
    torch.testing.assert_close(rows, (dense(layer)[ids] * (scale or 1.0)).bfloat16())
    first = table(ids[:1]).clone()
    table(ids)
    torch.testing.assert_close(first, rows[:1])


def test_copies_and_states_are_exact() -> None:
    layer = toy_layer(bias=True)
    twin = copy.deepcopy(layer)
    other = toy_layer(seed=9, bias=True)
    other.load_state_dict(layer.state_dict())
    x = torch.randn(4, 8)
    assert torch.equal(twin(x), layer(x))
    assert torch.equal(other(x), layer(x))
    assert {name: tensor.dtype for name, tensor in layer.state_dict().items()} == {
        "bias": torch.float32, "packed.codes": torch.uint8, "packed.d": torch.float16, "packed.m": torch.float16,
    }  # fmt: skip


def test_fields_of_other_blocks_are_refused() -> None:
    codes = torch.zeros(4, 2, 4, dtype=torch.uint8)
    good, bad = torch.ones(4, 2).half(), torch.ones(2, 4).half()
    with pytest.raises(ShapeError) as caught:
        QuantWeight(ToyCodec(torch.float16), codes, [good, bad])
    assert str(caught.value) == (
        "toy field 'm': expected [rows, groups, ...] = (4, 2), got (2, 4). Split words and fields from the same blocks."
    )


def nested_absmax(rows: int) -> Values:
    state = QuantState("nf4", 64, rows, 128, 256, 0.1)
    spec, codes = FieldSpec("nested_absmax", "scale", torch.float32), torch.zeros(rows * 2, dtype=torch.uint8)
    return NestedAbsmax(spec, torch.ones(-(-rows * 2 // 256)), codes, torch.ones(256), state)


def quantized_scale(rows: int) -> Values:
    scale, zero = (Values(None, torch.ones(rows // 64), striped(rows * 2, 1)) for _ in range(2))
    return QuantizedValues(torch.zeros(rows * 2, dtype=torch.uint8), scale, zero, 1, rows, 128)


@pytest.mark.parametrize("wanted", [slice(3, 4), torch.tensor([3])], ids=["a slice", "an index"])
@pytest.mark.parametrize("make", [nested_absmax, quantized_scale])
def test_the_numbers_of_a_row_cost_the_same_in_a_taller_matrix(
    make: Callable[[int], Values], wanted: slice | torch.Tensor
) -> None:
    used = []
    for rows in (128, 1024):
        values = make(rows)
        with Operators() as operators:
            values.at(wanted)
        used.append(operators.allocated)
    assert used[0] == used[1]


def test_layers_of_one_shape_share_what_is_known_of_their_numbers() -> None:
    """With one entry a layer, a model of thousands of experts would push its own out before they are asked for."""

    def absmax() -> Values:
        return Values(FieldSpec("absmax", "scale", torch.float32), torch.randn(24), flat_groups(64, 16))

    numbers_of(absmax(), 6, 64)
    before = _strides.cache_info()
    assert numbers_of(absmax(), 6, 64) is not None
    after = _strides.cache_info()
    assert (after.misses, after.hits) == (before.misses, before.hits + 1)


LOOKUPS: list[Callable[[], GroupLookup]] = [
    lambda: flat_groups(64, 16), lambda: tall_groups(8, 4), lambda: striped(8, 4), lambda: gemv_zeros(3),
    lambda: of_first_row(PackedRows(4)),
]  # fmt: skip


@pytest.mark.parametrize("make", LOOKUPS)
def test_equal_lookups_are_one(make: Callable[[], GroupLookup]) -> None:
    assert make() is make()


def test_packed_rows_with_a_sign() -> None:
    """Eight integers of 4 bits a word, one group in a tensor of one dimension; no kernel reads them."""
    words = torch.tensor([0x76543210, -0x01234568], dtype=torch.int32)  # the second: 0xFEDCBA98
    numbers = [0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1]
    lookup = PackedRows(4, transposed=True, signed=True)
    assert lookup(words, slice(0, 16)).flatten().tolist() == numbers
    assert lookup(words, torch.tensor([15, 8])).tolist() == [[-1], [-8]]
    assert of_first_row(PackedRows(4, transposed=True, signed=True))(words[1], slice(0, 16)).tolist() == [[-8]]
    assert numbers_of(Values(None, words.view(1, 2), PackedRows(4, signed=True)), 16, 8) is None
