"""Small float8 and FP4 matrices as DeepSeek, FBGEMM and Model Optimizer store them, and the weights they stand for."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.backends.compressed_tensors import reference as ref
from tests.checkpoint.folder.llama import write_llama

Tensors = dict[str, Tensor]
Made = tuple[Tensors, ref.Array]


def float8(
    rows: int, columns: int, seed: int, *, block: tuple[int, int] | None, name: str = "weight_scale_inv",
    dtype: torch.dtype = torch.float32, shape: tuple[int, ...] | None = None, size: float = 2e-4,
) -> Made:  # fmt: skip
    """Return random float8 codes and a scale for each block, or for the matrix."""
    random = np.random.default_rng(seed)
    codes = (random.integers(0, 127, (rows, columns)) + 128 * random.integers(0, 2, (rows, columns))).astype(np.uint8)
    height, width = (min(size, whole) for size, whole in zip(block or (rows, columns), (rows, columns), strict=True))
    grid = (-(-rows // height), -(-columns // width))
    if dtype in (torch.uint8, torch.float8_e8m0fnu):
        exponents = random.integers(113, 117, grid).astype(np.uint8)
        scale, factors = torch.from_numpy(exponents).view(dtype), 2.0 ** (exponents.astype(float) - 127)
    else:
        scale = torch.from_numpy(random.uniform(0.2, 1, grid) * size).to(dtype)
        factors = scale.double().numpy()
    weight = ref.float8_e4m3(codes) * ref.spread(factors, rows, columns, height, width)
    scale = scale.reshape(grid if shape is None else shape)
    return {"weight": torch.from_numpy(codes).view(torch.float8_e4m3fn), name: scale}, weight


def float4(rows: int, columns: int, seed: int) -> Made:
    """Return DeepSeek-V4's experts: FP4 in int8, and E8M0 for runs of 32 columns."""
    random = np.random.default_rng(seed)
    codes = random.integers(0, 16, (rows, columns))
    exponents = random.integers(119, 123, (rows, columns // 32)).astype(np.uint8)
    weight = ref.E2M1[codes] * ref.spread(2.0 ** (exponents.astype(float) - 127), rows, columns, 1, 32)
    packed = torch.from_numpy(ref.pack(codes, 4, 8).view(np.int8))
    return {"weight": packed, "scale": torch.from_numpy(exponents).view(torch.float8_e8m0fnu)}, weight


def nvfp4(rows: int, columns: int, seed: int) -> Made:
    """Return Model Optimizer's NVFP4: a float8 scale for 16 columns, and a float32 scale that multiplies."""
    random = np.random.default_rng(seed)
    codes = random.integers(0, 16, (rows, columns))
    scale = torch.from_numpy(random.uniform(50, 448, (rows, columns // 16))).to(torch.float8_e4m3fn)
    whole = torch.tensor(0.05 / (6 * 448))
    factors = ref.float8_e4m3(scale.view(torch.uint8).numpy()) * float(whole)
    packed = torch.from_numpy(ref.pack(codes, 4, 8))
    return {
        "weight": packed, "weight_scale": scale, "weight_scale_2": whole, "input_scale": torch.tensor(0.01),
    }, ref.E2M1[codes] * ref.spread(factors, rows, columns, 1, 16)  # fmt: skip


def _fp8(block: tuple[int, int] | None, **more: Any) -> Callable[[int, int, int], Made]:
    return lambda rows, columns, seed: float8(rows, columns, seed, block=block, **more)


FINE: Mapping[str, Any] = {"quant_method": "fp8", "weight_block_size": [16, 32]}
WHOLE: Mapping[str, Any] = {"quant_method": "fp8", "weight_block_size": None}
ROWS: Mapping[str, Any] = {"quant_method": "fbgemm_fp8"}
MODELOPT: Mapping[str, Any] = {"quant_method": "modelopt", "quant_algo": "NVFP4"}
KINDS: dict[str, tuple[Mapping[str, Any], Callable[[int, int, int], Made]]] = {
    "blocks": (FINE, _fp8((16, 32))),
    "blocks-ragged": ({"quant_method": "fp8"}, _fp8((128, 128))),
    "blocks-bf16": (FINE, _fp8((16, 32), dtype=torch.bfloat16)),
    "blocks-ue8m0": ({**FINE, "scale_fmt": "ue8m0"}, _fp8((16, 32), dtype=torch.float8_e8m0fnu, name="scale")),
    "whole": (WHOLE, _fp8(None, shape=())),
    "whole-1": (WHOLE, _fp8(None, shape=(1,), name="qscale_weight")),
    "mxfp8": ({"quant_method": "mxfp8", "weight_block_size": [1, 32]}, _fp8((1, 32), dtype=torch.uint8)),
    "mxfp8-in-fp8": (FINE, _fp8((1, 32), dtype=torch.uint8)),
    "fp4-experts": (FINE, float4),
    "rows": (ROWS, _fp8((1, 1 << 20), name="weight_scale")),
    "rows-bf16": (ROWS, _fp8((1, 1 << 20), name="weight_scale", dtype=torch.bfloat16)),
    "nvfp4": (MODELOPT, nvfp4),
    "modelopt-fp8": (MODELOPT, _fp8(None, shape=(), name="weight_scale")),
    "modelopt-fp8-rows": (MODELOPT, _fp8((1, 1 << 20), name="weight_scale")),
    "modelopt-fp8-blocks": (MODELOPT, _fp8((128, 128), name="weight_scale", dtype=torch.bfloat16)),
}


def write(folder: Path, *names: str, **more: Any) -> Path:
    """Write a llama of one layer whose matrices are stored in the kinds of these names, in turn."""
    count = 0

    def quantize(path: str, weight: Tensor) -> Tensors:
        nonlocal count
        _, make = KINDS[names[count % len(names)]]
        count += 1
        tensors, _ = make(weight.shape[0], weight.shape[1], count)
        return {f"{path}.{name}": tensor for name, tensor in tensors.items()}

    return write_llama(folder, quantize, {**KINDS[names[0]][0], **more})


def _sample(name: str, *names: str) -> Callable[[Path], Path]:
    return lambda folder: write(folder / name, *names)


FORMAT_SAMPLES: dict[str, Callable[[Path], Path]] = {
    "fp8": _sample("fp8", "blocks", "whole", "mxfp8-in-fp8", "fp4-experts", "blocks-bf16"),
    "fbgemm-fp8": _sample("fbgemm", "rows", "rows-bf16"),
    "modelopt": _sample("modelopt", "nvfp4", "modelopt-fp8", "modelopt-fp8-rows"),
}
