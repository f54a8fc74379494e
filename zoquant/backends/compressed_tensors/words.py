"""The packed integers of `pack-quantized`: 1 to 8 bits each, without gaps, the lowest bits of an int32 word first.

Codes lie along the columns, zero points along the rows; both are stored plus 2 ** (bits - 1).

Source: compressed-tensors 0.20.0, compressors/pack_quantized/helpers.py (`unpack_from_int32`).
"""

from functools import cache

from torch import Tensor

from zoquant.backends.layouts.bit_stream import BitStream
from zoquant.backends.layouts.scale_grid import ScaleGrid
from zoquant.native import Codes, PackedWords, Values
from zoquant.native.packed import Rows
from zoquant.native.values import GroupLookup, indices


def packed_codes(words: Tensor, bits: int, columns: int) -> Codes:
    """Return codes that are packed along the columns, the fast way where no code lies in two bytes."""
    return PackedWords(words, bits, columns) if 8 % bits == 0 else BitStream(words, bits, columns)


def packed_zeros(words: Tensor, bits: int, grid: ScaleGrid, group_of: Tensor | None) -> Values:
    """Return zero points that are packed along the rows, `[words, blocks]`, plus 2 ** (bits - 1) as the codes are."""
    return Values(None, words, _along_rows(bits, grid.rows), group_of=group_of)


@cache
def _along_rows(bits: int, rows_of_matrix: int) -> GroupLookup:
    def place(stored: Tensor, rows: Rows) -> Tensor:
        start = indices(rows, rows_of_matrix, stored.device) * bits
        first, shift = start // 32, (start % 32).unsqueeze(1)
        low = (stored[first].long() & 0xFFFFFFFF) >> shift
        high = stored[(first + 1).clamp_max(len(stored) - 1)].long() << (32 - shift)
        return (low | high) & ((1 << bits) - 1)

    return place
