"""The layouts of quanto.

    8 bits:        W = code * scale
    4 and 2 bits:  W = code * scale - shift, or with an integer shift W = (code - shift) * scale

Source: optimum-quanto 0.2.7, tensor/packed.py (`pack_weights`), tensor/qbits.py, tensor/grouped.py.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from zoquant.checkpoint.folder import DENSE, ROW, AffineLayout, Folder, StoredCodes, StoredNumbers
from zoquant.native import Codes
from zoquant.native.packed import Rows
from zoquant.native.values import GroupLookup, flat_groups, indices

SCALE, SHIFT = "weight._scale", "weight._shift"
CODES, PACKED = "weight._data", "weight._data._data"
_SHIFTS = (*DENSE, torch.int8, torch.uint8)


def eight_bit(dtype: torch.dtype, *, type: str = "", beside: tuple[str, ...] = ()) -> AffineLayout:
    """Return the layout of 8 bits, for codes of int8 or float8."""
    scale = StoredNumbers(SCALE, ROW, dims=2)
    return AffineLayout(type=type or f"{dtype}", codes=StoredCodes(CODES, (dtype,)), scale=scale, beside=beside)


def few_bit(bits: int, size: int, shift: torch.dtype, *, type: str = "", beside: tuple[str, ...] = ()) -> AffineLayout:
    """Return the layout of 4 or 2 bits in groups of `size` columns; shifts of an integer dtype are zero points."""
    codes = StackedCodes(PACKED, (torch.uint8,), bits=bits, group=size)
    scale, shifts = FlatNumbers(SCALE, (1, size), dims=2), FlatNumbers(SHIFT, (1, size), _SHIFTS, dims=2)
    if shift.is_floating_point:
        return AffineLayout(type=type, codes=codes, scale=scale, shift=shifts, beside=beside)
    return AffineLayout(type=type, codes=codes, scale=scale, zero=shifts, beside=beside)


@dataclass(frozen=True)
class FlatNumbers(StoredNumbers):
    """Numbers `[groups, 1]`, the groups of a row one after the other."""

    def shape(self, rows: int, columns: int) -> tuple[int, ...]:
        return rows * self.grid(rows, columns)[1], 1

    def lookup(self, rows: int, columns: int) -> GroupLookup:
        return flat_groups(columns, self.block[1])


@dataclass(frozen=True, kw_only=True)
class StackedCodes(StoredCodes):
    """Codes as `StackedBits` has them; nothing in their tensor says how many rows and columns they are.

    Attributes:
        group: columns of a group.
    """

    bits: int
    group: int

    def shape(self, rows: int, columns: int, dtype: torch.dtype) -> tuple[int, ...]:
        return -(-(rows * columns // self.group) * self.bits // 8), self.group

    def check(self, folder: Folder, path: str, size: tuple[int, int] | None = None) -> tuple[int, int]:
        tensor, size = folder.expect_matrix(f"{path}.{self.name}", self.dtypes), size or (0, 0)
        if size[1] % self.group or tensor.shape != self.shape(*size, tensor.dtype):
            expected = f"codes of {self.bits} bits in groups of {list(size)}"
            raise folder.error(tensor.name, expected, f"{list(tensor.shape)}")
        return size

    def open(self, stored: Tensor, rows: int, columns: int) -> Codes:
        return StackedBits(stored, self.bits, rows, columns)


class StackedBits(Codes):
    """Codes of 2 or 4 bits, the matrix cut into groups of columns that lie one below the other.

    The rows of that taller matrix are dealt out from above: the first half of them (for 2 bits the first quarter) holds
    the lowest bits of the bytes, the next the bits above, and so on.

    Args:
        words: uint8 `[ceil(groups * bits / 8), size]`.
        bits: bits of a code.
        rows: rows of the matrix.
        columns: columns of the matrix, a multiple of `size`.
    """

    words: Tensor

    def __init__(self, words: Tensor, bits: int, rows: int, columns: int) -> None:
        super().__init__()
        self.register_buffer("words", words)
        self.bits, self.rows, self.columns = bits, rows, columns

    def read(self, rows: Rows) -> Tensor:
        height, size = self.words.shape
        count = self.columns // size
        index = indices(rows, self.rows, self.words.device)
        groups = (index[:, None] * count + torch.arange(count, device=index.device)).flatten()
        shift = (groups // height * self.bits).to(torch.uint8)
        codes = self.words[groups % height].bitwise_right_shift_(shift[:, None])
        return codes.bitwise_and_((1 << self.bits) - 1).view(len(index), self.columns)
