"""Checkpoints that torchao quantized, as transformers saves them.

    <path>._weight_qdata        int8 or float8 [rows, columns]; Int4Tensor: two codes a byte [rows, columns / 2]
    <path>._weight_scale        [rows / height, columns / width] for blocks of height x width; Int4Tensor: transposed
    <path>._weight_zero_point   of the same shape, if any

The metadata of the safetensors file names the class and the block size of every `<path>.weight`.

Source: torchao 0.18.0, prototype/safetensors/, quantization/quantize_/workflows/.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoquant.backends.torchao.description import Description, read_description
from zoquant.backends.torchao.weights import blocks, int4_columns
from zoquant.checkpoint.folder import Folder, FolderFormat, StoredMatrix, open_folder
from zoquant.checkpoint.folder.matrix import DENSE
from zoquant.native import PackedWeight
from zoquant.protocol import Role

_FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
_BYTES = (torch.int8, torch.uint8)


class TorchAOFormat(FolderFormat):
    """Int8Tensor, Float8Tensor, IntxUnpackedToInt8Tensor and Int4Tensor."""

    name = "torchao"
    methods = frozenset({"torchao"})
    library = "torchao"

    def layers(self, folder: Folder) -> Mapping[str, StoredMatrix]:
        """Return every matrix that the metadata describes.

        Raises:
            CheckpointError: a tensor is missing, left over, of another shape or dtype than described, or of a class
                that zoquant cannot run.
        """
        found: dict[str, StoredMatrix] = {}
        for name in folder.metadata:
            path, dot, parameter = name.rpartition(".")
            description = read_description(folder, name) if dot else None
            if description is not None:
                if parameter != "weight":
                    raise folder.error(name, "the weight of a Linear or an Embedding", f"a parameter {parameter!r}")
                found[path] = _layer(folder, path, description)
        if not found:
            raise folder.error("__metadata__", "torchao's description of at least one weight", "none")
        taken = {name for layer in found.values() for name in layer.tensors}
        for name, tensor in folder.tensors.items():
            if name not in taken and (tensor.dtype not in DENSE or "._weight_" in name):
                raise folder.error(name, "a description in the metadata of the file", "none")
        return found

    def open_vendor(self, path: Path, *, compute_dtype: torch.dtype, device: torch.device) -> tuple[nn.Module, Any]:
        """Return the model on torchao's own tensors, and its tokenizer.

        It computes in the dtype that the config names, whatever `compute_dtype` says: torchao's weights multiply in the
        dtype that they were made in, and in no other.

        Raises:
            UnsupportedLayoutError: torchao is not installed.
            CheckpointError: transformers refuses the checkpoint.
        """
        config = open_folder(path).config
        name = config.get("dtype") or config.get("torch_dtype")
        named = {str(dtype).removeprefix("torch."): dtype for dtype in DENSE}
        dtype = named.get(name, compute_dtype) if isinstance(name, str) else compute_dtype
        return super().open_vendor(path, compute_dtype=dtype, device=device)


@dataclass(frozen=True, kw_only=True)
class TorchAOLayer(StoredMatrix):
    """A matrix of one of torchao's classes."""

    description: Description

    def packed(self, folder: Folder) -> PackedWeight:
        """Read codes, scales and zero points."""
        codes, scale = (folder.read(f"{self.path}._weight_{part}") for part in ("qdata", "scale"))
        has_zero = "zero_point" in self.description.parts
        zero = folder.read(f"{self.path}._weight_zero_point") if has_zero else None
        if self.description.type == "Int4Tensor" and zero is not None:
            return int4_columns(codes, scale, zero)
        return blocks(codes, scale, zero)


def _layer(folder: Folder, path: str, description: Description) -> TorchAOLayer:
    at = f"{path}._weight_"
    rows, columns = _shape(folder, path, description)
    height, width = description.block or (rows, columns)
    if rows % height or columns % width:
        raise folder.error(f"{path}.weight: block_size", f"divisors of {[rows, columns]}", f"{[height, width]}")
    scales = (rows // height, columns // width)
    int4 = description.type == "Int4Tensor"
    shape: tuple[int, ...] = scales[::-1] if int4 else scales
    if scales == (1, 1) and folder.tensor(f"{at}scale").shape == ():
        shape = ()
    scale = folder.expect(f"{at}scale", shape, DENSE)
    fields: dict[str, tuple[Role, str]] = {"weight_scale": ("scale", scale.name)}
    if int4 or "zero_point" in description.parts:
        zero = folder.expect(f"{at}zero_point", shape, DENSE if int4 else (*DENSE, torch.int8))
        if zero.dtype.is_floating_point:
            fields["weight_zero_point"] = ("scale" if int4 else "zero", zero.name)
    return TorchAOLayer(
        path=path,
        rows=rows,
        columns=columns,
        type=f"{_codes(folder, at, description)} {_blocks(rows, columns, height, width)}",
        tensors=tuple(f"{at}{part}" for part in description.parts),
        fields=fields,
        description=description,
    )


def _shape(folder: Folder, path: str, description: Description) -> tuple[int, int]:
    """Return the shape of the matrix, after checking its codes."""
    name = f"{path}._weight_qdata"
    shape = folder.tensor(name).shape
    if len(shape) != 2 or 0 in shape:
        raise folder.error(name, "a matrix", f"shape {list(shape)}")
    int4 = description.type == "Int4Tensor"
    folder.expect(name, shape, _FLOAT8 if description.type == "Float8Tensor" else _BYTES if int4 else (torch.int8,))
    if int4 and (description.block is None or description.block[0] != 1):
        raise folder.error(f"{path}.weight: block_size", "groups of columns, [1, n]", f"{description.block}")
    for part in ("qdata", "scale"):
        if part not in description.parts:
            raise folder.error(f"{path}.weight", f"{part!r} in '_tensor_data_names'", f"{list(description.parts)}")
    for part in description.parts:
        folder.tensor(f"{path}._weight_{part}")
    return shape[0], shape[1] * (2 if int4 else 1)


def _codes(folder: Folder, at: str, description: Description) -> str:
    if description.type == "Int4Tensor":
        return "int4"
    return description.bits or str(folder.tensor(f"{at}qdata").dtype).removeprefix("torch.")


def _blocks(rows: int, columns: int, height: int, width: int) -> str:
    if (height, width) == (rows, columns):
        return "tensor"
    if height == 1:
        return "rows" if width == columns else f"g{width}"
    return f"blocks {height}x{width}"
