"""The compiled gradient by the fields of blocks: sums of what torch decodes."""

from typing import Any

import pytest
import torch

from tests.backends.gguf.files import random_blocks
from zoquant.backends.gguf.blocks import CODECS
from zoquant.errors import ShapeError
from zoquant.kernels.products.contract import row_contractor
from zoquant.kernels.products.decode import LAYOUTS

pytestmark = pytest.mark.usefixtures("compiled")


@pytest.mark.parametrize("looked_up", [False, True])
@pytest.mark.parametrize("name", LAYOUTS)
def test_sums_are_those_of_torch(name: str, looked_up: bool) -> None:
    torch.manual_seed(0)
    codec: Any = CODECS[name]
    codes, _ = codec.split(torch.from_numpy(random_blocks(codec, 12, 3)))
    rows = torch.tensor([3, 0, -1, 3]) if looked_up else None
    taken = codes if rows is None else codes[rows]
    gradient = torch.randn(*taken.shape[:2], codec.block)
    found = codec.contract_rows(codes, rows, gradient)
    assert len(found) == len(codec.fields)
    for number, sums in enumerate(found):
        ones = [torch.full(taken.shape[:2], float(number == field)) for field in range(len(codec.fields))]
        factors = torch.empty_like(gradient)
        codec.decode(taken, ones, factors)
        expected = (factors.double() * gradient).sum(-1)
        assert (sums - expected).abs().max() < 1e-6 * factors.norm() * gradient.norm()


def test_rows_and_shapes_that_do_not_exist_are_refused() -> None:
    contract = row_contractor("Q4_1")
    assert contract is not None
    codes = torch.zeros(4, 2, 16, dtype=torch.uint8)
    with pytest.raises(IndexError, match="expected rows from -4 to 3, got 4 to 4"):
        contract(codes, torch.tensor([4]), torch.zeros(1, 2, 32))
    with pytest.raises(ShapeError, match=r"Q4_1: expected .* a gradient \[4, groups, 32\], got .* \(4, 2, 16\)\."):
        contract(codes, None, torch.zeros(4, 2, 16))
    assert row_contractor("IQ1_S") is None
