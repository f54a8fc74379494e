"""Codes and zeros of GPTQ that do not fill words evenly: fields of `bits` bits in a row, from the lowest bit up.

Three bits cross from a word into the next: 32 codes lie in 3 words. Read as bytes, 8 codes lie in 3 of them.

Source: AutoGPTQ 0.7.1, nn_modules/qlinear/qlinear_cuda.py (`pack`); the same in GPTQModel 7.7.0.
"""

from functools import cache
from typing import Literal

import torch
from torch import Tensor

from zoquant.kernels.workspace import scratch
from zoquant.native import Codes
from zoquant.native.packed import Rows
from zoquant.native.packed_rows import PackedRows
from zoquant.native.values import GroupLookup

BITS = (2, 3, 4, 8)
_ONES = {2: 0x55555555, 4: 0x11111111, 8: 0x01010101}
_PER_TRIPLE = 8


class ThreeBitWords(Codes):
    """Codes of 3 bits, packed along the columns of the matrix.

    Args:
        words: int32 `[columns * 3 / 32, rows]`.
        columns: columns of the matrix, a multiple of 32.
    """

    words: Tensor

    def __init__(self, words: Tensor, columns: int) -> None:
        super().__init__()
        self.register_buffer("words", words)
        self.rows, self.columns = words.shape[1], columns

    def read(self, rows: Rows) -> Tensor:
        """Return codes uint8 `[len(rows), columns]` in scratch memory."""
        packed = self.words[:, rows].t().contiguous().view(torch.uint8)
        triples = packed.view(packed.shape[0], -1, 3).to(torch.int32)
        whole = triples[..., 0] | triples[..., 1] << 8 | triples[..., 2] << 16
        out = scratch((*whole.shape, _PER_TRIPLE), torch.uint8, whole.device, "three-bit")
        for index in range(_PER_TRIPLE):
            out[..., index] = whole >> 3 * index & 7
        return out.flatten(1)


Wrap = Literal["words", "fields", "never"]
"""How ones come back that were taken off zeros: to whole words, to each field within its bits, or beyond them."""


@cache
def packed_zeros(bits: int, *, minus_one: bool, wrap: Wrap = "words") -> GroupLookup:
    """`[groups, words]` int32: integer zeros, packed along the rows of the matrix.

    Args:
        bits: bits of a zero: 2, 3, 4 or 8.
        minus_one: whether the file holds zero − 1, as the format `gptq` does and `gptq_v2` does not.
        wrap: GPTQModel takes the ones off whole words, so that a zero of 0 borrows from its neighbour, and gives them
            back to whole words; of 3 bits it takes each field by itself.
    """
    if not minus_one:
        return PackedRows(bits)
    if bits in _ONES and wrap == "words":
        return PackedRows(bits, _ONES[bits])
    stored, mask = PackedRows(bits), -1 if wrap == "never" else (1 << bits) - 1
    return lambda data, rows: stored(data, rows) + 1 & mask
