"""Integers that are packed along the rows of a matrix, as the zeros of GPTQ."""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from zoquant.native.packed import Rows
from zoquant.native.values import GroupLookup, indices


@dataclass(frozen=True)
class PackedRows:
    """A lookup, as `zoquant.native.Values` takes it: int32 `[groups, words]`, the lowest bits of a word first.

    Attributes:
        bits: bits of an integer, at most 8.
        plus: what is added to whole words before they are unpacked, so that a field may carry into the next.
        order: which integer of a word belongs to each of its rows, lowest bits first; empty where they agree.
        transposed: whether the tensor is `[words, groups]`, or `[words]` for one group.
        signed: whether the highest bit of an integer is its sign, as in two's complement.
    """

    bits: int
    plus: int = 0
    order: tuple[int, ...] = ()
    transposed: bool = False
    signed: bool = False

    def __call__(self, data: Tensor, rows: Rows) -> Tensor:
        """Return the integers of some rows, int32 `[len(rows), groups]`."""
        words = data
        if self.transposed:
            words = data.reshape(len(data), -1).t().clone(memory_format=torch.contiguous_format)
        words = words + self.plus if self.plus else words
        which = indices(rows, words.shape[1] * 32 // self.bits, data.device)
        if self.order:
            order, count = torch.tensor(self.order, device=data.device), len(self.order)
            which = which // count * count + order[which % count]
        found, half = fields(words, self.bits, which).t(), 1 << self.bits - 1
        return (found ^ half) - half if self.signed else found


@cache
def of_first_row(packed: PackedRows) -> GroupLookup:
    """`[]` int32: one integer for all rows."""
    return lambda data, rows: packed(data.view(1), slice(0, 1))


def fields(words: Tensor, bits: int, which: Tensor) -> Tensor:
    """Return some fields of rows of words, the lowest bits first.

    Args:
        words: int32 `[n, words]`.
        bits: bits of a field, at most 8.
        which: numbers of the fields, int64 `[m]`.

    Returns:
        int32 `[n, m]`.
    """
    stream = words.contiguous().view(torch.uint8)
    first = which * bits
    low = stream[:, first // 8].to(torch.int32)
    high = stream[:, (first // 8 + 1).clamp_max(stream.shape[1] - 1)].to(torch.int32)
    return (low | high << 8) >> (first % 8).to(torch.int32) & (1 << bits) - 1
