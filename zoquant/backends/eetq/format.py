"""Folders of EETQ: int8 in the order of FasterTransformer's kernels for Turing and Ampere, one scale a row.

Pairs of outputs take turns of 64 columns. Within 16 columns the order is `_SIXTEEN`, within 4 bytes the middle two are
exchanged, and 128 is added to every number. Volta's order is another, and nothing in a file says which GPU wrote it.

Source: NetEase-FuXi/EETQ, csrc/cutlass_kernels/cutlass_preprocessors.cc (`preprocess_weights_for_mixed_gemm`) and
csrc/cutlass_extensions/.../mixed_gemm_B_layout.h; transformers 5.23.0, integrations/eetq.py (`EetqLinear`).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from zoquant.checkpoint.folder import (
    ROW,
    AffineLayout,
    Folder,
    FolderFormat,
    StoredCodes,
    StoredMatrix,
    StoredNumbers,
    refuse_experts,
)
from zoquant.native import Codes
from zoquant.native.packed import Rows
from zoquant.native.values import indices

_TURN = 64
_PAIR = 2
_SIXTEEN = (0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15)
"""Which column of sixteen lies in each place."""


class EETQFormat(FolderFormat):
    """Int8 matrices with one scale for each output."""

    name = "eetq"
    methods = frozenset({"eetq"})
    reason = "EETQ computes it on a GPU alone"
    notes = (
        "int8: read in the order of Turing and later GPUs; a file that a Volta GPU wrote does not tell and is misread",
    )

    def layers(self, folder: Folder) -> Mapping[str, StoredMatrix]:
        refuse_experts(folder, (torch.int8,))
        return {path: _layout(folder, path).matrix(folder, path) for path in folder.paths("weight_scales")}


def _layout(folder: Folder, path: str) -> AffineLayout:
    name = next(iter(folder.held(path, ("weight", "qweight"))), "weight")
    scale = StoredNumbers("weight_scales", ROW, dims=1)
    return AffineLayout(type="int8 row", codes=InterleavedCodes(name, (torch.int8,), transposed=True), scale=scale)


@dataclass(frozen=True)
class InterleavedCodes(StoredCodes):
    """Codes in the order of the kernels, in a tensor `[columns, rows]`."""

    def check(self, folder: Folder, path: str, size: tuple[int, int] | None = None) -> tuple[int, int]:
        rows, columns = super().check(folder, path, size)
        if columns % _TURN or rows % _PAIR:
            expected = f"a multiple of {_TURN} columns, and pairs of rows"
            raise folder.error(f"{path}.{self.name}", expected, f"{[columns, rows]}")
        return rows, columns

    def open(self, stored: Tensor, rows: int, columns: int) -> Codes:
        return InterleavedBytes(stored)


class InterleavedBytes(Codes):
    """Codes of 8 bits in the order of the kernels.

    Args:
        stored: int8 `[columns, rows]` by name, the bytes in an order of their own.
    """

    stored: Tensor
    order: Tensor

    def __init__(self, stored: Tensor) -> None:
        super().__init__()
        self.register_buffer("stored", stored)
        self.columns, self.rows = stored.shape
        self.register_buffer("order", turn_order())

    def read(self, rows: Rows) -> Tensor:
        index = indices(rows, self.rows, self.stored.device)
        turns = self.stored.view(torch.uint8).view(self.rows // _PAIR, self.columns // _TURN, _PAIR, _TURN)
        codes = turns[index // _PAIR, :, index % _PAIR][..., self.order]
        return codes.flatten(1).bitwise_xor_(128).view(torch.int8)


def turn_order() -> Tensor:
    """Return the place of each of 64 columns within their turn, int64 `[64]`."""
    column = torch.arange(_TURN)
    place = column // 16 * 16 + torch.tensor(_SIXTEEN).argsort()[column % 16]
    return place // 4 * 4 + torch.tensor((0, 2, 1, 3))[place % 4]
