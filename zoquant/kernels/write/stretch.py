"""Where the values of views lie, as rows of a table: what a kernel that writes them walks over."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from zoquant.kernels.noise.definition import BLOCK


@dataclass(frozen=True)
class Stretch:
    """Values that lie one behind the other.

    Attributes:
        base: base of the values, contiguous, `[n]` and what fills its last block.
        target: where they are written, contiguous `[n]`, of the same dtype.
        block: block of delta that the first of them belongs to.
    """

    base: Tensor
    target: Tensor
    block: int


def rows_of(stretches: Iterable[Stretch]) -> Tensor:
    """Return a row for each block of 128 values: int64 `[4, rows]`, address of base and target, block, elements."""
    columns: list[Tensor] = []
    for each in stretches:
        first = torch.arange(0, each.target.numel(), BLOCK)
        left = (each.target.numel() - first).clamp(max=BLOCK)
        size = each.target.dtype.itemsize
        addresses = (each.base.data_ptr() + first * size, each.target.data_ptr() + first * size)
        columns.append(torch.stack([*addresses, each.block + first // BLOCK, left]))
    return torch.cat(columns, 1) if columns else torch.empty(4, 0, dtype=torch.int64)
