"""Ternary codes, four to a byte: the k-th two bits of a byte belong to the k-th quarter of the rows.

Source: transformers 5.23.0, integrations/bitnet.py (`pack_weights`, `unpack_weights`).
"""

import torch
from torch import Tensor

from zoquant.native import Codes
from zoquant.native.packed import Rows
from zoquant.native.values import indices

QUARTERS = 4


def unpacked(packed: Tensor, rows: Rows) -> Tensor:
    """Return the codes 0, 1, 2 of some rows, uint8 `[n, columns]`.

    Args:
        packed: uint8 `[rows / 4, columns]`.
        rows: which rows of the matrix.
    """
    height = packed.shape[0]
    index = indices(rows, height * QUARTERS, packed.device)
    shift = (2 * (index // height)).to(torch.uint8).unsqueeze(1)
    return (packed[index % height] >> shift) & 3


class QuarterCodes(Codes):
    """Ternary codes plus one.

    Args:
        packed: uint8 `[rows / 4, columns]`.
    """

    packed: Tensor

    def __init__(self, packed: Tensor) -> None:
        super().__init__()
        self.register_buffer("packed", packed)
        self.rows, self.columns = packed.shape[0] * QUARTERS, packed.shape[1]

    def read(self, rows: Rows) -> Tensor:
        return unpacked(self.packed, rows)
