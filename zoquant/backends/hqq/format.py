"""Checkpoints of HQQ: hqq's own `qmodel.pt`, and safetensors as hqq and transformers before 5 save them.

A module has tensors and settings side by side. In `qmodel.pt` settings are plain values; in safetensors they are small
tensors of numbers, or of the letters of a word.

    <path>.W_q                          packed words; their bytes count, whatever dtype they were saved as
    <path>.scale, .zero                 float, one number for each group
    <path>.shape, .packing, .axis, ...  settings
    <path>.scale_q, .meta_scale.scale, .meta_scale.zero, ...    a scale of two levels; zero likewise

Source: hqq 0.2.8.post1, hqq/core/quantize.py (`HQQLinear.state_dict`, `load_state_dict`), hqq/models/base.py;
transformers 4.48, quantizers/quantizer_hqq.py.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoquant.backends.hqq.settings import Matrix, check_numbers, read_matrix, setting
from zoquant.backends.hqq.weights import HQQWeight, PlaneCodes, QuantizedValues, axis_groups
from zoquant.checkpoint.folder import Folder, FolderFormat, MadeMatrix, StoredMatrix, open_folder
from zoquant.checkpoint.folder.reading import HQQ_ARCHIVE
from zoquant.errors import CheckpointError, UnsupportedLayoutError
from zoquant.native import FieldSpec, PackedWeight, Values
from zoquant.protocol import Role

_PARTS: tuple[Role, ...] = ("scale", "zero")


class HQQFormat(FolderFormat):
    """HQQ of 1, 2, 3, 4 and 8 bits, both axes, any group size, scale and zero point in one or two levels."""

    name = "hqq"
    methods = frozenset({"hqq"})
    library = "hqq"

    def sniff(self, path: Path) -> bool:
        """Tell whether `path` is a folder with hqq's own file, or one whose config or tensors name HQQ."""
        if not path.is_dir() or super().sniff(path):
            return path.is_dir()
        try:
            if (path / HQQ_ARCHIVE).exists():
                return True
            folder = open_folder(path)
            other = folder.quantization.keys() & {"quant_method", "quantization_method"}
            return not other and any(name.endswith(".W_q") for name in folder.tensors)
        except CheckpointError:
            return False

    def layers(self, folder: Folder) -> Mapping[str, StoredMatrix]:
        layers = {path: _layer(folder, path) for path in folder.paths("W_q")}
        if not layers:
            raise folder.error("W_q", "at least one matrix with W_q", "none")
        return layers

    def open_vendor(self, path: Path, *, compute_dtype: torch.dtype, device: torch.device) -> tuple[nn.Module, Any]:
        """Return the model on hqq's own layers, and its tokenizer.

        hqq casts scales to the dtype that it computes in, so the model is loaded in the dtype of the file's scales.
        zoquant has read the file before hqq does: it holds tensors and plain values alone.
        """
        from zoquant.checkpoint.folder.tokenizer import build_tokenizer

        folder = open_folder(path)
        layers = self.layers(folder)
        if not self.runtimes()["vendor"].startswith("yes") or not (path / HQQ_ARCHIVE).exists():
            raise UnsupportedLayoutError(
                f"{path}: no vendor runtime here: expected hqq installed and its own {HQQ_ARCHIVE}; hqq and "
                "transformers 5 load no other files. Use runtime='native'."
            )
        from hqq.models.hf.base import AutoHQQHFModel

        _, scale = next(field for layer in layers.values() for field in layer.fields.values())
        dtype = folder.tensor(scale).dtype
        model: nn.Module = AutoHQQHFModel.from_quantized(str(path), compute_dtype=dtype, device=str(device))
        return model.eval().requires_grad_(False), build_tokenizer(path)


def _layer(folder: Folder, path: str) -> StoredMatrix:
    at = _settings_of(folder, path)
    matrix = read_matrix(folder, f"{path}.W_q", at)
    second: dict[str, Matrix] = {}
    for name in _PARTS:
        if setting(folder, f"{at}quant_{name}"):
            second[name] = _second_level(folder, at, name, matrix.groups)
        else:
            check_numbers(folder, f"{at}{name}", matrix.groups)
    size = matrix.rows * matrix.columns // matrix.groups
    kind = f"{matrix.packing.bits}-bit g{size} axis {matrix.axis}" + "".join(f", {name} quantized" for name in second)
    tensors, fields = tuple(_names(folder, path)), dict(_fields(at, second))
    make = partial(_weight, kind, matrix, second, at.removeprefix(f"{path}."))
    return MadeMatrix(path, matrix.rows, matrix.columns, kind, tensors, fields, make=make)


def _weight(
    kind: str, matrix: Matrix, second: Mapping[str, Matrix], at: str, tensors: Mapping[str, Tensor]
) -> PackedWeight:
    """Return a matrix over its tensors: words, scale and zero point."""

    def field(name: str, role: Role, of: Matrix, rows: int, columns: int) -> Values:
        data = tensors[f"{at}{name}"]
        return Values(FieldSpec(name, role, data.dtype), data, axis_groups(of.axis, rows, columns, data.numel()))

    def values(name: Role) -> Values:
        if name not in second:
            return field(name, name, matrix, matrix.rows, matrix.columns)
        inner, at_meta = second[name], f"meta_{name}"
        scale, zero = (
            field(f"{at_meta}.{part}", _role(name, part), inner, inner.rows * inner.columns, 1) for part in _PARTS
        )
        return QuantizedValues(tensors[f"{at}{name}_q"], scale, zero, matrix.axis, matrix.rows, matrix.columns)

    codes = PlaneCodes(tensors["W_q"], matrix.packing, matrix.rows, matrix.columns)
    return HQQWeight(f"HQQ {kind}", codes, values("scale"), zero=values("zero"))


def _settings_of(folder: Folder, path: str) -> str:
    """Return what the names of a layer's settings start with: hqq's first files kept them in a dict `meta`."""
    at = f"{path}.meta." if f"{path}.meta.shape" in folder.values else f"{path}."
    if f"{at}zero_scale" in folder.tensors:
        raise UnsupportedLayoutError(
            f"{folder.path}: '{at}zero_scale': expected a scale and a zero point, got both in one tensor, as "
            "offload_meta=True saved them. Load the model with hqq, set offload_meta=False and save it again."
        )
    return at


def _second_level(folder: Folder, at: str, name: str, groups: int) -> Matrix:
    """Return the matrix that holds the scales or zero points of a layer."""
    inner = read_matrix(folder, f"{at}{name}_q", f"{at}meta_{name}.")
    if inner.rows * inner.columns not in (groups, 1) or inner.packing.bits != 8:
        got = f"{inner.rows} x {inner.columns} of {inner.packing.bits} bits"
        raise folder.error(f"{at}{name}_q", f"{groups} numbers of 8 bits", got)
    for part in _PARTS:
        check_numbers(folder, f"{at}meta_{name}.{part}", inner.groups)
    return inner


def _fields(at: str, second: Mapping[str, Matrix]) -> Iterator[tuple[str, tuple[Role, str]]]:
    for name in _PARTS:
        if name not in second:
            yield name, (name, f"{at}{name}")
            continue
        for part in _PARTS:
            yield f"meta_{name}.{part}", (_role(name, part), f"{at}meta_{name}.{part}")


def _role(name: Role, part: Role) -> Role:
    """Return the role of a part of a scale or zero point in two levels."""
    return "scale" if name == part == "scale" else "zero"


def _names(folder: Folder, path: str) -> Iterator[str]:
    """Yield every tensor of a layer, the bias excepted: a tensor of another name has no place in it."""
    for name in folder.tensors:
        if name.startswith(f"{path}.") and name != f"{path}.bias":
            yield name
