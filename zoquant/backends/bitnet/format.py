"""Folders of BitNet b1.58.

    linear_class bitlinear:      W = (code - 1) / weight_scale
    linear_class autobitlinear:  W = (code - 1) * weight_scale

Source: transformers 5.23.0, integrations/bitnet.py (`BitLinear`, `AutoBitLinear`, `BitNetDeserialize`).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from zoquant.backends.bitnet.codes import QUARTERS, QuarterCodes
from zoquant.backends.layouts.scale_grid import ScaleGrid, reciprocal
from zoquant.backends.layouts.scaled import check_grid, check_matrix, spec_of
from zoquant.checkpoint.folder import Folder, FolderFormat, StoredMatrix
from zoquant.checkpoint.folder.matrix import DENSE
from zoquant.errors import UnsupportedLayoutError
from zoquant.native import AffineWeight, PackedWeight
from zoquant.native.values import Decode


class BitNetFormat(FolderFormat):
    """Ternary matrices with one scale each, packed as transformers packs them."""

    name = "bitnet"
    methods = frozenset({"bitnet"})
    library = "transformers"
    notes = ("activations: rounded to int8 for each token by transformers, left in floating point by native layers",)

    def layers(self, folder: Folder) -> Mapping[str, StoredMatrix]:
        """Return every ternary matrix by the path of its module.

        Raises:
            CheckpointError: a scale is missing or of another shape.
            UnsupportedLayoutError: the weights are quantized in every forward, or the layers do more than multiply.
        """
        divided = _is_divided(folder)
        paths = [name.removesuffix(".weight_scale") for name in folder.tensors if name.endswith(".weight_scale")]
        for path in paths:
            if not divided and f"{path}.bias" in folder.tensors:
                raise _refusal(folder, f"{path}.bias is multiplied with weight_scale by AutoBitLinear")
        return {path: _layer(folder, path, reciprocal if divided else Tensor.float) for path in paths}


@dataclass(frozen=True, kw_only=True)
class TernaryLayer(StoredMatrix):
    """`w = (code - 1) * scale`, or divided by it.

    Attributes:
        decode: what turns the stored scale into a factor.
    """

    decode: Decode

    def packed(self, folder: Folder) -> PackedWeight:
        """Read the matrix."""
        name, whole = f"{self.path}.weight_scale", ScaleGrid(self.rows, self.columns, self.rows, self.columns)
        scale = whole.values(spec_of(self, folder, name), folder.read(name), self.decode)
        one = whole.values(None, torch.ones(1, dtype=torch.uint8))
        return AffineWeight(self.type, QuarterCodes(folder.read(f"{self.path}.weight")), scale, zero=one)


def _layer(folder: Folder, path: str, decode: Decode) -> StoredMatrix:
    weight, scale = f"{path}.weight", f"{path}.weight_scale"
    height, columns = check_matrix(folder, weight, (torch.uint8,)).shape
    rows = height * QUARTERS
    check_grid(folder, scale, ScaleGrid(rows, columns, rows, columns), DENSE)
    fields = {"weight_scale": ("scale", scale)}
    return TernaryLayer(path, rows, columns, "ternary", (weight, scale), fields, decode=decode)  # type: ignore[arg-type]


def _is_divided(folder: Folder) -> bool:
    said = folder.quantization
    kind = said.get("linear_class", "bitlinear")
    if kind not in ("bitlinear", "autobitlinear"):
        raise folder.error("linear_class", "'bitlinear' or 'autobitlinear'", repr(kind)[:80])
    if kind == "autobitlinear" and said.get("quantization_mode") == "online":
        raise _refusal(folder, "'quantization_mode' is 'online': plain weights are quantized in every forward")
    if said.get("use_rms_norm"):
        raise _refusal(folder, "'use_rms_norm': its layers normalize their input")
    return bool(kind == "bitlinear")


def _refusal(folder: Folder, why: str) -> UnsupportedLayoutError:
    return UnsupportedLayoutError(
        f"{folder.path}: {why}, which native layers do not compute. Use a checkpoint with packed weights and "
        "linear_class='bitlinear'."
    )
