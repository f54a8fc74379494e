"""Where Triton kernels decode or multiply a matrix; where they do not, the torch code beside them does."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zoquant.kernels.gpu import matmul_kernels
from zoquant.kernels.products.matmul import differentiated
from zoquant.kernels.products.operands import Operands, Words
from zoquant.kernels.workspace import scratch

if TYPE_CHECKING:
    from zoquant.native.packed import PackedWeight


def decoded(weight: "PackedWeight", rows: slice, dtype: torch.dtype) -> Tensor | None:
    """Return rows of a matrix, decoded and rounded, in scratch memory; None where torch decodes them.

    Args:
        weight: the matrix.
        rows: neighbouring rows.
        dtype: dtype of the result.
    """
    kernels = matmul_kernels(weight.device)
    start, stop, step = rows.indices(weight.rows)
    if kernels is None or dtype not in kernels.DTYPES or step != 1 or _moves(weight):
        return None
    operands = _read(weight, slice(start, stop))
    if operands is None:
        return None
    out = scratch((max(stop - start, 0), weight.columns), dtype, weight.device, "decode")
    kernels.decode(operands, start, out)
    return out


def multiplied(x: Tensor, weight: "PackedWeight", dtype: torch.dtype) -> Tensor | None:
    """Return `x Wᵀ` from packed words; None where W is decoded first, a tile at a time.

    Args:
        x: `[tokens, columns]`.
        weight: the matrix W.
        dtype: dtype that x and W are rounded to.
    """
    kernels = matmul_kernels(x.device)
    if kernels is None or x.dtype not in kernels.DTYPES or dtype not in kernels.DTYPES or len(x) >= kernels.MANY:
        return None
    if differentiated(x) or _moves(weight):
        return None
    operands = _read(weight)
    return None if operands is None else kernels.multiply(x, operands, dtype)


def _read(weight: "PackedWeight", rows: slice | None = None) -> Operands | None:
    """Return how a kernel reads the matrix, or some rows of it; none reads words that rows share."""
    operands = weight.operands(rows)
    shared = operands is not None and isinstance(operands.codes, Words) and operands.codes.shared is not None
    return None if shared else operands


def _moves(weight: "PackedWeight") -> bool:
    """Whether a derivative by the values is asked for."""
    return torch.is_grad_enabled() and any(weight.value(field.name).requires_grad for field in weight.fields)
