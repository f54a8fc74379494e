"""GPTQ from its published layout, in numpy: layers, and their weights in float64. Shares no code with zoquant."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Ints = NDArray[np.int64]


def pack(values: Ints, bits: int) -> NDArray[np.int32]:
    """Pack the last axis as one stream of bits, the lowest first, into words of 32."""
    stream = (values[..., None] >> np.arange(bits)) & 1
    flat = stream.reshape(*values.shape[:-1], -1).astype(np.uint8)
    flat = np.pad(flat, [(0, 0)] * (flat.ndim - 1) + [(0, -flat.shape[-1] % 32)])
    words: NDArray[np.int32] = np.packbits(flat, axis=-1, bitorder="little").view("<i4")
    return words


def unpack(words: NDArray[np.int32], bits: int, count: int) -> Ints:
    """The reverse of `pack`, leaving out what fills the last word."""
    stream = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=-1, bitorder="little")
    fields = stream[..., : count * bits].reshape(*words.shape[:-1], count, bits).astype(np.int64)
    codes: Ints = (fields << np.arange(bits)).sum(-1)
    return codes


def random_gptq(
    path: str, rows: int, columns: int, *, bits: int = 4, group_size: int = 32, act_order: bool = False,
    sym: bool = False, minus_one: bool = True, dtype: torch.dtype = torch.float16, g_idx: bool = True, seed: int = 0,
) -> dict[str, Tensor]:  # fmt: skip
    """Return the tensors of a layer with random codes, zeros and scales, by full name."""
    rng = np.random.default_rng(seed)
    size = columns if group_size == -1 else group_size
    groups = -(-columns // size)
    codes = rng.integers(0, 1 << bits, (rows, columns))
    zeros = np.full((groups, rows), 1 << (bits - 1)) if sym else rng.integers(1, 1 << bits, (groups, rows))
    order = np.arange(columns) // size
    tensors = {
        "qweight": torch.from_numpy(np.ascontiguousarray(pack(codes, bits).T)),
        "qzeros": torch.from_numpy(pack(zeros - minus_one, bits)),
        "scales": torch.from_numpy(rng.uniform(0.01, 0.1, (groups, rows))).to(dtype),
    }
    if g_idx:
        tensors["g_idx"] = torch.from_numpy((rng.permutation(order) if act_order else order).astype(np.int32))
    return {f"{path}.{name}": tensor for name, tensor in tensors.items()}


def dequantize(
    tensors: dict[str, Tensor], path: str, *, bits: int, columns: int, group_size: int, minus_one: bool
) -> NDArray[np.float64]:
    """Return the weight `[rows, columns]` that the tensors of a layer stand for."""
    scales = tensors[f"{path}.scales"].double().numpy()
    codes = unpack(tensors[f"{path}.qweight"].numpy().T, bits, columns)
    zeros = unpack(tensors[f"{path}.qzeros"].numpy(), bits, scales.shape[1]) + minus_one
    size = columns if group_size == -1 else group_size
    order = np.arange(columns) // size
    if f"{path}.g_idx" in tensors:
        order = tensors[f"{path}.g_idx"].numpy()
    weight: NDArray[np.float64] = (codes - zeros[order].T) * scales[order].T
    return weight
