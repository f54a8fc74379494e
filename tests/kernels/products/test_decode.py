"""The compiled decoders give the bits of the torch decoders, which are the definition."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from tests.backends.gguf.files import random_blocks
from tests.threads import threads
from zoquant.backends.gguf.blocks import CODECS, BlockCodec
from zoquant.errors import ShapeError
from zoquant.kernels.products.decode import LAYOUTS, row_decoder
from zoquant.native import QuantEmbedding, QuantLinear, QuantWeight

ROWS, GROUPS = 37, 3
pytestmark = pytest.mark.usefixtures("compiled")
layouts = pytest.mark.parametrize("name", LAYOUTS)


def packed(name: str, dtype: torch.dtype = torch.float16) -> tuple[BlockCodec, Tensor, list[Tensor]]:
    """Return random blocks, with some values that are subnormal, zero and negative zero in float16."""
    codes, values = CODECS[name].split(torch.from_numpy(random_blocks(CODECS[name], ROWS, GROUPS)))
    for value in values:
        value.view(-1)[:4] = torch.tensor([6e-8, 3e-5, 0.0, -0.0], dtype=torch.float16)
    return CODECS[name], codes, [value.to(dtype) for value in values]


def reference(codec: BlockCodec, codes: Tensor, values: Sequence[Tensor]) -> Tensor:
    out = torch.empty(*codes.shape[:2], codec.block)
    codec.decode(codes, [value.float() for value in values], out)
    return out


def outputs_of(weight: QuantWeight, x: Tensor, ids: Tensor) -> list[Tensor]:
    """Return what every layer over a weight computes from decoded weights."""
    product = QuantLinear(weight, compute_dtype=torch.float32)(x)
    tiles = [tile.clone() for _, tile in weight.tiles(torch.bfloat16)]
    return [product, *tiles, QuantEmbedding(weight)(ids), weight.dequantize()]


def same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


@layouts
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("out_dtype", [torch.float32, torch.bfloat16])
def test_bits_are_those_of_torch(name: str, dtype: torch.dtype, out_dtype: torch.dtype) -> None:
    codec, codes, values = packed(name, dtype)
    expected = reference(codec, codes, values)
    assert expected.std() > 0
    decode = codec.decode_rows
    assert decode is not None
    out = torch.full_like(expected, float("nan"), dtype=out_dtype)
    decode(codes, values, None, out)
    assert same(out, expected.to(out_dtype))
    rows = torch.tensor([36, 0, 5, 5, -1])
    some = torch.empty(5, GROUPS, codec.block, dtype=out_dtype)
    decode(codes, values, rows, some)
    assert same(some, expected[rows].to(out_dtype))


@layouts
def test_every_field_value_is_widened_exactly(name: str) -> None:
    codec = CODECS[name]
    finite = torch.arange(1 << 16).to(torch.int16).view(torch.float16)
    finite = finite[finite.isfinite()].unsqueeze(1)
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 256, (len(finite), 1, codec.code_bytes), dtype=torch.uint8, generator=generator)
    values = [finite, finite.flip(0)][: len(codec.fields)]
    decode = codec.decode_rows
    assert decode is not None
    for dtype in (torch.float32, torch.bfloat16):
        out = torch.empty(len(finite), 1, codec.block, dtype=dtype)
        decode(codes, values, None, out)
        assert same(out, reference(codec, codes, values).to(dtype))


@pytest.mark.parametrize("workers", [1, 2])
def test_layers_agree_with_torch(monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    codec, codes, values = packed("Q4_1")
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(0))
    x, ids = torch.randn(4, 96, generator=torch.Generator().manual_seed(1)), torch.tensor([[1, 36], [0, 1]])
    with threads(workers):
        for row_order in (None, order):
            weight = QuantWeight(codec, codes, values, row_order)
            fast = outputs_of(weight, x, ids)
            with monkeypatch.context() as patch:
                patch.setattr(BlockCodec, "decode_rows", None)
                slow = outputs_of(weight, x, ids)
            assert all(same(a, b) for a, b in zip(fast, slow, strict=True))


def test_torch_computes_where_compiled_code_cannot() -> None:
    codec, codes, values = packed("Q4_0")
    weight = QuantWeight(codec, codes, values)
    expected = weight.dequantize()
    weight.double()
    assert torch.equal(weight.dequantize(), expected)
    assert torch.equal(weight.decode_rows_to(slice(3, 9), torch.float16), expected[3:9].half())


def test_rows_that_do_not_exist_are_refused() -> None:
    codec, codes, values = packed("Q8_0")
    layer = QuantEmbedding(QuantWeight(codec, codes, values))
    for row in (ROWS, -ROWS - 1):
        with pytest.raises(IndexError, match=f"expected rows from -{ROWS} to {ROWS - 1}, got {row} to {row}"):
            layer(torch.tensor([row]))
    assert layer(torch.empty(0, dtype=torch.int64)).shape == (0, 96)


def test_other_shapes_are_refused() -> None:
    _, codes, values = packed("Q4_0")
    decode = row_decoder("Q4_1")
    assert decode is not None
    with pytest.raises(ShapeError, match=r"Q4_1: expected packed words \[rows, groups, 16\], 2 fields"):
        decode(codes, values, None, torch.empty(ROWS, GROUPS, 32))
    assert row_decoder("IQ1_S") is None
