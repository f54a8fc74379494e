"""A small llama in the affine layout of MLX."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tests.backends.compressed_tensors import reference as ref
from tests.checkpoint.folder.llama import write_llama

Made = tuple[dict[str, Tensor], ref.Array]


def stored(rows: int, columns: int, bits: int, size: int, *, seed: int = 0, dtype: torch.dtype = torch.float16) -> Made:
    """Return random words, scales and offsets by local name, and the weight that they stand for."""
    random = np.random.default_rng(seed)
    codes = random.integers(0, 1 << bits, (rows, columns))
    scales = torch.from_numpy(random.uniform(0.2, 1, (rows, columns // size)) * 0.1 / (1 << bits)).to(dtype)
    offsets = torch.from_numpy(-random.uniform(0.2, 1, (rows, columns // size)) * 0.05).to(dtype)
    spread = [ref.spread(each.double().numpy(), rows, columns, 1, size) for each in (scales, offsets)]
    words = torch.from_numpy(ref.pack(codes, bits, 32).astype(np.uint32))
    return {"weight": words, "scales": scales, "qbiases": offsets}, codes * spread[0] + spread[1]


def write(folder: Path, bits: int = 4, size: int = 32, dtype: torch.dtype = torch.float16) -> Path:
    """Write config.json and model.safetensors."""

    def quantize(path: str, weight: Tensor) -> dict[str, Tensor]:
        rows, columns = weight.shape
        tensors, _ = stored(rows, columns, bits, size, seed=len(path), dtype=dtype)
        return {f"{path}.{name}": tensor for name, tensor in tensors.items()}

    return write_llama(folder, quantize, {"quant_method": "metal", "bits": bits, "group_size": size})


FORMAT_SAMPLES: dict[str, Callable[[Path], Path]] = {"metal": lambda folder: write(folder / "metal")}
