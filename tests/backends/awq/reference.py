"""AWQ from its published layouts, in numpy: layers, and their weights in float64. Shares no code with zoquant."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Ints = NDArray[np.int64]
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def pack_nibbles(values: Ints, order: tuple[int, ...] = tuple(range(8))) -> NDArray[np.int32]:
    """Pack the last axis eight at a time: nibble i of a word holds value `order[i]` of its eight."""
    eights = values.reshape(*values.shape[:-1], -1, 8).astype(np.uint32)
    words = np.zeros(eights.shape[:-1], np.uint32)
    for nibble, source in enumerate(order):
        words |= eights[..., source] << np.uint32(4 * nibble)
    return words.view(np.int32)


def pack_fast(codes: Ints) -> NDArray[np.int16]:
    """Pack `[rows, columns]` as llm-awq does, step by step as its own description has it."""
    rows, columns = codes.shape
    kernel = codes.reshape(rows, columns // 32, 4, 4, 2).transpose(0, 1, 3, 2, 4)
    kernel = kernel.reshape(rows, columns // 32, 4, 4, 2).transpose(0, 1, 2, 4, 3).reshape(rows, columns)
    kernel = kernel.reshape(rows // 4, 4, columns // 64, 64).transpose(0, 2, 1, 3)
    fours = kernel.reshape(rows // 4, columns, 4).astype(np.uint16)
    words: NDArray[np.int16] = np.bitwise_or.reduce(fours << np.array([0, 4, 8, 12], np.uint16), axis=-1).view(np.int16)
    return words


def padded(groups: int, group_size: int) -> int:
    """Groups of `gemv` scales: whole words of eight, for groups of 64 two and for groups of 32 four at a time."""
    step = 8 * {64: 2, 32: 4}.get(group_size, 1)
    return -(-groups // step) * step


def random_awq(
    path: str, rows: int, columns: int, *, layout: str = "gemm", group_size: int = 32,
    dtype: torch.dtype = torch.float16, zeros_name: str = "qzeros", seed: int = 0,
) -> tuple[dict[str, Tensor], NDArray[np.float64]]:  # fmt: skip
    """Return the tensors of a layer with random codes, zeros and scales, by full name, and its weight."""
    rng = np.random.default_rng(seed)
    groups = columns // group_size
    codes = rng.integers(0, 16, (rows, columns))
    zeros = rng.integers(0, 16, (rows, groups))
    scales = torch.from_numpy(rng.uniform(0.01, 0.1, (rows, groups))).to(dtype)
    wide = scales.double().numpy().repeat(group_size, 1)
    weight: NDArray[np.float64] = (codes - zeros.repeat(group_size, 1)) * wide
    more = padded(groups, group_size) - groups
    filled = torch.nn.functional.pad(scales, (0, more))
    if layout == "gemm":
        tensors = {
            "qweight": torch.from_numpy(pack_nibbles(np.ascontiguousarray(codes.T), ORDER)),
            "qzeros": torch.from_numpy(pack_nibbles(np.ascontiguousarray(zeros.T), ORDER)),
            "scales": scales.t().contiguous(),
        }
    elif layout == "gemv":
        tensors = {
            "qweight": torch.from_numpy(pack_nibbles(codes)),
            "qzeros": torch.from_numpy(pack_nibbles(np.pad(zeros, [(0, 0), (0, more)]))),
            "scales": filled,
        }
    else:
        shift = (-torch.from_numpy(zeros) * scales.double()).to(dtype)
        weight = codes * wide + shift.double().numpy().repeat(group_size, 1)
        tensors = {
            "qweight": torch.from_numpy(pack_fast(codes)),
            zeros_name: torch.nn.functional.pad(shift, (0, more)).t().contiguous(),
            "scales": filled.t().contiguous(),
        }
    return {f"{path}.{name}": tensor for name, tensor in tensors.items()}, weight
