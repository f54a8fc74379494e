"""A small llama as ExLlamaV3 stores it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.backends.exl3 import reference as ref
from tests.checkpoint.folder.llama import write_llama

SIZES: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 256, "num_key_value_heads": 2}


def stored(rows: int, columns: int, bits: int, book: str, seed: int = 0) -> tuple[dict[str, Tensor], ref.Array]:
    """Return tensors by local name, and the weight that they stand for."""
    random = np.random.default_rng(seed)
    down, across = columns // 16, rows // 16
    steps = random.integers(0, 1 << bits, (down, across, 256))
    trellis = np.empty((down, across, 16 * bits), np.int16)
    inner = np.empty((columns, rows))
    for i, j in np.ndindex(down, across):
        trellis[i, j] = ref.pack(steps[i, j], bits)
        numbers = ref.numbers(book)[ref.walk(steps[i, j], bits)]
        inner[16 * i : 16 * i + 16, 16 * j : 16 * j + 16] = ref.tile(numbers)
    suh, svh = (_scales(random, length, level) for length, level in ((columns, 1), (rows, 0.05)))
    tensors = {"trellis": torch.from_numpy(trellis), "suh": suh, "svh": svh}
    if book != "3inst":
        multiplier = {"mcg": 0xCBAC1FED, "mul1": 0x83DCD12D}[book]
        tensors[book] = torch.from_numpy(np.array(multiplier, np.uint32).view(np.int32))
    return tensors, ref.weight(inner, suh.double().numpy(), svh.double().numpy())


def _scales(random: np.random.Generator, length: int, level: float) -> Tensor:
    signs = random.choice([-1.0, 1.0], length)
    return torch.from_numpy(random.uniform(0.5, 1.5, length) * signs * level).to(torch.float16)


def write(folder: Path, bits: int = 4, book: str = "mcg") -> Path:
    """Write config.json and model.safetensors."""

    def quantize(path: str, weight: Tensor) -> Mapping[str, Tensor]:
        tensors, _ = stored(weight.shape[0], weight.shape[1], bits, book, len(path))
        return {f"{path}.{name}": tensor for name, tensor in tensors.items()}

    return write_llama(folder, quantize, {"quant_method": "exl3", "bits": float(bits)}, **SIZES)


FORMAT_SAMPLES: dict[str, Callable[[Path], Path]] = {"exl3": lambda folder: write(folder / "exl3")}
