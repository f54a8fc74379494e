"""Reading tensors: a few megabytes at a time, so that a load needs hardly more memory than what it keeps."""

from dataclasses import replace

import torch
from torch import Tensor

from zoquant.backends.gguf.blocks import CODECS, BlockCodec
from zoquant.backends.gguf.header import TensorInfo
from zoquant.backends.gguf.types import DENSE
from zoquant.errors import CheckpointError
from zoquant.native import PackedWeight, QuantWeight
from zoquant.native.dense import DenseWeight

CHUNK = 8 << 20
"""Bytes that are read at a time."""


class TensorReader:
    """Reads the tensors of a model, wherever they are.

    Args:
        device: where the tensors go.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._buffer = bytearray()

    def dense(self, tensor: TensorInfo, *, as_stored: bool = False) -> Tensor:
        """Return plain numbers of the tensor's shape, as float32 or in the dtype of the file.

        Raises:
            CheckpointError: the tensor is not F32, F16 or BF16.
        """
        dtype = DENSE.get(tensor.type.name)
        if dtype is None:
            raise self._error(tensor, f"one of the types {', '.join(DENSE)}", tensor.type.name)
        out = torch.empty(tensor.shape, dtype=dtype if as_stored else torch.float32, device=self.device)
        flat = out.view(-1)
        step = CHUNK // dtype.itemsize
        for start in range(0, flat.numel(), step):
            count = min(step, flat.numel() - start)
            raw = self._read(tensor, start * dtype.itemsize, count * dtype.itemsize)
            flat[start : start + count].copy_(raw.view(dtype))
        return out

    def stacked(self, tensor: TensorInfo) -> PackedWeight:
        """Return the matrices `[experts, rows, columns]` of a tensor as one, each below the one before.

        Raises:
            CheckpointError: no codec knows the tensor's type.
        """
        if tensor.type.name in DENSE:
            return DenseWeight(self.dense(tensor, as_stored=True).flatten(0, 1))
        return self.packed(replace(tensor, shape=(tensor.shape[0] * tensor.shape[1], tensor.shape[2])), None)

    def packed(self, tensor: TensorInfo, row_order: Tensor | None) -> QuantWeight:
        """Return a quantized matrix with its codes and fields as the file has them.

        Args:
            tensor: the matrix.
            row_order: as `QuantWeight` takes it.

        Raises:
            CheckpointError: no codec knows the tensor's type.
        """
        codec = self._codec(tensor)
        rows, groups = tensor.shape[0], tensor.shape[1] // codec.block
        row_bytes = groups * codec.nbytes
        codes = torch.empty(rows, groups, codec.code_bytes, dtype=torch.uint8, device=self.device)
        values = [torch.empty(rows, groups, dtype=field.dtype, device=self.device) for field in codec.fields]
        step = max(1, CHUNK // row_bytes)
        for start in range(0, rows, step):
            count = min(step, rows - start)
            raw = self._read(tensor, start * row_bytes, count * row_bytes).view(count, groups, codec.nbytes)
            part, fields = codec.cut(raw)
            codes[start : start + count].copy_(part)
            for value, field in zip(values, fields, strict=True):
                value[start : start + count].copy_(field)
        return QuantWeight(codec, codes, values, None if row_order is None else row_order.to(self.device))

    def _codec(self, tensor: TensorInfo) -> BlockCodec:
        codec = CODECS.get(tensor.type.name)
        if codec is None:
            raise self._error(tensor, f"one of the types {', '.join([*DENSE, *CODECS])}", tensor.type.name)
        if len(tensor.shape) != 2:
            raise self._error(tensor, "a matrix", f"shape {tensor.shape}")
        return codec

    def _read(self, tensor: TensorInfo, start: int, count: int) -> Tensor:
        if len(self._buffer) < count:
            self._buffer = bytearray(count)
        view, done = memoryview(self._buffer)[:count], 0
        with tensor.file.open("rb", buffering=0) as file:
            file.seek(tensor.offset + start)
            while done < count:
                got = file.readinto(view[done:])
                if not got:
                    raise self._error(tensor, f"{tensor.nbytes} bytes of data", "the end of the file")
                done += got
        return torch.frombuffer(self._buffer, dtype=torch.uint8, count=count)

    def _error(self, tensor: TensorInfo, expected: str, got: str) -> CheckpointError:
        return CheckpointError(
            f"{tensor.file}: tensor {tensor.name!r}: expected {expected}, got {got}. "
            "Quantize the checkpoint to another type, or download it again."
        )
