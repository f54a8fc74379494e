"""The compiled decoder of packed words gives the bits of the torch decoders, which are the definition."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.kernels.packed import COLUMNS, MATRICES, ROWS, gptq
from zoquant.backends.awq.layout import GEMM, awq_layout
from zoquant.backends.hqq.weights import PACKINGS, PlaneCodes, axis_groups
from zoquant.kernels.products import words
from zoquant.native import (
    AffineWeight,
    FieldSpec,
    PackedWeight,
    PackedWords,
    PlainCodes,
    QuantEmbedding,
    QuantLinear,
    TableWeight,
    Values,
)
from zoquant.native.compiled import decoded_on_cpu
from zoquant.native.values import column_groups, flat_groups, row_groups

pytestmark = pytest.mark.usefixtures("compiled")
numbers = st.sampled_from((torch.float16, torch.bfloat16, torch.float32))


def random_words(*shape: int) -> Tensor:
    return torch.randint(-(1 << 31), 1 << 31, shape).to(torch.int32)


def values(dtype: torch.dtype, *shape: int, name: str = "scale", order: Tensor | None = None) -> Values:
    """Return numbers of both signs, some of them subnormal, zero and negative zero in float16."""
    found = torch.randn(shape)
    found.view(-1)[:4] = torch.tensor([6e-8, 3e-5, 0.0, -0.0])[: found.numel()]
    return Values(FieldSpec(name, "scale", dtype), found.to(dtype), row_groups, group_of=order)


def awq(eights: int, groups: int, size: int, dtype: torch.dtype = torch.float16) -> AffineWeight:
    scales = torch.randn(groups, 8 * eights).to(dtype)
    tensors = {"qweight": random_words(groups * size, eights), "qzeros": random_words(groups, eights)}
    return awq_layout(GEMM, size).weight(tensors | {"scales": scales})


def hqq(
    packing: str, rows: int, columns: int, size: int, axis: int = 1, dtype: torch.dtype = torch.float16
) -> AffineWeight:
    kind, groups = PACKINGS[packing], rows * columns // size
    packed = torch.randint(0, 256, (-(-rows * columns // kind.count) * kind.dtype.itemsize,), dtype=torch.uint8)
    place = axis_groups(axis, rows, columns, groups)
    scale, zero = (
        Values(FieldSpec(name, "scale", dtype), torch.randn(groups, 1).to(dtype), place) for name in ("scale", "zero")
    )
    return AffineWeight("hqq", PlaneCodes(packed, kind, rows, columns), scale, zero=zero)


def assert_same_bits(weight: PackedWeight, *, compiled: bool = True) -> None:
    """Compare all rows, neighbouring rows, and rows looked up, in both dtypes."""
    count = weight.rows
    whole = weight.decode_rows(slice(0, count)).clone()
    for dtype in (torch.float32, torch.bfloat16):
        for rows in (slice(None), slice(count // 3, count - 1), torch.tensor([count - 1, 0, 0, count // 2])):
            found = decoded_on_cpu(weight, rows, dtype)
            if not len(whole[rows]):
                continue
            assert (found is not None) == compiled
            expected = whole[rows].to(dtype)
            assert found is None or torch.equal(found.view(torch.uint8), expected.view(torch.uint8))
            assert torch.equal(weight.decode_rows_to(rows, dtype).view(torch.uint8), expected.view(torch.uint8))


SHARED: dict[str, Callable[[], PackedWeight]] = {
    "awq gemm": lambda: awq(5, 3, 40),
    "hqq": lambda: hqq("4bit_u8", ROWS, COLUMNS, 64),
    "hqq along the other axis": lambda: hqq("4bit_u8", ROWS, COLUMNS, 48, axis=0),
    "hqq, 3 bits": lambda: hqq("3bit_32", 40, 48, 16),
    "fp4, bytes": lambda: TableWeight(
        "fp4",
        PackedWords(torch.randint(0, 256, (6, 20), dtype=torch.uint8), 4, 40, high_first=True),
        torch.randn(16),
        Values(FieldSpec("absmax", "scale", torch.float32), torch.randn(15), flat_groups(40, 16)),
    ),
}


ALL = {**{name: make for name, make in MATRICES.items() if not name.startswith(("Q", "aqlm"))}, **SHARED}
"""All but ggml's blocks, which have decoders of their own, and vectors, which torch decodes."""


@pytest.mark.parametrize("name", ALL)
def test_layouts(name: str) -> None:
    torch.manual_seed(0)
    assert_same_bits(ALL[name]())


@given(st.data())
def test_affine_words(data: st.DataObject) -> None:
    draw = data.draw
    torch.manual_seed(draw(st.integers(0, 1 << 16)))
    bits, rows, groups = draw(st.sampled_from((1, 2, 4, 8))), draw(st.integers(1, 40)), draw(st.integers(1, 4))
    columns = groups * draw(st.integers(1, 70))
    length = max(-(-columns * bits // 32), 2)
    transposed = draw(st.booleans())
    high_first = not transposed and draw(st.booleans())
    packed = random_words(*((length, rows) if transposed else (rows, length)))
    codes = PackedWords(packed, bits, columns, transposed=transposed, high_first=high_first)
    order = torch.randint(0, groups, (columns,)) if draw(st.booleans()) else None
    zero = values(draw(numbers), rows, groups, name="zero", order=order) if draw(st.booleans()) else None
    shift = values(draw(numbers), rows, 1, name="shift") if draw(st.booleans()) else None
    scale = values(draw(numbers), rows, groups, order=order)
    assert_same_bits(AffineWeight("affine", codes, scale, zero=zero, shift=shift))


@given(st.integers(1, 20), st.integers(1, 4), st.integers(2, 70), numbers, st.integers(0, 1 << 16))
def test_awq(eights: int, groups: int, size: int, dtype: torch.dtype, seed: int) -> None:
    torch.manual_seed(seed)
    assert_same_bits(awq(eights, groups, size, dtype))


@given(st.sampled_from(sorted(PACKINGS)), st.integers(1, 5), st.integers(1, 70), st.integers(0, 1 << 16))
def test_hqq(packing: str, rows: int, columns: int, seed: int) -> None:
    """Planes that cut a row in two, or are filled up, are left to torch."""
    torch.manual_seed(seed)
    count = PACKINGS[packing].count
    assert_same_bits(hqq(packing, rows * count, columns, columns))
    if count > 1:
        assert_same_bits(hqq(packing, rows * count + 1, columns, columns), compiled=False)


@given(st.sampled_from((1, 2, 4, 8)), st.integers(0, 5), numbers, st.integers(0, 1 << 16))
def test_tables(bits: int, more: int, dtype: torch.dtype, seed: int) -> None:
    torch.manual_seed(seed)
    codes, table = PackedWords(random_words(5, 3), bits, 96 // bits), torch.randn((1 << bits) + more)
    scales = values(dtype, 5, 1), values(torch.float32, 5, 3, name="second")
    assert_same_bits(TableWeight("table", codes, table, *scales))
    short = TableWeight("table", codes, table[: (1 << bits) - 1].clone(), *scales)
    assert decoded_on_cpu(short, slice(0, 5), torch.float32) is None


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8])
def test_plain_codes(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    codes = PlainCodes(torch.randint(-128, 128, (7, 36)).to(dtype))
    zero = Values(None, torch.randint(-9, 9, (7, 2)).to(torch.int8), row_groups)
    assert_same_bits(AffineWeight("plain", codes, values(torch.float32, 7, 1), zero=zero))


def test_threads_share_rows() -> None:
    torch.manual_seed(0)
    weight, before = awq(13, 2, 48), torch.get_num_threads()
    expected = weight.decode_rows(slice(0, weight.rows)).clone()
    torch.set_num_threads(2)
    try:
        assert torch.equal(weight.dequantize(), expected)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", ["gptq g64", "gptq desc_act", "awq gemm", "hqq", "nf4", "nf4, nested"])
def test_an_edit_reaches_the_next_forward(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    weight = ALL[name]()
    layer, x, ids = (
        QuantLinear(weight, compute_dtype=torch.float32),
        torch.randn(3, weight.columns),
        torch.tensor([2, 0]),
    )
    before = layer(x)
    for field in weight.fields:
        weight.value(field.name).mul_(1.5)
        weight.value(field.name).view(-1)[0] += 1
    after, looked_up = layer(x), QuantEmbedding(weight)(ids)
    assert not torch.equal(after, before)
    monkeypatch.setattr(words, "library", lambda: None)
    assert decoded_on_cpu(weight, slice(0, 2), torch.float32) is None
    assert torch.equal(layer(x), after)
    assert torch.equal(QuantEmbedding(weight)(ids), looked_up)


def test_torch_decodes_where_compiled_code_cannot() -> None:
    torch.manual_seed(0)
    weight = gptq()
    expected = weight.dequantize()
    assert decoded_on_cpu(weight, slice(0, ROWS, 2), torch.float32) is None
    assert decoded_on_cpu(weight, slice(3, 3), torch.float32) is not None
    assert decoded_on_cpu(weight, slice(0, ROWS), torch.float16) is None
    assert torch.equal(weight.decode_rows_to(slice(3, 9), torch.float16), expected[3:9].half())
    weight.double()
    assert torch.equal(weight.dequantize(), expected)


def test_derivatives_by_the_values_still_flow() -> None:
    torch.manual_seed(0)
    weight = awq(2, 2, 16, torch.float32)
    weight.value("scales").requires_grad_()
    assert decoded_on_cpu(weight, slice(0, 16), torch.float32) is None


@pytest.mark.parametrize("name", ["gptq g64", "awq gemm", "hqq", "nf4"])
def test_rows_that_do_not_exist_are_refused(name: str) -> None:
    weight = ALL[name]()
    layer = QuantEmbedding(weight)
    for row in (weight.rows, -weight.rows - 1):
        with pytest.raises(IndexError, match=f"expected rows from -{weight.rows} to {weight.rows - 1}, got {row}"):
            layer(torch.tensor([row]))
    assert layer(torch.empty(0, dtype=torch.int64)).shape == (0, weight.columns)


@pytest.mark.parametrize("group", [3, -1])
def test_groups_that_do_not_exist_are_never_read(group: int) -> None:
    order = torch.zeros(32, dtype=torch.int64)
    order[5] = group
    scale = Values(FieldSpec("scale", "scale", torch.float32), torch.ones(3, 8), column_groups, group_of=order)
    weight = AffineWeight("affine", PackedWords(random_words(4, 8), 4, 32, transposed=True), scale)
    assert decoded_on_cpu(weight, slice(0, 8), torch.float32) is None
