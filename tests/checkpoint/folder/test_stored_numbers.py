"""Which number belongs to which weight, for every block, orientation and shape of the tensor."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zoquant.checkpoint.folder import DENSE, MATRIX, ROW, PackedZeros, StoredNumbers, reciprocal
from zoquant.protocol import Role


@given(st.data())
def test_a_number_for_each_block(data: st.DataObject) -> None:
    draw = data.draw
    rows, columns = draw(st.integers(1, 12)), draw(st.integers(1, 24))
    blocks = st.sampled_from([MATRIX, ROW]) | st.tuples(st.integers(0, rows), st.integers(1, columns))
    height, width = block = draw(blocks)
    transposed = height == 1 and draw(st.booleans())
    numbers = StoredNumbers("scale", block, transposed=transposed, ragged=True)
    shape = numbers.shape(rows, columns)
    stored = torch.rand(shape, generator=torch.Generator().manual_seed(rows * columns))
    down, across = torch.arange(rows) // (height or rows), torch.arange(columns) // (width or columns)
    expected = (stored.t() if transposed else stored)[down][:, across]
    short = [shape[:dims] for dims in range(3) if set(shape[dims:]) <= {1} and not transposed]
    values = numbers.values(stored.view(draw(st.sampled_from([*short, shape]))), rows, columns)
    some = torch.tensor([rows - 1, 0, rows // 2])
    for wanted in (slice(0, rows), slice(rows // 2, rows), some):
        found = values.at(wanted).squeeze(-1)
        wide = found.repeat_interleave(columns // found.shape[1], 1).expand(len(expected[wanted]), -1)
        assert torch.equal(wide, expected[wanted])
    grid = values.grid(rows, columns)
    assert grid is not None
    assert grid.shape[0] * grid.shape[1] == stored.numel()


@given(st.integers(1, 8), st.integers(1, 40), st.integers(1, 5), st.booleans(), st.integers(0, 1 << 16))
def test_packed_zeros(bits: int, rows: int, groups: int, transposed: bool, seed: int) -> None:
    zeros = PackedZeros("zeros", (1, 4), transposed=transposed, bits=bits)
    columns = 4 * groups
    generator = torch.Generator().manual_seed(seed)
    words = -(-rows * bits // 32)
    stored = torch.randint(-(1 << 31), 1 << 31, (groups, words), generator=generator).to(torch.int32)
    stream = (stored.view(torch.uint8).long()[..., None] >> torch.arange(8) & 1).flatten(1)[:, : rows * bits]
    expected = (stream.view(groups, rows, bits) << torch.arange(bits)).sum(-1).t()
    tensor = stored if transposed else stored.t().contiguous()
    assert tuple(tensor.shape) == zeros.shape(rows, columns)
    values = zeros.values(tensor, rows, columns)
    assert values.spec is None
    assert torch.equal(values.at(slice(0, rows)).squeeze(-1).long(), expected)
    some = torch.tensor([rows - 1, 0])
    assert torch.equal(values.at(some).squeeze(-1).long(), expected[some])


@pytest.mark.parametrize(
    ("dtype", "role", "trained"),
    [(torch.float16, "scale", True), (torch.float8_e4m3fn, "scale", False), (torch.uint8, "scale", False),
     (torch.float32, None, False), (torch.bfloat16, "zero", True)],
)  # fmt: skip
def test_what_is_trained_follows_from_the_dtype(dtype: torch.dtype, role: Role | None, trained: bool) -> None:
    spec = StoredNumbers("scale", ROW, (*DENSE, dtype), role, view="weight_scale").spec(dtype)
    assert (spec is not None) == trained
    assert spec is None or (spec.name, spec.role, spec.dtype) == ("weight_scale", role, dtype)


def test_scales_that_are_powers_of_two_or_divide() -> None:
    powers = StoredNumbers("scale", ROW, (torch.uint8,)).values(torch.tensor([127, 128, 125], dtype=torch.uint8), 3, 4)
    assert powers.at(slice(0, 3)).flatten().tolist() == [1, 2, 0.25]
    divided = StoredNumbers("scale", ROW, decode=reciprocal).values(torch.tensor([4.0, 0.5]), 2, 4)
    assert divided.at(slice(0, 2)).flatten().tolist() == [0.25, 2]
    assert divided.grid(2, 4) is None
