"""torchao's layouts in numpy float64, written from what is published, and random tensors of those layouts."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def dequantize(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], path: str) -> NDArray[np.float64]:
    """Dequantize the weight of a layer."""
    said = json.loads(metadata[f"{path}.weight"])
    part = {name: tensors[f"{path}._weight_{name}"] for name in said["_tensor_data_names"]}
    scale: NDArray[np.float64] = part["scale"].double().numpy()
    zero = part["zero_point"].double().numpy() if "zero_point" in part else np.zeros_like(scale)
    height, width = said["_data"]["block_size"]
    if said["_type"] == "Int4Tensor":
        data = part["qdata"].contiguous().view(torch.uint8).numpy().astype(np.int64)
        codes = np.stack([data & 15, data >> 4], -1).reshape(len(data), -1)
        codes = codes - 16 * (codes > 7)
        signed: NDArray[np.float64] = codes * scale.T.repeat(width, 1) + zero.T.repeat(width, 1)
        return signed
    codes = part["qdata"].float().double().numpy()
    grown = [values.repeat(height, 0).repeat(width, 1) for values in (scale, zero)]
    weights: NDArray[np.float64] = (codes - grown[1]) * grown[0]
    return weights


def random_layer(
    path: str, rows: int, columns: int, kind: str, block: tuple[int, int] | None = None, *,
    zero: torch.dtype | None = torch.int8, codes: torch.dtype = torch.int8, scale: torch.dtype = torch.float32,
    seed: int = 0,
) -> tuple[dict[str, Tensor], dict[str, str]]:  # fmt: skip
    """Return tensors and metadata of a layer with random codes and scales."""
    generator = torch.Generator().manual_seed(seed)
    height, width = block or (1, columns)
    shape = (columns // width, rows) if kind == "Int4Tensor" else (rows // height, columns // width)
    data = torch.randint(-128, 128, (rows, columns), generator=generator, dtype=torch.int8)
    attributes: dict[str, Any] = {"block_size": [height, width]}
    if kind == "Int4Tensor":
        data, zero = data[:, : columns // 2], scale
    elif kind == "Float8Tensor":
        data, zero = torch.randn(rows, columns, generator=generator).to(codes), None
    elif kind == "IntxUnpackedToInt8Tensor":
        data = data >> 4
        attributes["target_dtype"] = {"_type": "torch.dtype", "_data": "int4"}
    parts = {"qdata": data, "scale": (torch.rand(shape, generator=generator) * 0.02 + 0.001).to(scale)}
    if zero is not None:
        limit = torch.rand(shape, generator=generator)
        parts["zero_point"] = (limit * (0.01 if kind == "Int4Tensor" else 4)).to(zero)
    said = {"_type": kind, "_data": attributes, "_tensor_data_names": list(parts)}
    found = {f"{path}._weight_{name}": tensor.contiguous() for name, tensor in parts.items()}
    return found, {f"{path}.weight": json.dumps(said)}
