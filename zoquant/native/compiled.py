"""Where compiled code decodes or multiplies a matrix; where it does not, the torch code beside it does.

Decoded bits are those of torch; a product sums in an order of its own.
"""

from typing import Any, Protocol

import torch
from torch import Tensor

from zoquant.kernels.gpu import matmul_kernels
from zoquant.kernels.products import words
from zoquant.kernels.products.decode import OUTPUTS, checked_rows
from zoquant.kernels.products.matmul import differentiated
from zoquant.kernels.products.operands import Operands, Words
from zoquant.kernels.workspace import scratch
from zoquant.native.codec import FieldSpec


class Matrix(Protocol):
    """What is asked of a `zoquant.native.PackedWeight`."""

    rows: int
    columns: int

    @property
    def fields(self) -> tuple[FieldSpec, ...]: ...
    @property
    def device(self) -> torch.device: ...
    def value(self, name: str) -> Tensor: ...
    def operands(self, rows: Any = None) -> Operands | None: ...


def decoded(matrix: Matrix, rows: slice | Tensor, dtype: torch.dtype) -> Tensor | None:
    """Return rows of a matrix, decoded and rounded, in scratch memory; None where torch decodes them.

    Args:
        matrix: the matrix.
        rows: which rows, a slice or int64 `[n]`.
        dtype: dtype of the result.

    Raises:
        IndexError: a row does not exist.
    """
    found = decoded_on_gpu(matrix, rows, dtype)
    return decoded_on_cpu(matrix, rows, dtype) if found is None else found


def decoded_on_cpu(matrix: Matrix, rows: slice | Tensor, dtype: torch.dtype) -> Tensor | None:
    """Do what `decoded` does, for any layout that `zoquant.kernels.products.words` reads."""
    plain, device = isinstance(rows, Tensor) or rows.step in (None, 1), matrix.device
    if device.type != "cpu" or dtype not in OUTPUTS or not plain:
        return None
    wanted = checked_rows(rows, matrix.rows) if isinstance(rows, Tensor) else slice(*rows.indices(matrix.rows))
    operands = matrix.operands(wanted)
    if operands is None or not words.decodes(operands):
        return None
    count = len(wanted) if isinstance(wanted, Tensor) else len(range(matrix.rows)[wanted])
    out = scratch((count, matrix.columns), dtype, device, "decode")
    words.decode(operands, wanted, out)
    return out


def decoded_on_gpu(matrix: Matrix, rows: slice | Tensor, dtype: torch.dtype) -> Tensor | None:
    """Do what `decoded` does, for neighbouring rows."""
    if not isinstance(rows, slice):
        return None
    kernels = matmul_kernels(matrix.device)
    start, stop, step = rows.indices(matrix.rows)
    if kernels is None or dtype not in kernels.DTYPES or step != 1 or _moves(matrix):
        return None
    operands = _read(matrix, slice(start, stop))
    if operands is None:
        return None
    out = scratch((max(stop - start, 0), matrix.columns), dtype, matrix.device, "decode")
    kernels.decode(operands, start, out)
    return out


def multiplied(x: Tensor, matrix: Matrix, dtype: torch.dtype) -> Tensor | None:
    """Return `x Wᵀ` from packed words on a GPU; None where W is decoded first, a tile at a time.

    Args:
        x: `[tokens, columns]`.
        matrix: the matrix W.
        dtype: dtype that x and W are rounded to.
    """
    kernels = matmul_kernels(x.device)
    if kernels is None or x.dtype not in kernels.DTYPES or dtype not in kernels.DTYPES or len(x) >= kernels.MANY:
        return None
    if differentiated(x) or _moves(matrix):
        return None
    operands = _read(matrix)
    return None if operands is None else kernels.multiply(x, operands, dtype)


def _read(matrix: Matrix, rows: slice | None = None) -> Operands | None:
    """Return how a kernel of a GPU reads the matrix, or some rows of it; none reads words that rows share."""
    operands = matrix.operands(rows)
    shared = operands is not None and isinstance(operands.codes, Words) and operands.codes.shared is not None
    return None if shared else operands


def _moves(matrix: Matrix) -> bool:
    """Whether a derivative by the values is asked for."""
    return torch.is_grad_enabled() and any(matrix.value(field.name).requires_grad for field in matrix.fields)
