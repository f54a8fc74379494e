"""Native matrices over the tensors of quanto.

    8 bits:        W = code * scale
    4 and 2 bits:  W = code * scale - shift, or with an integer shift W = (code - shift) * scale

Source: optimum-quanto 0.2.7, tensor/packed.py (`pack_weights`), tensor/qbits.py, tensor/grouped.py.
"""

import torch
from torch import Tensor

from zoquant.native import AffineWeight, Codes, FieldSpec, PlainCodes, Values
from zoquant.native.packed import Rows
from zoquant.native.values import flat_groups, indices, per_row

SCALE, SHIFT = "weight._scale", "weight._shift"


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
        """Return the codes of some rows, uint8 `[len(rows), columns]`."""
        height, size = self.words.shape
        count = self.columns // size
        index = indices(rows, self.rows, self.words.device)
        groups = (index[:, None] * count + torch.arange(count, device=index.device)).flatten()
        shift = (groups // height * self.bits).to(torch.uint8)
        codes = self.words[groups % height].bitwise_right_shift_(shift[:, None])
        return codes.bitwise_and_((1 << self.bits) - 1).view(len(index), self.columns)


def eight_bit(codes: Tensor, scale: Tensor) -> AffineWeight:
    """Return a matrix of 8 bits.

    Args:
        codes: int8 or float8 `[rows, columns]`.
        scale: `[rows, 1]`.
    """
    layout = str(codes.dtype).removeprefix("torch.")
    return AffineWeight(layout, PlainCodes(codes), Values(FieldSpec(SCALE, "scale", scale.dtype), scale, per_row))


def few_bit(codes: StackedBits, scale: Tensor, shift: Tensor) -> AffineWeight:
    """Return a matrix of 4 or 2 bits.

    Args:
        codes: its codes.
        scale: `[groups, 1]`, groups of a row one after the other.
        shift: of the same shape.
    """
    place = flat_groups(codes.columns, codes.words.shape[1])
    values = Values(FieldSpec(SCALE, "scale", scale.dtype), scale, place)
    if not shift.is_floating_point():
        return AffineWeight(f"int{codes.bits}", codes, values, zero=Values(None, shift, place))
    shifts = Values(FieldSpec(SHIFT, "scale", shift.dtype), shift, place)
    return AffineWeight(f"int{codes.bits}", codes, values, shift=shifts)
