"""Folders of AMD Quark.

    int4, int8, uint4, uint8:  W = (weight - weight_zero_point) * weight_scale, for the matrix, a row or a group
    fp8_e4m3:                  W = weight * weight_scale, for the matrix, a row or a block
    fp4, fp6:                  W = table[code] * weight_scale, E8M0 or floating point for a group
    fp4 with float8 scales:    W = table[code] * weight_scale * weight_scale_2

Integers in groups are stored transposed, codes `[columns, rows]` and scales `[groups, rows]`.

Source: amd-quark 0.13, torch/export/nn/modules/realquantizer.py, torch/utils/pack.py,
torch/kernel/hw_emulation/hw_emulation_interface.py (`dequantize_impl`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from zoquant.backends.layouts.microfloat import MicrofloatLayer
from zoquant.backends.layouts.scale_grid import ScaleGrid
from zoquant.backends.layouts.scaled import (
    POWER_NOTE,
    POWERS,
    ScaledLayer,
    check_grid,
    check_matrix,
    refuse_experts,
    spec_of,
)
from zoquant.backends.quark.config import INTEGERS, WeightSpec, order_of, refusal, weight_spec
from zoquant.backends.quark.words import PER_WORD, NibbleWords, TransposedCodes, nibble_zeros
from zoquant.checkpoint.folder import Folder, FolderFormat, StoredMatrix
from zoquant.checkpoint.folder.matrix import DENSE
from zoquant.native import AffineWeight, Codes, PackedWeight, PlainCodes, Values
from zoquant.native.values import GroupLookup, column_groups, per_row, whole

FP8 = torch.float8_e4m3fn
_COMPANIONS = tuple(
    f"{side}_{name}{level}" for side in ("input", "output") for name in ("scale", "zero_point") for level in ("", "_2")
)
_MORE = ("input_rotation", "input_prescale", "bias_scale")
"""Tensors of layers that do more than multiply with a matrix."""


class QuarkFormat(FolderFormat):
    """Integers, float8 and microscaled floats; a layer's own entry of the config says which."""

    name = "quark"
    methods = frozenset({"quark"})
    library = "quark"
    notes = ("activations: quantized by Quark as the config says, left in floating point by native layers",)

    def layers(self, folder: Folder) -> Mapping[str, StoredMatrix]:
        """Return every quantized matrix by the path of its module.

        Raises:
            CheckpointError: a tensor is missing, or does not fit the others and the config.
            UnsupportedLayoutError: a dtype, scheme or layer that native layers do not compute.
        """
        refuse_experts(folder, (torch.int32, torch.int8, torch.uint8, FP8))
        order = order_of(folder)
        paths = [name.removesuffix(".weight_scale") for name in folder.tensors if name.endswith(".weight_scale")]
        return {path: _layer(folder, path, order) for path in paths}


@dataclass(frozen=True, kw_only=True)
class IntegerLayer(StoredMatrix):
    """`w = (code - zero) * scale`.

    Attributes:
        spec: how it is stored.
        order: order of 4-bit codes in a word.
    """

    spec: WeightSpec
    order: str

    def packed(self, folder: Folder) -> PackedWeight:
        """Read the matrix.

        Raises:
            CheckpointError: there are zeros, and `symmetric` says that there are none.
        """
        weight, scale, *zero = self.tensors[: 2 if self.spec.symmetric else 3]
        unsaid = f"{self.path}.weight_zero_point"
        if self.spec.symmetric and unsaid in folder.tensors and bool(folder.read(unsaid).any()):
            raise folder.error(unsaid, "zeros of 0, as 'symmetric' says", "others")
        place = {"per_group": column_groups, "per_channel": per_row, "per_tensor": whole}[self.spec.scheme]
        scales = Values(spec_of(self, folder, scale), folder.read(scale), place)
        zeros = Values(None, folder.read(zero[0]), self._zero_place(place)) if zero else None
        return AffineWeight(self.type, self._codes(folder.read(weight)), scales, zero=zeros)

    def _codes(self, stored: torch.Tensor) -> Codes:
        transposed = self.spec.scheme == "per_group"
        if INTEGERS[self.spec.dtype] == 4:
            return NibbleWords(stored, self.order, signed=self.spec.dtype == "int4", transposed=transposed)
        return TransposedCodes(stored) if transposed else PlainCodes(stored)

    def _zero_place(self, place: GroupLookup) -> GroupLookup:
        if INTEGERS[self.spec.dtype] == 8:
            return place
        return nibble_zeros(self.order, self.rows, signed=self.spec.dtype == "int4")


def _layer(folder: Folder, path: str, order: str) -> StoredMatrix:
    for name in _MORE:
        if f"{path}.{name}" in folder.tensors:
            raise refusal(folder, f"{path} has a tensor {name}")
    spec = weight_spec(folder, path)
    if spec.dtype in INTEGERS:
        return _integer(folder, path, spec, order)
    return _float8(folder, path, spec) if spec.dtype == "fp8_e4m3" else _microfloat(folder, path, spec)


def _integer(folder: Folder, path: str, spec: WeightSpec, order: str) -> StoredMatrix:
    if spec.scheme == "per_block":
        raise refusal(folder, f"{path} has integers in blocks")
    bits, per_word = (4, PER_WORD) if INTEGERS[spec.dtype] == 4 else (8, 1)
    kind = torch.int32 if bits == 4 else torch.int8 if spec.dtype == "int8" else torch.uint8
    weight, scale, zero = (f"{path}.{name}" for name in ("weight", "weight_scale", "weight_zero_point"))
    height, width = check_matrix(folder, weight, (kind,)).shape
    width *= per_word
    rows, columns = (width, height) if spec.scheme == "per_group" else (height, width)
    size = columns if spec.group == -1 else spec.group
    if columns % size:
        raise folder.error(weight, f"columns that groups of {size} divide, as the config says", f"{columns}")
    shape = {"per_tensor": (), "per_channel": (rows,), "per_group": (columns // size, rows)}[spec.scheme]
    folder.expect(scale, shape, DENSE)
    if zero in folder.tensors or not spec.symmetric:
        if shape and rows % per_word:
            raise folder.error(weight, f"rows in words of {per_word}, as its zeros are", f"{rows}")
        folder.expect(zero, (*shape[:-1], shape[-1] // per_word) if shape else (), (kind,))
    where = {"per_tensor": "tensor", "per_channel": "row", "per_group": f"g{size}"}[spec.scheme]
    present = [name for name in (weight, scale, zero) if name in folder.tensors]
    return IntegerLayer(
        path, rows, columns, f"{spec.dtype} {where}{' sym' if spec.symmetric else ''}",
        (*present, *_companions(folder, path)), {"weight_scale": ("scale", scale)}, spec=spec, order=order,
    )  # fmt: skip


def _float8(folder: Folder, path: str, spec: WeightSpec) -> StoredMatrix:
    weight, scale = f"{path}.weight", f"{path}.weight_scale"
    rows, columns = check_matrix(folder, weight, (FP8,)).shape
    blocks = {"per_tensor": (rows, columns), "per_channel": (1, columns), "per_block": spec.block}
    if spec.scheme not in blocks:
        raise refusal(folder, f"{path} has float8 in groups")
    grid = ScaleGrid(rows, columns, *blocks[spec.scheme])
    check_grid(folder, scale, grid, DENSE)
    where = {"per_tensor": "tensor", "per_channel": "row"}.get(spec.scheme) or "x".join(map(str, spec.block))
    return ScaledLayer(
        path, rows, columns, f"float8 {where}", (weight, scale, *_companions(folder, path)),
        {"weight_scale": ("scale", scale)}, codes=weight, scale=scale, grid=grid,
    )  # fmt: skip


def _microfloat(folder: Folder, path: str, spec: WeightSpec) -> StoredMatrix:
    weight, scale, top = (f"{path}.{name}" for name in ("weight", "weight_scale", "weight_scale_2"))
    bits, exponent = {"fp4": (4, 2), "fp6_e2m3": (6, 2), "fp6_e3m2": (6, 3)}[spec.dtype]
    if spec.scheme != "per_group":
        raise refusal(folder, f"{path} has {spec.dtype} {spec.scheme}")
    rows, length = check_matrix(folder, weight, (torch.uint8,)).shape
    columns = length * 8 // bits
    size = columns if spec.group == -1 else spec.group
    if length * 8 % bits or columns % size:
        raise folder.error(weight, f"columns of {bits} bits that groups of {size} divide", f"{length} bytes a row")
    grid = ScaleGrid(rows, columns, 1, size)
    stored = check_grid(folder, scale, grid, (FP8,) if spec.nested else (*DENSE, *POWERS)).dtype
    if spec.nested:
        check_grid(folder, top, ScaleGrid(rows, columns, rows, columns), DENSE)
    trained = {"weight_scale_2": top} if spec.nested else {} if stored in POWERS else {"weight_scale": scale}
    kind = f"{'float4' if bits == 4 else spec.dtype} g{size}{' E8M0' if stored in POWERS else ''}"
    return MicrofloatLayer(
        path, rows, columns, kind, (weight, scale, *([top] if spec.nested else []), *_companions(folder, path)),
        {name: ("scale", tensor) for name, tensor in trained.items()}, "" if trained else POWER_NOTE,
        codes=weight, scale=scale, grid=grid, bits=bits, exponent_bits=exponent, whole=top if spec.nested else "",
    )  # fmt: skip


def _companions(folder: Folder, path: str) -> Sequence[str]:
    return [f"{path}.{name}" for name in _COMPANIONS if f"{path}.{name}" in folder.tensors]
