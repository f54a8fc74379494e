"""Where compiled code decodes a matrix on a CPU; where it does not, the torch code beside it does, to the same bits."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zoquant.kernels.products import words
from zoquant.kernels.products.decode import OUTPUTS, checked_rows
from zoquant.kernels.workspace import scratch

if TYPE_CHECKING:
    from zoquant.native.packed import PackedWeight


def decoded(weight: "PackedWeight", rows: slice | Tensor, dtype: torch.dtype) -> Tensor | None:
    """Return rows of a matrix, decoded and rounded, in scratch memory; None where torch decodes them.

    Args:
        weight: the matrix.
        rows: which rows, a slice or int64 `[n]`.
        dtype: dtype of the result.

    Raises:
        IndexError: a row does not exist.
    """
    plain, device = isinstance(rows, Tensor) or rows.step in (None, 1), weight.device
    if device.type != "cpu" or dtype not in OUTPUTS or not plain:
        return None
    wanted = checked_rows(rows, weight.rows) if isinstance(rows, Tensor) else slice(*rows.indices(weight.rows))
    operands = weight.operands(wanted)
    if operands is None or not words.decodes(operands):
        return None
    count = len(wanted) if isinstance(wanted, Tensor) else len(range(weight.rows)[wanted])
    out = scratch((count, weight.columns), dtype, device, "decode")
    words.decode(operands, wanted, out)
    return out
