"""Folders of AMD Quark.

    int4, int8, uint4, uint8:  W = (weight - weight_zero_point) * weight_scale, for the matrix, a row or a group
    fp8_e4m3:                  W = weight * weight_scale, for the matrix, a row or a block
    fp4, fp6:                  W = table[code] * weight_scale, E8M0 or floating point for a group
    fp4 with float8 scales:    W = table[code] * weight_scale * weight_scale_2

Integers in groups are stored transposed, codes `[columns, rows]` and scales `[groups, rows]`.

Source: amd-quark 0.13, torch/export/nn/modules/realquantizer.py, torch/utils/pack.py,
torch/kernel/hw_emulation/hw_emulation_interface.py (`dequantize_impl`).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from zoquant.backends.float_table import float_table
from zoquant.backends.quark.config import INTEGERS, WeightSpec, order_of, refusal, weight_spec
from zoquant.backends.quark.words import ORDERS, ReorderedCodes
from zoquant.checkpoint.folder import (
    DENSE,
    MATRIX,
    POWERS,
    ROW,
    AffineLayout,
    Folder,
    FolderFormat,
    LaidMatrix,
    Layout,
    PackedZeros,
    SharedCodes,
    StoredCodes,
    StoredMatrix,
    StoredNumbers,
    TableLayout,
    refuse_experts,
)
from zoquant.native import PackedWeight

FP8 = torch.float8_e4m3fn
_BESIDE = tuple(
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
        refuse_experts(folder, (torch.int32, torch.int8, torch.uint8, FP8))
        order = order_of(folder)
        return {path: _layout(folder, path, order).matrix(folder, path) for path in folder.paths("weight_scale")}


def _layout(folder: Folder, path: str, order: str) -> Layout:
    for name in folder.held(path, _MORE):
        raise refusal(folder, f"{path} has a tensor {name}")
    spec = weight_spec(folder, path)
    if spec.dtype in INTEGERS:
        return _integers(folder, path, spec, ORDERS[order])
    return _float8(folder, path, spec) if spec.dtype == "fp8_e4m3" else _microfloat(folder, path, spec)


@dataclass(frozen=True, kw_only=True, eq=False)
class SymmetricLayout(AffineLayout):
    """Integers whose zero points are zero, whether they are stored or not.

    Attributes:
        unsaid: the zero points that a file may have nevertheless.
    """

    unsaid: StoredNumbers

    def matrix(self, folder: Folder, path: str) -> LaidMatrix:
        matrix = super().matrix(folder, path)
        if folder.held(path, [self.unsaid.name]):
            self.unsaid.check(folder, path, matrix.rows, matrix.columns)
        return matrix

    def read(self, folder: Folder, matrix: StoredMatrix) -> PackedWeight:
        name = f"{matrix.path}.{self.unsaid.name}"
        if name in folder.tensors and bool(folder.read(name).any()):
            raise folder.error(name, "zeros of 0, as 'symmetric' says", "others")
        return super().read(folder, matrix)


def _integers(folder: Folder, path: str, spec: WeightSpec, order: tuple[int, ...]) -> Layout:
    if spec.scheme == "per_block":
        raise refusal(folder, f"{path} has integers in blocks")
    grouped, signed = spec.scheme == "per_group", not spec.dtype.startswith("u")
    codes = _codes(spec, order, grouped=grouped, signed=signed)
    rows, columns = codes.check(folder, path)
    size = columns if spec.group == -1 else spec.group
    block, dims = {"per_tensor": (MATRIX, 0), "per_channel": (ROW, 1), "per_group": ((1, size), 2)}[spec.scheme]
    scale = StoredNumbers("weight_scale", block, dims=dims, transposed=grouped)
    zero = StoredNumbers("weight_zero_point", block, codes.dtypes, role=None, dims=dims, transposed=grouped)
    if codes.bits == 4:
        zero = PackedZeros(
            "weight_zero_point", block, dims=dims, transposed=grouped, bits=4, order=order, signed=signed
        )
        if dims and rows % 8 and (not spec.symmetric or folder.held(path, [zero.name])):
            raise folder.error(f"{path}.weight", "rows in words of 8, as its zeros are", f"{rows}")
    where = {"per_tensor": "tensor", "per_channel": "row", "per_group": f"g{size}"}[spec.scheme]
    if spec.symmetric:
        beside = (zero.name, *_BESIDE)
        return SymmetricLayout(type=f"{spec.dtype} {where} sym", codes=codes, scale=scale, unsaid=zero, beside=beside)
    return AffineLayout(type=f"{spec.dtype} {where}", codes=codes, scale=scale, zero=zero, beside=_BESIDE)


def _codes(spec: WeightSpec, order: tuple[int, ...], *, grouped: bool, signed: bool) -> StoredCodes:
    if INTEGERS[spec.dtype] == 8:
        return StoredCodes("weight", (torch.int8 if signed else torch.uint8,), transposed=grouped)
    if grouped:
        return SharedCodes("weight", (torch.int32,), bits=4, signed=signed, order=order)
    return ReorderedCodes("weight", (torch.int32,), bits=4, signed=signed, order=order)


def _float8(folder: Folder, path: str, spec: WeightSpec) -> Layout:
    blocks = {"per_tensor": MATRIX, "per_channel": ROW, "per_block": spec.block}
    if spec.scheme not in blocks:
        raise refusal(folder, f"{path} has float8 in groups")
    where = {"per_tensor": "tensor", "per_channel": "row"}.get(spec.scheme) or "x".join(map(str, spec.block))
    scale = StoredNumbers("weight_scale", blocks[spec.scheme], ragged=True)
    return AffineLayout(type=f"float8 {where}", codes=StoredCodes("weight", (FP8,)), scale=scale, beside=_BESIDE)


def _microfloat(folder: Folder, path: str, spec: WeightSpec) -> Layout:
    if spec.scheme != "per_group":
        raise refusal(folder, f"{path} has {spec.dtype} {spec.scheme}")
    bits, exponent = {"fp4": (4, 2), "fp6_e2m3": (6, 2), "fp6_e3m2": (6, 3)}[spec.dtype]
    codes = StoredCodes("weight", (torch.uint8,), bits=bits)
    columns = codes.check(folder, path)[1]
    if columns * bits % 8:
        raise folder.error(f"{path}.weight", f"columns of {bits} bits in whole bytes", f"{columns} columns")
    size = columns if spec.group == -1 else spec.group
    scale = StoredNumbers("weight_scale", (1, size), (FP8,) if spec.nested else (*DENSE, *POWERS))
    powers = " E8M0" if folder.tensor(f"{path}.weight_scale").dtype in POWERS else ""
    return TableLayout(
        type=f"{'float4' if bits == 4 else spec.dtype} g{size}{powers}", codes=codes,
        table=float_table(exponent, bits - 1 - exponent),
        scales=(scale, *([StoredNumbers("weight_scale_2", MATRIX)] if spec.nested else [])), beside=_BESIDE,
    )  # fmt: skip
