"""Codes of any width, packed one bit after the other."""

import torch
from torch import Tensor

from zoquant.native import Codes
from zoquant.native.packed import Rows


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
