"""Folders of transformers' Metal quantization, MLX's affine layout under names of its own.

    W = code * scales + qbiases, codes of 2, 4 or 8 bits in uint32 words along the columns, the lowest bits first

Source: transformers 5.23.0, integrations/metal_quantization.py (`_affine_dequantize_tensor`).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from zoquant.backends.layouts.scale_grid import ScaleGrid
from zoquant.backends.layouts.scaled import check_grid, check_matrix, spec_of
from zoquant.backends.native_only import NativeOnlyFormat
from zoquant.checkpoint.folder import Folder, StoredMatrix
from zoquant.checkpoint.folder.matrix import DENSE
from zoquant.native import AffineWeight, PackedWeight, PackedWords

_BITS = (2, 4, 8)


class MetalFormat(NativeOnlyFormat):
    """Groups of columns with a scale and an offset, both in floating point."""

    name = "metal"
    methods = frozenset({"metal"})
    reason = "transformers computes it on Apple's hardware alone; elsewhere it dequantizes the model"

    def layers(self, folder: Folder) -> Mapping[str, StoredMatrix]:
        """Return every packed matrix by the path of its module.

        Raises:
            CheckpointError: scales or offsets are missing, or do not fit the words and the config.
        """
        bits, size = (_number(folder, name, default) for name, default in (("bits", 4), ("group_size", 64)))
        if bits not in _BITS:
            raise folder.error("bits", "2, 4 or 8", repr(bits))
        paths = [name.removesuffix(".qbiases") for name in folder.tensors if name.endswith(".qbiases")]
        return {path: _layer(folder, path, bits, size) for path in paths}


@dataclass(frozen=True, kw_only=True)
class MetalLayer(StoredMatrix):
    """`w = code * scale + offset` in groups of columns.

    Attributes:
        bits: bits of a code.
        grid: how scales and offsets lie over the matrix.
    """

    bits: int
    grid: ScaleGrid

    def packed(self, folder: Folder) -> PackedWeight:
        """Read the matrix."""
        words, scales, offsets = self.tensors
        codes = PackedWords(folder.read(words).view(torch.int32), self.bits, self.columns)
        scale = self.grid.values(spec_of(self, folder, scales), folder.read(scales))
        shift = self.grid.values(spec_of(self, folder, offsets), folder.read(offsets), _negated)
        return AffineWeight(self.type, codes, scale, shift=shift)


def _negated(stored: torch.Tensor) -> torch.Tensor:
    return -stored.float()


def _layer(folder: Folder, path: str, bits: int, size: int) -> StoredMatrix:
    weight, scales, offsets = (f"{path}.{name}" for name in ("weight", "scales", "qbiases"))
    rows, words = check_matrix(folder, weight, (torch.uint32, torch.int32)).shape
    columns = words * 32 // bits
    if columns % size:
        raise folder.error(weight, f"columns that groups of {size} divide, as the config says", f"{columns}")
    grid = ScaleGrid(rows, columns, 1, size)
    check_grid(folder, scales, grid, DENSE)
    check_grid(folder, offsets, grid, DENSE)
    return MetalLayer(
        path, rows, columns, f"{bits}-bit g{size}", (weight, scales, offsets),
        {"scales": ("scale", scales), "qbiases": ("scale", offsets)}, bits=bits, grid=grid,
    )  # fmt: skip


def _number(folder: Folder, name: str, default: int) -> int:
    number = folder.quantization.get(name, default)
    if type(number) is not int or number < 1:
        raise folder.error(name, "a positive integer", repr(number)[:80])
    return number
