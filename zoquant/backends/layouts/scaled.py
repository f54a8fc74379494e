"""Matrices whose codes fill a byte each, int8 or float8, with scales on a grid: what several formats store alike."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from zoquant.backends.layouts.scale_grid import ScaleGrid, power_of_two
from zoquant.checkpoint.folder import Folder, StoredMatrix, StoredTensor
from zoquant.errors import UnsupportedLayoutError
from zoquant.native import AffineWeight, Codes, FieldSpec, PackedWeight, PlainCodes
from zoquant.native.values import Decode

POWERS = (torch.uint8, torch.float8_e8m0fnu)
"""The dtypes of scales that are powers of two."""
POWER_NOTE = "its scales are powers of two, so a step cannot be small"


@dataclass(frozen=True, kw_only=True)
class ScaledLayer(StoredMatrix):
    """`w = (code - zero) * scale`, one byte a code.

    Attributes:
        codes: tensor of the codes, `[rows, columns]`, or `[columns, rows]` if `transposed`.
        scale: tensor of the scales.
        zero: tensor of integers to subtract, on the same grid, or empty.
        grid: how scales and zeros lie over the matrix.
        decode: what turns stored scales into factors, unless their dtype says that they are powers of two.
        read_codes: what turns the tensor of the codes into `Codes`.
    """

    codes: str
    scale: str
    grid: ScaleGrid
    zero: str = ""
    decode: Decode = Tensor.float
    read_codes: Callable[[Tensor], Codes] = PlainCodes

    def packed(self, folder: Folder) -> PackedWeight:
        """Read the matrix."""
        scale = folder.read(self.scale)
        decode = power_of_two if scale.dtype in POWERS else self.decode
        zero = self.grid.values(None, folder.read(self.zero)) if self.zero else None
        values = self.grid.values(spec_of(self, folder, self.scale), scale, decode)
        return AffineWeight(self.type, self.read_codes(folder.read(self.codes)), values, zero=zero)


def spec_of(layer: StoredMatrix, folder: Folder, tensor: str) -> FieldSpec | None:
    """Return the field whose values a tensor holds, or None where they are not trained."""
    for name, (role, holder) in layer.fields.items():
        if holder == tensor:
            return FieldSpec(name, role, folder.tensor(tensor).dtype)
    return None


def check_matrix(folder: Folder, name: str, dtypes: Iterable[torch.dtype]) -> StoredTensor:
    """Return a tensor that has to be a matrix of one of these dtypes, and not empty.

    Raises:
        CheckpointError: it is missing, or is something else.
    """
    tensor = folder.tensor(name)
    allowed = tuple(dtypes)
    if len(tensor.shape) != 2 or 0 in tensor.shape or tensor.dtype not in allowed:
        raise folder.error(name, f"a matrix of {_names(allowed)}", described(tensor))
    return tensor


def check_grid(folder: Folder, name: str, grid: ScaleGrid, dtypes: Iterable[torch.dtype]) -> StoredTensor:
    """Return a tensor that has to hold one number of these dtypes for every block of a grid.

    Raises:
        CheckpointError: it is missing, or is of another shape or dtype.
    """
    tensor, allowed = folder.tensor(name), tuple(dtypes)
    if not grid.holds(tensor.shape) or tensor.dtype not in allowed:
        raise folder.error(
            name,
            f"{list(grid.shape)} of {_names(allowed)}, one for each {grid.height} x {grid.width} weights",
            described(tensor),
        )
    return tensor


def refuse_experts(folder: Folder, dtypes: Iterable[torch.dtype]) -> None:
    """Refuse matrices of several experts that lie in one tensor.

    Raises:
        UnsupportedLayoutError: a tensor of these dtypes has more than two dimensions.
    """
    for tensor in folder.tensors.values():
        if len(tensor.shape) > 2 and tensor.dtype in tuple(dtypes):
            raise UnsupportedLayoutError(
                f"{folder.path}: tensor {tensor.name!r}: {described(tensor)}: all experts of a layer in one tensor, "
                "which native layers do not compute. Use a checkpoint that keeps each expert apart."
            )


def described(tensor: StoredTensor) -> str:
    """Return shape and dtype of a tensor for a message."""
    return f"{list(tensor.shape)} of {_names((tensor.dtype,))}"


def _names(dtypes: Iterable[torch.dtype]) -> str:
    return " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
