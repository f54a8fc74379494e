"""Reading tensors: a few megabytes at a time, so that a load needs hardly more memory than what it keeps."""

from math import prod

import torch
from torch import Tensor

from zoquant.backends.gguf.blocks import CODECS, BlockCodec
from zoquant.backends.gguf.header import TensorInfo
from zoquant.backends.gguf.types import DENSE
from zoquant.files.tensors import StoredTensor
from zoquant.native import PackedWeight, QuantWeight
from zoquant.native.dense import DenseWeight

CHUNK = 8 << 20
"""Bytes that are read at a time."""
_REMEDY = "Quantize the checkpoint to another type, or download it again."


def read_dense(tensor: TensorInfo, device: torch.device) -> Tensor:
    """Return plain numbers in the dtype of the file.

    Raises:
        CheckpointError: the tensor is not F32, F16 or BF16.
    """
    dtype = DENSE.get(tensor.type.name)
    if dtype is None:
        raise tensor.error(f"one of the types {', '.join(DENSE)}", tensor.type.name, _REMEDY)
    return _place(tensor, 0, tensor.nbytes, tensor.shape, dtype).read().to(device)


def read_matrix(tensor: TensorInfo, device: torch.device, row_order: Tensor | None = None) -> PackedWeight:
    """Return a matrix with its codes and fields, or its plain numbers, as the file has them.

    Args:
        tensor: the matrix, or `[experts, rows, columns]`: each below the one before.
        device: where it goes.
        row_order: as `QuantWeight` takes it.

    Raises:
        CheckpointError: no codec knows the tensor's type.
    """
    order = None if row_order is None else row_order.to(device)
    if tensor.type.name in DENSE:
        return DenseWeight(read_dense(tensor, device).flatten(0, -2), order)
    codec = _codec(tensor)
    rows, groups = prod(tensor.shape[:-1]), tensor.shape[-1] // codec.block
    row_bytes = groups * codec.nbytes
    codes = torch.empty(rows, groups, codec.code_bytes, dtype=torch.uint8, device=device)
    values = [torch.empty(rows, groups, dtype=field.dtype, device=device) for field in codec.fields]
    step = max(1, CHUNK // row_bytes)
    for start in range(0, rows, step):
        count = min(step, rows - start)
        blocks = _place(tensor, start * row_bytes, count * row_bytes, (count, groups, codec.nbytes), torch.uint8)
        part, fields = codec.cut(blocks.read())
        codes[start : start + count].copy_(part)
        for value, field in zip(values, fields, strict=True):
            value[start : start + count].copy_(field)
    return QuantWeight(codec, codes, values, order)


def _place(tensor: TensorInfo, start: int, nbytes: int, shape: tuple[int, ...], dtype: torch.dtype) -> StoredTensor:
    """Return the place of some bytes of a tensor."""
    return StoredTensor(tensor.name, tensor.file, tensor.offset + start, nbytes, shape, dtype)


def _codec(tensor: TensorInfo) -> BlockCodec:
    codec = CODECS.get(tensor.type.name)
    if codec is None:
        raise tensor.error(f"one of the types {', '.join([*DENSE, *CODECS])}", tensor.type.name, _REMEDY)
    if len(tensor.shape) < 2:
        raise tensor.error("a matrix", f"shape {tensor.shape}", _REMEDY)
    return codec
