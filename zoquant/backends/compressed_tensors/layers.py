"""The quantized matrices of compressed-tensors.

    integers:  W = (code - zero) * weight_scale
    FP4:       W = table[code] * weight_scale / weight_global_scale

Source: compressed-tensors 0.20.0, compressors/pack_quantized, naive_quantized, nvfp4, mxfp4, mxfp6, mxfp8 and
quantization/lifecycle/forward_helpers.py (`_dequantize`). `weight_g_idx`: 0.10.0, the same file.
"""

from dataclasses import dataclass

import torch

from zoquant.backends.compressed_tensors.scheme import Scheme
from zoquant.backends.compressed_tensors.words import packed_codes, packed_zeros
from zoquant.backends.layouts.microfloat import COARSE_NOTE, MicrofloatLayer
from zoquant.backends.layouts.scale_grid import ScaleGrid, reciprocal
from zoquant.backends.layouts.scaled import (
    POWER_NOTE,
    POWERS,
    ScaledLayer,
    check_grid,
    check_matrix,
    described,
    spec_of,
)
from zoquant.checkpoint.folder import Folder, StoredMatrix
from zoquant.checkpoint.folder.matrix import DENSE
from zoquant.errors import CheckpointError
from zoquant.native import AffineWeight, PackedWeight, Values
from zoquant.protocol import Role

_INTEGERS = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)
_COMPANIONS = (
    "weight_shape", "weight_zero_point", "weight_g_idx", "weight_global_scale", "input_scale", "input_zero_point",
    "input_global_scale", "output_scale", "output_zero_point",
)  # fmt: skip
_CACHE = ("q_scale", "k_scale", "v_scale", "q_zero_point", "k_zero_point", "v_zero_point")


def layer_of(folder: Folder, path: str, scheme: Scheme) -> StoredMatrix:
    """Return the layer of a module whose weights are stored as a scheme says.

    Raises:
        CheckpointError: a tensor contradicts the scheme or the others.
    """
    if f"{path}.weight_packed" not in folder.tensors:
        return _plain(folder, path, scheme)
    return _packed_integers(folder, path, scheme) if scheme.kind == "int" else _packed_floats(folder, path, scheme)


@dataclass(frozen=True, kw_only=True)
class PlainLayer(ScaledLayer):
    """A byte a code.

    Attributes:
        symmetric: whether the config says that zero points are zero.
    """

    symmetric: bool

    def packed(self, folder: Folder) -> PackedWeight:
        """Read the matrix.

        Raises:
            CheckpointError: there are zero points that the config denies.
        """
        if self.symmetric and self.zero and bool(folder.read(self.zero).any()):
            raise _not_symmetric(folder, self.zero)
        return super().packed(folder)


@dataclass(frozen=True, kw_only=True)
class PackedIntegers(StoredMatrix):
    """Integers of 1 to 8 bits in int32 words."""

    scheme: Scheme
    grid: ScaleGrid

    def packed(self, folder: Folder) -> PackedWeight:
        """Read the matrix.

        Raises:
            CheckpointError: `weight_g_idx` names a group that does not exist, or there are zeros that the config
                denies.
        """
        bits, scale = self.scheme.bits, f"{self.path}.weight_scale"
        group_of = self._group_of(folder)
        codes = packed_codes(folder.read(f"{self.path}.weight_packed"), bits, self.columns)
        values = self.grid.values(spec_of(self, folder, scale), folder.read(scale), group_of=group_of)
        zero = self._zero(folder, group_of)
        middle = 1 << (bits - 1)
        if self.scheme.symmetric and bool((zero.at(slice(0, self.rows)) != middle).any()):
            raise _not_symmetric(folder, f"{self.path}.weight_zero_point")
        return AffineWeight(self.type, codes, values, zero=zero)

    def _zero(self, folder: Folder, group_of: torch.Tensor | None) -> Values:
        name, middle = f"{self.path}.weight_zero_point", 1 << (self.scheme.bits - 1)
        if name not in folder.tensors:
            whole = ScaleGrid(self.rows, self.columns, self.rows, self.columns)
            return whole.values(None, torch.tensor([middle], dtype=torch.int16))
        stored = folder.read(name)
        if self.grid.holds(tuple(stored.shape)) and stored.dtype != torch.int32:
            return self.grid.values(None, stored, lambda zero: zero.float() + middle, group_of=group_of)
        return packed_zeros(stored, self.scheme.bits, self.grid, group_of)

    def _group_of(self, folder: Folder) -> torch.Tensor | None:
        name = f"{self.path}.weight_g_idx"
        if name not in folder.tensors:
            return None
        groups = folder.read(name).long()
        if (groups == -1).any():
            return None
        if groups.min() < 0 or groups.max() >= self.grid.shape[1]:
            raise folder.error(
                name, f"groups 0 to {self.grid.shape[1] - 1}", f"{int(groups.min())} to {int(groups.max())}"
            )
        return groups


def _plain(folder: Folder, path: str, scheme: Scheme) -> StoredMatrix:
    codes, scale, zero = (f"{path}.{name}" for name in ("weight", "weight_scale", "weight_zero_point"))
    kind = torch.int8 if scheme.kind == "int" else torch.float8_e4m3fn
    rows, columns = check_matrix(folder, codes, (kind,)).shape
    grid = _grid(folder, path, scheme, rows, columns)
    stored = check_grid(folder, scale, grid, (*DENSE, *POWERS))
    if not scheme.symmetric or zero in folder.tensors:
        check_grid(folder, zero, grid, _INTEGERS)
    powers = stored.dtype in POWERS
    return PlainLayer(
        path, rows, columns, scheme.label(zeros=zero in folder.tensors),
        (codes, scale, *_companions(folder, path)),
        {} if powers else {"weight_scale": ("scale", scale)},
        POWER_NOTE if powers else "",
        codes=codes, scale=scale, grid=grid, zero=zero if zero in folder.tensors else "",
        symmetric=scheme.symmetric,
    )  # fmt: skip


def _packed_integers(folder: Folder, path: str, scheme: Scheme) -> StoredMatrix:
    packed, scale, zero = (f"{path}.{name}" for name in ("weight_packed", "weight_scale", "weight_zero_point"))
    rows, words = check_matrix(folder, packed, (torch.int32,)).shape
    shape = folder.expect(f"{path}.weight_shape", (2,), (torch.int64, torch.int32)).read().tolist()
    if shape[0] != rows or shape[1] < 1 or -(-shape[1] * scheme.bits // 32) != words:
        raise folder.error(
            packed, f"int32 words for {shape} codes of {scheme.bits} bits, as {path}.weight_shape says",
            f"{[rows, words]}",
        )  # fmt: skip
    grid = _grid(folder, path, scheme, rows, shape[1])
    check_grid(folder, scale, grid, DENSE)
    if not scheme.symmetric or zero in folder.tensors:
        _check_zero(folder, zero, scheme, grid)
    if f"{path}.weight_g_idx" in folder.tensors:
        folder.expect(f"{path}.weight_g_idx", (shape[1],), (torch.int32, torch.int64))
    tensors = (packed, scale, *_companions(folder, path))
    fields: dict[str, tuple[Role, str]] = {"weight_scale": ("scale", scale)}
    label = scheme.label(zeros=zero in folder.tensors)
    return PackedIntegers(path, rows, shape[1], label, tensors, fields, scheme=scheme, grid=grid)


def _packed_floats(folder: Folder, path: str, scheme: Scheme) -> StoredMatrix:
    packed, scale, whole = (f"{path}.{name}" for name in ("weight_packed", "weight_scale", "weight_global_scale"))
    rows, length = check_matrix(folder, packed, (torch.uint8,)).shape
    columns = length * 8 // scheme.bits
    if scheme.bits == 8 or columns * scheme.bits != length * 8:
        raise folder.error(packed, f"whole codes of {scheme.bits} bits in each row", f"{length} bytes")
    grid = _grid(folder, path, scheme, rows, columns)
    stored = check_grid(folder, scale, grid, (*DENSE, *POWERS, torch.float8_e4m3fn))
    fields: dict[str, tuple[Role, str]] = {"weight_scale": ("scale", scale)} if stored.dtype in DENSE else {}
    if whole in folder.tensors:
        check_grid(folder, whole, ScaleGrid(rows, columns, rows, columns), (torch.float32,))
        fields["weight_global_scale"] = ("scale", whole)
    note = "" if fields else POWER_NOTE if stored.dtype in POWERS else COARSE_NOTE
    return MicrofloatLayer(
        path, rows, columns, scheme.label(zeros=False), (packed, scale, *_companions(folder, path)), fields, note,
        codes=packed, scale=scale, grid=grid, bits=scheme.bits, whole=whole if whole in folder.tensors else "",
        decode_whole=reciprocal,
    )  # fmt: skip


def _not_symmetric(folder: Folder, name: str) -> CheckpointError:
    return folder.error(name, "zero points of 0, as 'symmetric' says", "others")


def _grid(folder: Folder, path: str, scheme: Scheme, rows: int, columns: int) -> ScaleGrid:
    grid = scheme.grid(rows, columns)
    if scheme.group and columns % scheme.group:
        raise folder.error(path, f"columns that groups of {scheme.group} divide, as the config says", f"{columns}")
    return grid


def _check_zero(folder: Folder, name: str, scheme: Scheme, grid: ScaleGrid) -> None:
    tensor = folder.tensor(name)
    if grid.holds(tensor.shape) and tensor.dtype in (torch.int8, torch.uint8):
        return
    words = (-(-grid.rows * scheme.bits // 32), grid.shape[1])
    if scheme.strategy not in ("group", "channel") or tensor.shape != words or tensor.dtype != torch.int32:
        raise folder.error(
            name, f"{list(words)} of int32 with {scheme.bits} bits a row, or {list(grid.shape)} of int8",
            described(tensor),
        )  # fmt: skip


def _companions(folder: Folder, path: str) -> list[str]:
    """Return the tensors that stand beside a layer's own: for its activations, and for the cache of its attention."""
    names = [f"{path}.{name}" for name in _COMPANIONS]
    names += [f"{path.rpartition('.')[0]}.{name}" for name in _CACHE]
    return [name for name in names if name in folder.tensors]
