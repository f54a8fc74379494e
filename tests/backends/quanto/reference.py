"""quanto's layouts in numpy float64, written from what is published, and random tensors of those layouts."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BITS = {"qint4": 4, "qint2": 2}
CODES = {"qint8": torch.int8, "qfloat8": torch.float8_e4m3fn, "qfloat8_e5m2": torch.float8_e5m2}


def dequantize(tensors: Mapping[str, Tensor], path: str, kind: str, columns: int) -> NDArray[np.float64]:
    """Dequantize the weight of a layer."""
    at = f"{path}.weight."
    scale: NDArray[np.float64] = tensors[f"{at}_scale"].double().numpy()
    if kind in CODES:
        plain: NDArray[np.float64] = tensors[f"{at}_data"].float().double().numpy() * scale
        return plain
    packed, bits = tensors[f"{at}_data._data"].numpy(), BITS[kind]
    codes = np.concatenate([(packed >> shift) & ((1 << bits) - 1) for shift in range(0, 8, bits)])[: len(scale)]
    shift = tensors[f"{at}_shift"]
    values = shift.double().numpy()
    weights: NDArray[np.float64] = codes * scale - values if shift.is_floating_point() else (codes - values) * scale
    return np.asarray(weights.reshape(-1, columns))


def random_layer(
    path: str, rows: int, columns: int, kind: str, *, size: int = 0, dtype: torch.dtype = torch.float32,
    shift: torch.dtype | None = None, seed: int = 0,
) -> dict[str, Tensor]:  # fmt: skip
    """Return the tensors of a layer with random codes, scales and shifts."""
    generator = torch.Generator().manual_seed(seed)
    at, groups = f"{path}.weight.", rows * columns // (size or columns)
    found = {f"{path}.{name}": torch.ones((), dtype=dtype) for name in ("input_scale", "output_scale")}
    if kind in CODES:
        data = torch.randint(-60, 60, (rows, columns), generator=generator).to(CODES[kind])
        return found | {f"{at}_data": data, f"{at}_scale": (torch.rand(rows, 1, generator=generator) * 0.01).to(dtype)}
    height = -(-groups * BITS[kind] // 8)
    number = torch.rand(groups, 1, generator=generator)
    return found | {
        f"{at}_data._data": torch.randint(0, 256, (height, size or columns), generator=generator, dtype=torch.uint8),
        f"{at}_scale": (torch.rand(groups, 1, generator=generator) * 0.02 + 0.001).to(dtype),
        f"{at}_shift": number.mul(0.2).to(dtype) if shift is None else number.mul(8).to(shift),
    }
