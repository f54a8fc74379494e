"""The packed integers of `pack-quantized`: 1 to 8 bits each, without gaps, the lowest bits of an int32 word first.

Codes lie along the columns, zero points along the rows; both are stored plus 2 ** (bits - 1).

Source: compressed-tensors 0.20.0, compressors/pack_quantized/helpers.py (`unpack_from_int32`).
"""

import torch
from torch import Tensor

from zoquant.backends.grids import ScaleGrid
from zoquant.native import Codes, PackedWords, Values
from zoquant.native.packed import Rows
from zoquant.native.values import indices


class BitStream(Codes):
    """Codes of any width up to 8 bits along the columns; a code may lie in two bytes.

    Args:
        words: `[rows, words]` of any integer dtype.
        bits: bits of a code.
        columns: columns of the matrix.
    """

    words: Tensor

    def __init__(self, words: Tensor, bits: int, columns: int) -> None:
        super().__init__()
        self.register_buffer("words", words)
        self.bits, self.rows, self.columns = bits, words.shape[0], columns

    def read(self, rows: Rows) -> Tensor:
        stored = self.words[rows].contiguous().view(torch.uint8).to(torch.int16)
        start = torch.arange(self.columns, device=stored.device) * self.bits
        first, shift = start // 8, (start % 8).to(torch.int16)
        low = stored[:, first] >> shift
        high = stored[:, (first + 1).clamp_max(stored.shape[1] - 1)] << (8 - shift)
        return (low | high) & ((1 << self.bits) - 1)


def packed_codes(words: Tensor, bits: int, columns: int) -> Codes:
    """Return codes that are packed along the columns, the fast way where no code lies in two bytes."""
    return PackedWords(words, bits, columns) if 8 % bits == 0 else BitStream(words, bits, columns)


def packed_zeros(words: Tensor, bits: int, grid: ScaleGrid, group_of: Tensor | None) -> Values:
    """Return zero points that are packed along the rows, `[words, blocks]`, plus 2 ** (bits - 1) as the codes are."""

    def place(stored: Tensor, rows: Rows) -> Tensor:
        start = indices(rows, grid.rows, stored.device) * bits
        first, shift = start // 32, (start % 32).unsqueeze(1)
        low = (stored[first].long() & 0xFFFFFFFF) >> shift
        high = stored[(first + 1).clamp_max(len(stored) - 1)].long() << (32 - shift)
        return (low | high) & ((1 << bits) - 1)

    return Values(None, words, place, group_of=group_of)
