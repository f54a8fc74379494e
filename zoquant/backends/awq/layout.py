"""The layouts of AWQ, 4 bits.

    gemm       w = (code − zero) · scales
               qweight int32 [columns, rows / 8], qzeros int32 [groups, rows / 8], scales [groups, rows];
               the nibbles of a word hold rows 0 2 4 6 1 3 5 7 of their eight
    gemv       w = (code − zero) · scales
               qweight int32 [rows, columns / 8], qzeros int32 [rows, padded groups / 8], scales [rows, padded groups]
    gemv_fast  w = code · scales + qzeros
               qweight int16 [rows / 4, columns], qzeros and scales [padded groups, rows];
               four rows in turns of 16 words, 64 columns; nibble a of word w of eight holds column 8 a + w of their 32

Source: AutoAWQ 0.2.9, awq/modules/linear/gemm.py, gemv.py, gemv_fast.py (`from_linear`, `pack_intweight`).
"""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from zoquant.checkpoint.folder import AffineLayout, Folder, PackedZeros, SharedCodes, StoredCodes, StoredNumbers
from zoquant.kernels.workspace import scratch
from zoquant.native import Codes
from zoquant.native.packed import Rows
from zoquant.native.packed_rows import PackedRows, fields
from zoquant.native.values import GroupLookup, column_groups, indices, row_groups

BITS = 4
GEMM, GEMV, FAST = "gemm", "gemv", "gemv_fast"
_NIBBLE = (0, 4, 1, 5, 2, 6, 3, 7)
"""Which nibble of a word holds each of its eight rows."""
GEMM_ZEROS = PackedRows(BITS, order=_NIBBLE)
"""What unpacks the zeros of `gemm`."""
_MULTIPLES = {64: 2, 32: 4, 16: 8}
"""Scales of `gemv` are filled up to whole words, of small groups to several."""
_INTERLEAVED = 4
_TURN = 64
_PER_WORD = 8


def awq_layout(kind: str, size: int, *, zeros: str = "qzeros", type: str = "") -> AffineLayout:
    """Return the layout of a kind in groups of `size` columns, 0 for all of them; llm-awq says `scaled_zeros`."""
    type, block, int32 = type or f"awq {kind} g{size}", (1, size), (torch.int32,)
    if kind == GEMM:
        zero = PackedZeros(zeros, block, transposed=True, bits=BITS, order=_NIBBLE)
        codes = SharedCodes("qweight", int32, bits=BITS, order=_NIBBLE)
        return AffineLayout(type=type, codes=codes, scale=StoredNumbers("scales", block, transposed=True), zero=zero)
    if kind == GEMV:
        padded = PaddedZeros(zeros, block, int32, role=None)
        return AffineLayout(
            type=type, codes=StoredCodes("qweight", int32, BITS), scale=PaddedNumbers("scales", block), zero=padded
        )
    scale, offset = (PaddedNumbers(name, block, transposed=True) for name in ("scales", zeros))
    return AffineLayout(type=type, codes=FastCodes("qweight", (torch.int16,)), scale=scale, offset=offset)


@dataclass(frozen=True)
class PaddedNumbers(StoredNumbers):
    """Numbers with more groups than there are, filled up to what a kernel loads at a time."""

    def shape(self, rows: int, columns: int) -> tuple[int, ...]:
        words = -(-self.grid(rows, columns)[1] // _PER_WORD)
        multiple = _MULTIPLES.get(self.block[1], 1)
        groups = -(-words // multiple) * multiple * _PER_WORD
        return (groups, rows) if self.transposed else (rows, groups)

    def lookup(self, rows: int, columns: int) -> GroupLookup:
        return _first(column_groups if self.transposed else row_groups, self.grid(rows, columns)[1])


@dataclass(frozen=True)
class PaddedZeros(PaddedNumbers):
    """Integer zeros, packed along the padded groups."""

    def shape(self, rows: int, columns: int) -> tuple[int, ...]:
        return rows, super().shape(rows, columns)[1] // _PER_WORD

    def lookup(self, rows: int, columns: int) -> GroupLookup:
        return gemv_zeros(self.grid(rows, columns)[1])


@dataclass(frozen=True)
class FastCodes(StoredCodes):
    """Codes as `FastWords` has them."""

    def size(self, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[int, int]:
        return shape[0] * _INTERLEAVED, shape[1]

    def shape(self, rows: int, columns: int, dtype: torch.dtype) -> tuple[int, ...]:
        return rows // _INTERLEAVED, columns

    def check(self, folder: Folder, path: str, size: tuple[int, int] | None = None) -> tuple[int, int]:
        rows, columns = super().check(folder, path, size)
        if columns % _TURN:
            raise folder.error(f"{path}.{self.name}", f"a multiple of {_TURN} columns", str(columns))
        return rows, columns

    def open(self, stored: Tensor, rows: int, columns: int) -> Codes:
        return FastWords(stored)


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
            out[:, :, nibble] = packed >> nibble * BITS & (1 << BITS) - 1
        return out.flatten(1)


@cache
def gemv_zeros(groups: int) -> GroupLookup:
    """`[rows, words]` int32: integer zeros along the groups, and behind them nothing that counts."""

    def place(data: Tensor, rows: Rows) -> Tensor:
        return fields(data[rows], BITS, torch.arange(groups, device=data.device))

    return place


@cache
def _first(place: GroupLookup, groups: int) -> GroupLookup:
    """Leave out the groups that fill a tensor up."""

    def first(data: Tensor, rows: Rows) -> Tensor:
        return place(data, rows)[:, :groups]

    return first
