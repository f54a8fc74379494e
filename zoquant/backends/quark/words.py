"""Integer codes of Quark: 4 bits in int32 words in two orders, and 8 bits; with groups the whole matrix is transposed.

Source: amd-quark 0.13, torch/utils/pack.py (`Pack_4_bits`, `Pack_8_bits`).
"""

from functools import cache

import torch
from torch import Tensor

from zoquant.native import Codes
from zoquant.native.packed import Rows
from zoquant.native.values import GroupLookup, indices

PER_WORD = 8
ORDERS = {"order": (0, 1, 2, 3, 4, 5, 6, 7), "reorder": (0, 4, 1, 5, 2, 6, 3, 7)}
"""`pack_method` -> which nibble of a word holds each of its eight numbers."""


def nibbles(words: Tensor, which: Tensor, order: str, *, signed: bool) -> Tensor:
    """Return some of the numbers that words hold, int32 `[..., len(which)]`.

    Args:
        words: int32 `[..., words]`.
        which: numbers of the numbers, int64 `[n]`.
        order: one of `ORDERS`.
        signed: whether they run from -8 to 7, not from 0 to 15.
    """
    places = torch.tensor(ORDERS[order], dtype=torch.int32, device=words.device)
    found = words[..., which // PER_WORD] >> places[which % PER_WORD] * 4 & 15
    return (found ^ 8) - 8 if signed else found


class NibbleWords(Codes):
    """Codes of 4 bits.

    Args:
        words: int32 `[rows, columns / 8]`, or `[columns, rows / 8]` if `transposed`.
        order: one of `ORDERS`.
        signed: whether codes run from -8 to 7.
        transposed: whether a word holds eight rows of one column.
    """

    words: Tensor

    def __init__(self, words: Tensor, order: str, *, signed: bool, transposed: bool) -> None:
        super().__init__()
        self.register_buffer("words", words)
        self.order, self.signed, self.transposed = order, signed, transposed
        height, width = words.shape[0], words.shape[1] * PER_WORD
        self.rows, self.columns = (width, height) if transposed else (height, width)

    def read(self, rows: Rows) -> Tensor:
        words, device = self.words, self.words.device
        if self.transposed:
            return nibbles(words, indices(rows, self.rows, device), self.order, signed=self.signed).t()
        return nibbles(words[rows], torch.arange(self.columns, device=device), self.order, signed=self.signed)


class TransposedCodes(Codes):
    """Codes that the file does not pack, one column of the matrix after the other.

    Args:
        codes: `[columns, rows]`, int8 or uint8.
    """

    codes: Tensor

    def __init__(self, codes: Tensor) -> None:
        super().__init__()
        self.register_buffer("codes", codes)
        self.columns, self.rows = codes.shape

    def read(self, rows: Rows) -> Tensor:
        return self.codes[:, rows].t()


@cache
def nibble_zeros(order: str, rows_of_matrix: int, *, signed: bool) -> GroupLookup:
    """`[groups, rows / 8]` or `[rows / 8]`: integer zeros in the order of the codes; `[]`: one for all."""

    def place(data: Tensor, rows: Rows) -> Tensor:
        if data.dim() == 0:
            return nibbles(data.reshape(1), torch.zeros(1, dtype=torch.int64), "order", signed=signed).reshape(1, 1)
        which = indices(rows, rows_of_matrix, data.device)
        return nibbles(data.reshape(-1, data.shape[-1]), which, order, signed=signed).t()

    return place
