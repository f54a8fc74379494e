"""Native matrices over the tensors of torchao.

W = (code - zero) * scale, one number for each block of the matrix;  Int4Tensor:  W = code * scale + zero
"""

import torch
from torch import Tensor

from zoquant.native import AffineWeight, FieldSpec, PackedWords, PlainCodes, Values
from zoquant.native.packed import Rows
from zoquant.native.values import column_groups, tall_groups, whole


def blocks(codes: Tensor, scale: Tensor, zero: Tensor | None) -> AffineWeight:
    """Return a matrix of blocks.

    Args:
        codes: int8 or float8 `[rows, columns]`.
        scale: `[rows / height, groups]`, or one number without dimensions.
        zero: of the same shape, integers or floating point; None for nothing.
    """
    place = tall_groups(codes.shape[0], codes.shape[0] // scale.shape[0]) if scale.dim() else whole
    zeros = None
    if zero is not None and zero.is_floating_point():
        zeros = Values(FieldSpec("weight_zero_point", "zero", zero.dtype), zero, place)
    elif zero is not None and zero.any():
        zeros = Values(None, zero, place)
    values = Values(FieldSpec("weight_scale", "scale", scale.dtype), scale, place)
    return AffineWeight(str(codes.dtype).removeprefix("torch."), PlainCodes(codes), values, zero=zeros)


def int4_columns(words: Tensor, scale: Tensor, zero: Tensor) -> AffineWeight:
    """Return the matrix of an Int4Tensor: signed codes, two a byte, the low half first.

    What is called zero point there is added to the scaled code, so it is one more scale of the group.

    Args:
        words: int8 or uint8 `[rows, columns / 2]`.
        scale: `[columns / group, rows]`.
        zero: of the same shape, floating point.
    """
    spec, shift = FieldSpec("weight_scale", "scale", scale.dtype), FieldSpec("weight_zero_point", "scale", zero.dtype)
    return AffineWeight(
        "int4", SignedNibbles(words.view(torch.uint8), 4, 2 * words.shape[1]), Values(spec, scale, column_groups),
        shift=Values(shift, zero, _minus_column_groups),
    )  # fmt: skip


class SignedNibbles(PackedWords):
    """Codes of -8 to 7 in two's complement."""

    def read(self, rows: Rows) -> Tensor:
        """Return the codes of some rows, int8 `[len(rows), columns]`."""
        return super().read(rows).bitwise_xor(8).view(torch.int8).sub_(8)

    def in_words(self) -> None:
        """Return None: kernels know no signs of four bits."""


def _minus_column_groups(data: Tensor, rows: Rows) -> Tensor:
    return -column_groups(data, rows)
