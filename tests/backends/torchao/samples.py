"""Small torchao layers and checkpoints, the same bytes every time."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.backends.torchao.reference import random_layer
from tests.checkpoint.folder.llama import write_llama

CONFIG = {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int8WeightOnlyConfig", "_data": {}}}}
KINDS: dict[str, tuple[str, tuple[int, int] | None, dict[str, Any]]] = {
    "q_proj": ("Float8Tensor", None, {"codes": torch.float8_e4m3fn}),
    "k_proj": ("Float8Tensor", (16, 16), {"codes": torch.float8_e5m2}),
    "v_proj": ("Int8Tensor", (32, 64), {"zero": None}),
    "o_proj": ("IntxUnpackedToInt8Tensor", (1, 32), {"scale": torch.bfloat16}),
    "gate_proj": ("IntxUnpackedToInt8Tensor", (1, 16), {"zero": torch.float32}),
    "up_proj": ("Int4Tensor", (1, 32), {"scale": torch.bfloat16}),
}
"""Class, block and what else is special about some layers of the sample; all others are int8 rows."""


def torchao_folder(folder: Path, **changes: Any) -> Path:
    """Write a llama of one layer, nearly every matrix of another kind."""
    metadata: dict[str, str] = {}

    def quantize(path: str, weight: Tensor) -> dict[str, Tensor]:
        kind, block, options = KINDS.get(path.rpartition(".")[2], ("Int8Tensor", None, {}))
        rows, columns = weight.shape
        tensors, said = random_layer(path, rows, columns, kind, block, **options, seed=len(path))
        metadata.update(said)
        return tensors

    return write_llama(folder / "torchao", quantize, CONFIG, metadata=metadata, **changes)


def quantized(config: Any, *, columns: int = 64, bias: bool = True, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Return a Linear [columns -> 96] that torchao quantized."""
    from torchao.quantization import quantize_

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(columns, 96, bias=bias, dtype=dtype)).eval()
    quantize_(model, config)
    return model[0]


def int8(**options: Any) -> nn.Module:
    from torchao.quantization import Int8WeightOnlyConfig

    return quantized(Int8WeightOnlyConfig(version=2, **options))


def float8(**options: Any) -> nn.Module:
    from torchao.quantization import Float8WeightOnlyConfig

    return quantized(Float8WeightOnlyConfig(version=2, **options))


def intx(bits: int = 4, group_size: int = 32, *, dtype: torch.dtype = torch.float32, **options: Any) -> nn.Module:
    from torchao.quantization import IntxWeightOnlyConfig, PerGroup

    config = IntxWeightOnlyConfig(getattr(torch, f"int{bits}"), PerGroup(group_size), version=2, **options)
    return quantized(config, dtype=dtype)


BACKEND_SAMPLES: dict[str, Callable[[], nn.Module]] = {
    "torchao.quantization.Int8Tensor": int8,
    "torchao.quantization.Float8Tensor": float8,
    "torchao.quantization.IntxUnpackedToInt8Tensor": intx,
}
FORMAT_SAMPLES: dict[str, Callable[[Path], Path]] = {"torchao": torchao_folder}
