"""Derivatives through native layers, of which the scratch memory knows nothing: those of plain matrices."""

import pytest
import torch
from torch import Tensor

from tests.kernels.packed import COLUMNS, MATRICES, ROWS
from zoquant.native import DenseWeight, PackedWeight, QuantLinear

DTYPES = {torch.float32: 1e-4, torch.bfloat16: 2e-2}


def made(name: str) -> PackedWeight:
    return DenseWeight(torch.randn(ROWS, COLUMNS)) if name == "dense" else MATRICES[name]()


def close(found: Tensor | None, expected: Tensor, bound: float) -> bool:
    assert found is not None
    return bool((found.float() - expected.float()).norm() <= bound * expected.float().norm())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", [*MATRICES, "dense"])
def test_by_the_input(name: str, dtype: torch.dtype) -> None:
    """The second layer decodes into the memory that the first one was multiplied in, before backward."""
    torch.manual_seed(0)
    matrices = made(name), made(name)
    layers = [QuantLinear(packed, compute_dtype=dtype) for packed in matrices]
    x = torch.randn(3, COLUMNS, requires_grad=True)
    upstream = torch.randn(2, 3, ROWS)
    sum((layer(x) * each).sum() for layer, each in zip(layers, upstream, strict=True)).backward()
    expected = sum(each @ packed.dequantize() for packed, each in zip(matrices, upstream, strict=True))
    assert close(x.grad, expected, DTYPES[dtype])


@pytest.mark.parametrize("name", ["gptq g64", "Q4_1", "nf4", "aqlm 2x8", "dense"])
def test_by_the_values(name: str) -> None:
    """The first field scales the matrix: its derivative along itself is that of the matrix along itself."""
    torch.manual_seed(0)
    packed, other = made(name), made(name)
    field = packed.fields[0].name
    layer, beside = QuantLinear(packed, compute_dtype=torch.float32), QuantLinear(other, compute_dtype=torch.float32)
    x, upstream = torch.randn(3, COLUMNS), torch.randn(3, ROWS)
    step = packed.value(field).detach().clone()
    before = packed.dequantize()
    packed.value(field).add_(step)
    along = packed.dequantize() - before
    packed.value(field).copy_(step).requires_grad_()
    for _ in range(2):  # the second backward sees no trace of the first
        packed.value(field).grad = None
        y = layer(x)
        beside(x)
        (y * upstream).sum().backward()
        found = packed.value(field).grad
        assert found is not None
        assert close((found.float() * step.float()).sum(), (upstream * (x @ along.t())).sum(), 2e-2)
    assert not beside(x).requires_grad
