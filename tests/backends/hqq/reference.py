"""HQQ in float64, written from hqq 0.2.8's published layout with numpy alone."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BITS = {"8bit_u8": 8, "4bit_u8": 4, "3bit_32": 3, "2bit_u8": 2, "1bit_u8": 1}


def numbers(tensor: Tensor) -> NDArray[np.float64]:
    return tensor.detach().double().numpy()


def codes_of(words: Tensor, packing: str, height: int) -> NDArray[np.int64]:
    """Unpack `[words, columns]`: fields of a word from the highest on are rows that are `words` apart."""
    bits = BITS[packing]
    kind, fields = (np.int32, 10) if bits == 3 else (np.uint8, 8 // bits)
    raw = words.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    flat = np.frombuffer(raw, kind).astype(np.int64)
    lines = -(-height // fields)
    grid = flat.reshape(lines, -1)
    return np.concatenate([(grid >> (fields - 1 - f) * bits) & ((1 << bits) - 1) for f in range(fields)])[:height]


def dequantize(matrix: Mapping[str, Any]) -> NDArray[np.float64]:
    """Return `(codes - zero) * scale` in the shape of the matrix."""
    rows, columns = matrix["shape"]
    size, axis = matrix["group_size"], matrix["axis"]
    size = size or (columns if axis == 1 else rows)
    height = rows * columns // size if axis == 1 else size
    codes = codes_of(matrix["W_q"], matrix["packing"], height)
    return ((codes - level(matrix, "zero")) * level(matrix, "scale")).reshape(rows, columns)


def level(matrix: Mapping[str, Any], name: str) -> NDArray[np.float64]:
    if not matrix[f"quant_{name}"]:
        return numbers(matrix[name])
    inner = {**matrix[f"meta_{name}"], "W_q": matrix[f"{name}_q"], "quant_scale": False, "quant_zero": False}
    return dequantize(inner)
