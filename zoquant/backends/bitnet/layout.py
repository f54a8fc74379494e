"""The layout of BitNet's packed matrices: ternary codes, four to a byte, and one scale.

The k-th two bits of a byte belong to the k-th quarter of the rows.

Source: transformers 5.23.0, integrations/bitnet.py (`pack_weights`, `unpack_weights`).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from zoquant.checkpoint.folder import MATRIX, AffineLayout, StoredCodes, StoredNumbers, reciprocal
from zoquant.native import Codes
from zoquant.native.packed import Rows
from zoquant.native.values import indices

_QUARTERS = 4


def bitnet_layout(*, divided: bool) -> AffineLayout:
    """Return the layout, `W = code / weight_scale` where it is `divided`, else `W = code * weight_scale`."""
    scale = StoredNumbers("weight_scale", MATRIX, decode=reciprocal if divided else None)
    return AffineLayout(type="ternary", codes=QuarterStored("weight", (torch.uint8,)), scale=scale)


@dataclass(frozen=True)
class QuarterStored(StoredCodes):
    """Codes as `QuarterCodes` has them."""

    def size(self, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[int, int]:
        return shape[0] * _QUARTERS, shape[1]

    def shape(self, rows: int, columns: int, dtype: torch.dtype) -> tuple[int, ...]:
        return rows // _QUARTERS, columns

    def open(self, stored: Tensor, rows: int, columns: int) -> Codes:
        return QuarterCodes(stored)


class QuarterCodes(Codes):
    """Codes -1, 0 and 1, stored plus one.

    Args:
        packed: uint8 `[rows / 4, columns]`.
    """

    packed: Tensor

    def __init__(self, packed: Tensor) -> None:
        super().__init__()
        self.register_buffer("packed", packed)
        self.rows, self.columns = packed.shape[0] * _QUARTERS, packed.shape[1]

    def read(self, rows: Rows) -> Tensor:
        height = self.packed.shape[0]
        index = indices(rows, self.rows, self.packed.device)
        shift = (2 * (index // height)).to(torch.uint8).unsqueeze(1)
        return (self.packed[index % height] >> shift & 3).view(torch.int8) - 1
