"""Small BitNet layers and folders, the same bytes every time."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.checkpoint.folder.llama import write_llama

BITLINEAR = {"quant_method": "bitnet", "linear_class": "bitlinear", "quantization_mode": "offline"}
AUTO = {**BITLINEAR, "linear_class": "autobitlinear"}


def ternary(rows: int, columns: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return random ternary weights, float64 `[rows, columns]`, and the bytes that hold them, packed one by one."""
    codes = np.random.default_rng(seed).integers(0, 3, (rows, columns))
    quarter = rows // 4
    packed = np.zeros((quarter, columns), dtype=np.uint8)
    for row in range(rows):
        packed[row % quarter] |= (codes[row] << (2 * (row // quarter))).astype(np.uint8)
    return torch.from_numpy(codes - 1.0), torch.from_numpy(packed)


def bitlinear(*, bias: bool = True, dtype: torch.dtype = torch.float32, **more: Any) -> nn.Module:
    """Return a BitLinear [32 -> 24]."""
    from transformers.integrations.bitnet import BitLinear

    if more and "use_rms_norm" not in inspect.signature(BitLinear).parameters:
        pytest.skip("the BitLinear of this transformers only multiplies")
    layer: Any = BitLinear(32, 24, bias=bias, dtype=dtype, **more)
    layer.weight.copy_(ternary(24, 32)[1])
    layer.weight_scale.fill_(12.5)
    if bias:
        layer.bias.copy_(torch.linspace(-1, 1, 24))
    module: nn.Module = layer.requires_grad_(False)
    return module


def auto_bitlinear(*, bias: bool = False, dtype: torch.dtype = torch.float32, **more: Any) -> nn.Module:
    """Return an AutoBitLinear [32 -> 24]."""
    bitnet = pytest.importorskip("transformers.integrations.bitnet")
    if not hasattr(bitnet, "AutoBitLinear"):
        pytest.skip("this transformers has no AutoBitLinear")
    layer: Any = bitnet.AutoBitLinear(32, 24, bias=bias, dtype=dtype, **more).requires_grad_(False)
    layer.weight.copy_(ternary(24, 32)[0])
    if hasattr(layer, "weight_scale"):
        layer.weight_scale.fill_(0.08)
    module: nn.Module = layer
    return module


def write(folder: Path, said: dict[str, Any] = BITLINEAR, *, dtype: torch.dtype = torch.float32) -> Path:
    """Write a llama of one layer with ternary matrices."""
    count = 0

    def quantize(path: str, weight: Tensor) -> dict[str, Tensor]:
        nonlocal count
        count += 1
        rows, columns = weight.shape
        scale = torch.tensor([20.0 + count])
        scale = scale if said["linear_class"] == "bitlinear" else 1 / scale
        return {f"{path}.weight": ternary(rows, columns, count)[1], f"{path}.weight_scale": scale.to(dtype)}

    return write_llama(folder, quantize, said, dtype=dtype)


BACKEND_SAMPLES: dict[str, Callable[[], nn.Module]] = {
    "transformers.integrations.bitnet.BitLinear": bitlinear,
    "transformers.integrations.bitnet.AutoBitLinear": auto_bitlinear,
}
FORMAT_SAMPLES: dict[str, Callable[[Path], Path]] = {"bitnet": lambda folder: write(folder / "bitnet")}
