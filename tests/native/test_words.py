"""Packed codes of every width, word, count a word, orientation, sign and offset against a plain definition."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from zoquant.errors import ShapeError
from zoquant.native import AffineWeight, FieldSpec, PackedWords, PlainCodes, QuantLinear, SharedWords, Values
from zoquant.native.values import row_groups

DTYPES = (torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.uint32, torch.int64)


def bits_of(words: Tensor) -> Tensor:
    """Return the bits of rows of words, the lowest of the first word first, int64 `[rows, bits]`."""
    stored = words.contiguous().view(torch.uint8).long()
    return (stored[..., None] >> torch.arange(8) & 1).flatten(1)


def expected(words: Tensor, bits: int, columns: int, per_word: int | None, high_first: bool) -> Tensor:
    """Return the codes of rows of words, one at a time."""
    size, rows = words.element_size() * 8, bits_of(words)
    codes = torch.zeros(len(words), columns, dtype=torch.int64)
    for column in range(columns):
        first = column * bits
        if per_word is not None:
            first = column // per_word * size + column % per_word * bits
        if high_first:
            first = first // 8 * 8 + 8 - bits - first % 8
        for bit in range(bits):
            codes[:, column] |= rows[:, first + bit] << bit
    return codes


@given(st.data())
def test_packed_words(data: st.DataObject) -> None:
    draw = data.draw
    bits, dtype, rows = draw(st.integers(1, 8)), draw(st.sampled_from(DTYPES)), draw(st.integers(1, 5))
    size = dtype.itemsize * 8
    per_word = draw(st.none() | st.integers(1, size // bits))
    high_first = per_word is None and 8 % bits == 0 and draw(st.booleans())
    signed, offset, transposed = draw(st.booleans()), draw(st.integers(-9, 200)), draw(st.booleans())
    columns = draw(st.integers(1, 70))
    least = -(-columns * bits // size) if per_word is None else -(-columns // per_word)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1 << 16)))
    random = torch.randint(0, 256, (rows, (least + draw(st.integers(0, 2))) * dtype.itemsize), generator=generator)
    words = random.to(torch.uint8).view(dtype)
    codes = expected(words, bits, columns, per_word, high_first)
    if signed:
        codes -= (codes >> bits - 1) << bits
    codes -= offset
    packed = PackedWords(
        words.view(torch.uint8).view(rows, -1, dtype.itemsize).transpose(0, 1).flatten(1).contiguous().view(dtype)
        if transposed
        else words,
        bits, columns, per_word=per_word, offset=offset, signed=signed, transposed=transposed, high_first=high_first,
    )  # fmt: skip
    assert (packed.rows, packed.columns) == (rows, columns)
    assert torch.equal(packed.read(slice(None)).long(), codes)
    some = torch.tensor([rows - 1, 0, 0])
    assert torch.equal(packed.read(some).long(), codes[some])

    scale, offsets = torch.rand(rows, 1, generator=generator), torch.rand(rows, 1, generator=generator)
    weight = affine(packed, scale, offsets)
    plain = affine(PlainCodes(codes.to(torch.int16)), scale, offsets)
    x = torch.randn(3, columns, generator=generator, requires_grad=True)
    dense = codes.float() * scale + offsets
    assert torch.equal(weight.dequantize(), dense)
    assert torch.equal(weight.decode_rows_to(some, torch.float32), dense[some])
    layers = [QuantLinear(each, compute_dtype=torch.float32) for each in (weight, plain)]
    made = [torch.autograd.grad(layer(x).square().sum(), x)[0] for layer in layers]
    torch.testing.assert_close(made[0], made[1], rtol=1e-5, atol=1e-3)


def affine(codes: PackedWords | PlainCodes, scale: Tensor, offset: Tensor) -> AffineWeight:
    specs = (FieldSpec("scale", "scale", torch.float32), FieldSpec("offset", "scale", torch.float32))
    scales, offsets = (Values(spec, data, row_groups) for spec, data in zip(specs, (scale, offset), strict=True))
    return AffineWeight("q", codes, scales, offset=offsets)


@given(
    st.sampled_from([1, 2, 4, 8]), st.integers(1, 3), st.integers(1, 9), st.booleans(), st.booleans(),
    st.integers(0, 1 << 16),
)  # fmt: skip
def test_shared_words(bits: int, length: int, columns: int, signed: bool, mixed: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(-(1 << 31), 1 << 31, (columns, length), generator=generator).to(torch.int32)
    count = 32 // bits
    order = torch.randperm(count, generator=generator) if mixed else torch.arange(count)
    codes = expected(words, bits, length * count, None, False)
    codes = codes.view(columns, length, count)[..., order].flatten(1).t()
    if signed:
        codes = codes - (codes >> bits - 1 << bits)
    packed = SharedWords(words, bits, order=tuple(order.tolist()) if mixed else (), signed=signed)
    for rows in (slice(None), slice(1, packed.rows - 1), torch.tensor([packed.rows - 1, 0])):
        assert torch.equal(packed.read(rows).long(), codes[rows])
    weight = affine(packed, torch.rand(packed.rows, 1), torch.rand(packed.rows, 1))  # type: ignore[arg-type]
    assert torch.equal(weight.decode_rows_to(slice(1, 3), torch.float32), weight.decode_rows(slice(1, 3)))


def test_an_offset_and_its_gradient() -> None:
    """`w = (code − zero) · scale − shift + offset`, and its derivatives are those of the plain product."""
    torch.manual_seed(0)
    codes, x = torch.randint(0, 16, (4, 12)), torch.randn(5, 12)
    parts = {name: torch.rand(4, 3) for name in ("scale", "zero", "shift", "offset")}
    scale, *rest = (Values(FieldSpec(name, "scale", torch.float32), part, row_groups) for name, part in parts.items())
    zero, shift, offset = rest
    weight = AffineWeight("q", PlainCodes(codes.to(torch.uint8)), scale, zero=zero, shift=shift, offset=offset)
    leaves = {name: part.clone().requires_grad_() for name, part in parts.items()}
    wide = {name: leaf.repeat_interleave(4, 1) for name, leaf in leaves.items()}
    dense = (codes - wide["zero"]) * wide["scale"] - wide["shift"] + wide["offset"]
    torch.testing.assert_close(weight.dequantize(), dense)
    gradient = torch.rand(4, 12)
    into = {name: torch.zeros(4, 3) for name in parts}
    weight.add_field_gradients(slice(0, 4), gradient, into)
    found = torch.autograd.grad(dense, list(leaves.values()), gradient)
    for sums, part in zip(into.values(), found, strict=True):
        torch.testing.assert_close(sums, part)
    assert [*weight.grids()] == ["scale", "shift", "offset"]
    torch.testing.assert_close(weight.product(x, torch.float32), x @ dense.t())


@pytest.mark.parametrize(
    ("dtype", "bits", "more"),
    [
        (torch.int32, 9, {}), (torch.int32, 0, {}), (torch.int32, 3, {"per_word": 11}),
        (torch.uint8, 2, {"per_word": 0}), (torch.uint8, 3, {"high_first": True}),
        (torch.int32, 2, {"high_first": True, "per_word": 8}),
    ],
)  # fmt: skip
def test_words_that_cannot_be(dtype: torch.dtype, bits: int, more: dict[str, int]) -> None:
    with pytest.raises(ShapeError, match="expected 1 to 8 bits a code, as many codes as fit a word"):
        PackedWords(torch.zeros(2, 8, dtype=dtype), bits, 8, **more)  # type: ignore[arg-type]


def test_words_without_room() -> None:
    with pytest.raises(ShapeError, match="expected 31 codes of 3 bits a row, got room for 30 in 3 words"):
        PackedWords(torch.zeros(2, 3, dtype=torch.int32), 3, 31, per_word=10)
