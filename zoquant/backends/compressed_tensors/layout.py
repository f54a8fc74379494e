"""The layouts of compressed-tensors.

    integers:  W = (code - zero) * weight_scale
    FP4:       W = table[code] * weight_scale / weight_global_scale

Packed integers have 1 to 8 bits each, without gaps, the lowest bits of an int32 word first. Codes lie along the
columns, zero points along the rows, both stored plus 2 ** (bits - 1); or zero points lie as scales do, as they are.

Source: compressed-tensors 0.20.0, compressors/pack_quantized, naive_quantized, nvfp4, mxfp4, mxfp6, mxfp8 and
quantization/lifecycle/forward_helpers.py (`_dequantize`). `weight_g_idx`: 0.10.0, the same file.
"""

from dataclasses import dataclass, replace

import torch

from zoquant.backends.compressed_tensors.scheme import Scheme
from zoquant.backends.float_table import float_table
from zoquant.checkpoint.folder import (
    DENSE,
    MATRIX,
    POWERS,
    AffineLayout,
    Folder,
    Layout,
    PackedZeros,
    StoredCodes,
    StoredMatrix,
    StoredNumbers,
    TableLayout,
    reciprocal,
)
from zoquant.native import AffineWeight

_FP8 = torch.float8_e4m3fn
_BYTES = (torch.int8, torch.uint8)
_INTEGERS = (*_BYTES, torch.int16, torch.int32, torch.int64)
_ZERO = "weight_zero_point"
_BESIDE = (
    "weight_shape", _ZERO, "weight_g_idx", "weight_global_scale", "input_scale", "input_zero_point",
    "input_global_scale", "output_scale", "output_zero_point",
)  # fmt: skip


def layout_of(folder: Folder, path: str, scheme: Scheme) -> Layout:
    """Return the layout of a module whose weights are stored as a scheme says.

    Raises:
        CheckpointError: rows are no whole codes, or zero points are missing.
    """
    packed, zeros = (bool(folder.held(path, [name])) for name in ("weight_packed", _ZERO))
    kind = scheme.label(zeros=zeros)
    if packed and scheme.kind == "float":
        return _floats(folder, path, scheme, kind)
    zero = _zero(folder, path, scheme, packed=packed) if zeros or not scheme.symmetric else None
    codes = StoredCodes("weight", (torch.int8 if scheme.kind == "int" else _FP8,))
    if packed:
        offset = 0 if isinstance(zero, PackedZeros) else 1 << (scheme.bits - 1)
        codes = StoredCodes("weight_packed", (torch.int32,), scheme.bits, offset=offset)
    scale = StoredNumbers(
        "weight_scale", scheme.share, DENSE if packed else (*DENSE, *POWERS), ragged=scheme.strategy == "block"
    )
    group_of = folder.held(path, ["weight_g_idx"]) if packed else ()
    return IntegerLayout(
        type=kind, codes=codes, scale=scale, zero=zero, beside=_BESIDE, symmetric=scheme.symmetric,
        group_of="".join(group_of),
    )  # fmt: skip


def _zero(folder: Folder, path: str, scheme: Scheme, *, packed: bool) -> StoredNumbers:
    """Return how zero points are stored: those of packed codes may be packed, and then are int32."""
    along_rows = packed and scheme.strategy in ("group", "channel")
    if along_rows and folder.tensor(f"{path}.{_ZERO}").dtype == torch.int32:
        return PackedZeros(_ZERO, scheme.share, bits=scheme.bits)
    dtypes = _BYTES if packed else _INTEGERS
    return StoredNumbers(_ZERO, scheme.share, dtypes, None, ragged=scheme.strategy == "block")


@dataclass(frozen=True, kw_only=True, eq=False)
class IntegerLayout(AffineLayout):
    """Integers or float8, packed or not.

    Attributes:
        symmetric: whether the config says that zero points are zero.
    """

    symmetric: bool

    def size(self, folder: Folder, path: str) -> tuple[int, int] | None:
        """Return rows and columns of packed codes, as `weight_shape` says them."""
        if self.codes.bits is None:
            return None
        shape = folder.expect(f"{path}.weight_shape", (2,), (torch.int64, torch.int32)).read()
        return int(shape[0]), int(shape[1])

    def read(self, folder: Folder, matrix: StoredMatrix) -> AffineWeight:
        """Return the matrix; a `weight_g_idx` with -1 stands for columns in their order."""
        layout = self
        if self.group_of and bool((folder.read(f"{matrix.path}.{self.group_of}") == -1).any()):
            layout = replace(self, group_of="")
        weight = layout.weight(layout.tensors(folder, matrix), (matrix.rows, matrix.columns))
        none = 1 << (self.zero.bits - 1) if isinstance(self.zero, PackedZeros) else 0
        if self.symmetric and weight.zero is not None and bool((weight.zero.at(slice(0, weight.rows)) != none).any()):
            raise folder.error(f"{matrix.path}.{_ZERO}", "zero points of 0, as 'symmetric' says", "others")
        return weight


def _floats(folder: Folder, path: str, scheme: Scheme, kind: str) -> TableLayout:
    length = folder.expect_matrix(f"{path}.weight_packed", (torch.uint8,)).shape[1]
    if scheme.bits == 8 or length * 8 % scheme.bits:
        expected = f"whole codes of {scheme.bits} bits in each row"
        raise folder.error(f"{path}.weight_packed", expected, f"{length} bytes")
    scale = StoredNumbers("weight_scale", scheme.share, (*DENSE, *POWERS, _FP8), ragged=scheme.strategy == "block")
    whole = StoredNumbers("weight_global_scale", MATRIX, (torch.float32,), decode=reciprocal)
    scales = (scale, whole) if folder.held(path, [whole.name]) else (scale,)
    codes, table = StoredCodes("weight_packed", (torch.uint8,), scheme.bits), float_table(2, scheme.bits - 3)
    return TableLayout(type=kind, codes=codes, table=table, scales=scales, beside=_BESIDE)
