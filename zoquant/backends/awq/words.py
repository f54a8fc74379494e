"""Codes and zeros of AWQ, 4 bits each, in the orders of its three layouts.

    gemm       int32 [columns, rows / 8]; the nibbles of a word hold rows 0 2 4 6 1 3 5 7 of their eight
    gemv       int32 [rows, columns / 8], in order: plain `PackedWords`
    gemv_fast  int16 [rows / 4, columns]: four rows in turns of 16 words, 64 columns; nibble a of word w of eight words
               holds column 8 a + w of their 32

Source: AutoAWQ 0.2.9, awq/modules/linear/gemm.py, gemv.py, gemv_fast.py (`from_linear`, `pack_intweight`).
"""

from functools import cache

import torch
from torch import Tensor

from zoquant.kernels.products.operands import Shared, Words
from zoquant.kernels.workspace import scratch
from zoquant.native import Codes
from zoquant.native.packed import Rows
from zoquant.native.packed_rows import PackedRows, fields
from zoquant.native.values import GroupLookup, indices

BITS = 4
_MASK = 15
_PER_WORD = 8
_NIBBLE = (0, 4, 1, 5, 2, 6, 3, 7)
"""Which nibble of a word holds each of its eight rows."""
_INTERLEAVED = 4
_TURN = 64


class GEMMWords(Codes):
    """Codes packed along the rows of the matrix.

    Args:
        words: int32 `[columns, rows / 8]`, contiguous.
    """

    words: Tensor

    def __init__(self, words: Tensor) -> None:
        super().__init__()
        self.register_buffer("words", words)
        self.rows, self.columns = words.shape[1] * _PER_WORD, words.shape[0]

    def read(self, rows: Rows) -> Tensor:
        """Return codes uint8 `[len(rows), columns]`, for a slice in scratch memory."""
        if isinstance(rows, slice):
            start, stop, _ = rows.indices(self.rows)
            first = start // _PER_WORD
            return self._run(first, -(-stop // _PER_WORD))[start - first * _PER_WORD : stop - first * _PER_WORD]
        shift = torch.tensor(_NIBBLE, dtype=torch.int32, device=rows.device)[rows % _PER_WORD] * BITS
        return (self.words[:, rows // _PER_WORD] >> shift & _MASK).to(torch.uint8).t()

    def in_words(self) -> Words:
        """Return the words, each shared by eight rows."""
        shared = Shared(tuple(nibble * BITS for nibble in _NIBBLE), 1)
        return Words(self.words, 1, self.words.shape[1], BITS, shared=shared)

    def _run(self, first: int, last: int) -> Tensor:
        """Return the codes of the rows of some columns of words."""
        packed = self.words[:, first:last].t().contiguous().view(torch.uint8).view(last - first, self.columns, 4)
        out = scratch((last - first, _PER_WORD, self.columns), torch.uint8, packed.device, "gemm")
        for row, nibble in enumerate(_NIBBLE):
            out[:, row] = packed[..., nibble // 2] >> nibble % 2 * BITS & _MASK
        return out.flatten(0, 1)


class FastWords(Codes):
    """Codes in the order of the kernels that llm-awq and AutoAWQ call `gemv_fast`.

    Args:
        words: int16 `[rows / 4, columns]`, contiguous; columns are a multiple of 64.
    """

    words: Tensor

    def __init__(self, words: Tensor) -> None:
        super().__init__()
        self.register_buffer("words", words)
        self.rows, self.columns = words.shape[0] * _INTERLEAVED, words.shape[1]

    def read(self, rows: Rows) -> Tensor:
        """Return codes uint8 `[len(rows), columns]` in scratch memory."""
        which = indices(rows, self.rows, self.words.device)
        turns = self.words.view(-1, self.columns // _TURN, _INTERLEAVED, _TURN // _INTERLEAVED)
        packed = turns[which // _INTERLEAVED, :, which % _INTERLEAVED].view(len(which), -1, _PER_WORD)
        out = scratch((*packed.shape[:2], _INTERLEAVED, _PER_WORD), torch.uint8, packed.device, "fast")
        for nibble in range(_INTERLEAVED):
            out[:, :, nibble] = packed >> nibble * BITS & _MASK
        return out.flatten(1)


GEMM_ZEROS = PackedRows(BITS, order=_NIBBLE)
"""`[groups, rows / 8]` int32: integer zeros in the order of `GEMMWords`."""


@cache
def gemv_zeros(groups: int) -> GroupLookup:
    """`[rows, words]` int32: integer zeros along the groups, and behind them nothing that counts."""

    def place(data: Tensor, rows: Rows) -> Tensor:
        return fields(data[rows], BITS, torch.arange(groups, device=data.device))

    return place
