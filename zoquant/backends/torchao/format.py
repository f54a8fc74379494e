"""Checkpoints that torchao quantized, as transformers saves them.

    <path>._weight_qdata        int8 or float8 [rows, columns]; Int4Tensor: two codes a byte [rows, columns / 2]
    <path>._weight_scale        [rows / height, columns / width] for blocks of height x width; Int4Tensor: transposed
    <path>._weight_zero_point   of the same shape, if any

The metadata of the safetensors file names the class and the block size of every `<path>.weight`.

Source: torchao 0.18.0, prototype/safetensors/, quantization/quantize_/workflows/.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoquant.backends.torchao.description import Description, read_description
from zoquant.backends.torchao.layout import CODES, INT4, SCALE, torchao_layout
from zoquant.checkpoint.folder import DENSE, Folder, FolderFormat, StoredMatrix, open_folder, refuse_leftovers


class TorchAOFormat(FolderFormat):
    """Int8Tensor, Float8Tensor, IntxUnpackedToInt8Tensor and Int4Tensor."""

    name = "torchao"
    methods = frozenset({"torchao"})
    library = "torchao"

    def layers(self, folder: Folder) -> Mapping[str, StoredMatrix]:
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
        refuse_leftovers(folder, found, "._weight_", "a description in the metadata of the file")
        return found

    def open_vendor(self, path: Path, *, compute_dtype: torch.dtype, device: torch.device) -> tuple[nn.Module, Any]:
        """Return the model on torchao's own tensors, and its tokenizer.

        It computes in the dtype that the config names, whatever `compute_dtype` says: torchao's weights multiply in the
        dtype that they were made in, and in no other.
        """
        config = open_folder(path).config
        name = config.get("dtype") or config.get("torch_dtype")
        named = {str(dtype).removeprefix("torch."): dtype for dtype in DENSE}
        dtype = named.get(name, compute_dtype) if isinstance(name, str) else compute_dtype
        return super().open_vendor(path, compute_dtype=dtype, device=device)


def _layer(folder: Folder, path: str, description: Description) -> StoredMatrix:
    """Return a matrix, if the description agrees with itself and with the tensors."""
    int4, parts = description.type == INT4, description.parts
    codes = folder.tensor(f"{path}.{CODES}")
    if int4 and (description.block is None or description.block[0] != 1):
        raise folder.error(f"{path}.weight: block_size", "groups of columns, [1, n]", f"{description.block}")
    for part in ("qdata", "scale"):
        if part not in parts:
            raise folder.error(f"{path}.weight", f"{part!r} in '_tensor_data_names'", f"{list(parts)}")
    for part in parts:
        folder.tensor(f"{path}._weight_{part}")
    zero = int4 or "zero_point" in parts
    others = tuple(f"_weight_{part}" for part in parts if part not in ("qdata", "scale", "zero_point"))
    layout = torchao_layout(description.type, (0, 0), zero=zero)
    rows, columns = layout.codes.check(folder, path)
    height, width = description.block or (rows, columns)
    if rows % height or columns % width:
        raise folder.error(f"{path}.weight: block_size", f"divisors of {[rows, columns]}", f"{[height, width]}")
    whole = (height, width) == (rows, columns)
    dims = 0 if whole and folder.tensor(f"{path}.{SCALE}").shape == () else 2
    kind = "int4" if int4 else description.bits or str(codes.dtype).removeprefix("torch.")
    layout = torchao_layout(
        description.type, (height, width), zero=zero, dims=dims, type=f"{kind} {_blocks(rows, columns, height, width)}",
        beside=others,
    )  # fmt: skip
    return layout.matrix(folder, path)


def _blocks(rows: int, columns: int, height: int, width: int) -> str:
    if (height, width) == (rows, columns):
        return "tensor"
    if height == 1:
        return "rows" if width == columns else f"g{width}"
    return f"blocks {height}x{width}"
