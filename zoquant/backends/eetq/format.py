"""Folders of EETQ: int8 in the order of FasterTransformer's kernels for Turing and Ampere, one scale a row.

Pairs of outputs take turns of 64 columns. Within 16 columns the order is `_SIXTEEN`, within 4 bytes the middle two are
exchanged, and 128 is added to every number. Volta's order is another, and nothing in a file says which GPU wrote it.

Source: NetEase-FuXi/EETQ, csrc/cutlass_kernels/cutlass_preprocessors.cc (`preprocess_weights_for_mixed_gemm`) and
csrc/cutlass_extensions/.../mixed_gemm_B_layout.h; transformers 5.23.0, integrations/eetq.py (`EetqLinear`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from zoquant.backends.layouts.scaled import check_matrix, refuse_experts, spec_of
from zoquant.backends.native_only import NativeOnlyFormat
from zoquant.checkpoint.folder import Folder, StoredMatrix
from zoquant.checkpoint.folder.matrix import DENSE
from zoquant.native import AffineWeight, Codes, PackedWeight, Values
from zoquant.native.packed import Rows
from zoquant.native.values import indices, per_row
from zoquant.protocol import Summary

_TURN = 64
_PAIR = 2
_SIXTEEN = (0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15)
"""Which column of sixteen lies in each place."""
_NOTE = "int8: read in the order of Turing and later GPUs; a file that a Volta GPU wrote does not tell and is misread"


class EETQFormat(NativeOnlyFormat):
    """Int8 matrices with one scale for each output."""

    name = "eetq"
    methods = frozenset({"eetq"})
    reason = "EETQ computes it on a GPU alone"

    def layers(self, folder: Folder) -> Mapping[str, StoredMatrix]:
        """Return every int8 matrix by the path of its module.

        Raises:
            CheckpointError: scales are missing, or a matrix is of a shape that the kernels do not take.
            UnsupportedLayoutError: all experts of a layer lie in one tensor.
        """
        refuse_experts(folder, (torch.int8,))
        paths = [name.removesuffix(".weight_scales") for name in folder.tensors if name.endswith(".weight_scales")]
        return {path: _layer(folder, path) for path in paths}

    def summarize(self, path: Path) -> Summary:
        """Return what the config and the headers say, and what they do not."""
        summary = super().summarize(path)
        return replace(summary, notes=[*summary.notes, _NOTE])


@dataclass(frozen=True, kw_only=True)
class EETQLayer(StoredMatrix):
    """`w = code * scale`."""

    def packed(self, folder: Folder) -> PackedWeight:
        """Read the matrix."""
        weight, scales = self.tensors
        values = Values(spec_of(self, folder, scales), folder.read(scales), per_row)
        return AffineWeight(self.type, InterleavedBytes(folder.read(weight)), values)


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


def _layer(folder: Folder, path: str) -> StoredMatrix:
    name = next((each for each in ("weight", "qweight") if f"{path}.{each}" in folder.tensors), "weight")
    weight, scales = f"{path}.{name}", f"{path}.weight_scales"
    columns, rows = check_matrix(folder, weight, (torch.int8,)).shape
    if columns % _TURN or rows % _PAIR:
        raise folder.error(weight, f"a multiple of {_TURN} columns, and pairs of rows", f"{[columns, rows]}")
    folder.expect(scales, (rows,), DENSE)
    return EETQLayer(path, rows, columns, "int8 row", (weight, scales), {"weight_scales": ("scale", scales)})
