"""Integers that are packed along the rows of a matrix, as the zeros of GPTQ."""

from dataclasses import dataclass

import torch
from torch import Tensor

from zoquant.native.packed import Rows
from zoquant.native.values import indices


@dataclass(frozen=True)
class PackedRows:
    """A lookup, as `zoquant.native.Values` takes it: int32 `[groups, words]`, the lowest bits of a word first.

    Attributes:
        bits: bits of an integer, at most 8.
        plus: what is added to whole words before they are unpacked, so that a field may carry into the next.
        order: which integer of a word belongs to each of its rows, lowest bits first; empty where they agree.
        transposed: whether the tensor is `[words, groups]`.
    """

    bits: int
    plus: int = 0
    order: tuple[int, ...] = ()
    transposed: bool = False

    def __call__(self, data: Tensor, rows: Rows) -> Tensor:
        """Return the integers of some rows, int32 `[len(rows), groups]`."""
        words = data.t().clone(memory_format=torch.contiguous_format) if self.transposed else data
        words = words + self.plus if self.plus else words
        which = indices(rows, words.shape[1] * 32 // self.bits, data.device)
        if self.order:
            order, count = torch.tensor(self.order, device=data.device), len(self.order)
            which = which // count * count + order[which % count]
        return fields(words, self.bits, which).t()


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
