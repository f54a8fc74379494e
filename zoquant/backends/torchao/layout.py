"""The layouts of torchao's tensors.

W = (code - zero) * scale, one number for each block of the matrix;  Int4Tensor:  W = code * scale + zero
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from zoquant.checkpoint.folder import DENSE, AffineLayout, StoredCodes, StoredNumbers
from zoquant.native import AffineWeight

INT4 = "Int4Tensor"
_BYTES = (torch.int8, torch.uint8)
_CODES = {"Float8Tensor": (torch.float8_e4m3fn, torch.float8_e5m2), INT4: _BYTES}
CODES, SCALE, ZERO = (f"_weight_{part}" for part in ("qdata", "scale", "zero_point"))


class BlocksLayout(AffineLayout):
    """One number for each block."""

    def weight(self, tensors: Mapping[str, Tensor], size: tuple[int, int] | None = None) -> AffineWeight:
        """Return the matrix; zeros that are all 0 are left out."""
        if self.zero is not None and not tensors[ZERO].is_floating_point() and not tensors[ZERO].any():
            return AffineLayout(type=self.type, codes=self.codes, scale=self.scale).weight(tensors, size)
        return super().weight(tensors, size)


def torchao_layout(
    kind: str, block: tuple[int, int], *, zero: bool, dims: int = 2, type: str = "", beside: tuple[str, ...] = ()
) -> AffineLayout:
    """Return the layout of a tensor.

    What is called zero point in an Int4Tensor is added to the scaled code, so it is one more scale of the group.

    Args:
        kind: the class of the tensor.
        block: rows and columns that share a number.
        zero: whether there are zero points; an Int4Tensor always has them.
        dims: dimensions of scale and zero point.
        type: what `zoquant inspect` calls it.
        beside: other tensors of the weight.
    """
    if kind == INT4:
        scale, offset = (StoredNumbers(name, block, transposed=True, view=name[1:]) for name in (SCALE, ZERO))
        codes = StoredCodes(CODES, _BYTES, 4, signed=True)
        return AffineLayout(type=type, codes=codes, scale=scale, offset=offset, beside=beside)
    zeros = StoredNumbers(ZERO, block, (*DENSE, torch.int8), "zero", dims=dims, view=ZERO[1:])
    return BlocksLayout(
        type=type, codes=StoredCodes(CODES, _CODES.get(kind, (torch.int8,))),
        scale=StoredNumbers(SCALE, block, dims=dims, view=SCALE[1:]), zero=zeros if zero else None, beside=beside,
    )  # fmt: skip
