"""A small llama as EETQ stores it."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tests.backends.eetq.reference import preprocess
from tests.checkpoint.folder.llama import write_llama

Made = tuple[dict[str, Tensor], NDArray[np.float64]]


def stored(rows: int, columns: int, seed: int = 0, name: str = "weight") -> Made:
    """Return tensors by local name, and the weight that they stand for."""
    random = np.random.default_rng(seed)
    codes = random.integers(-128, 128, (columns, rows)).astype(np.int8)
    scales = torch.from_numpy(random.uniform(0.5, 1, rows) * 1e-3).to(torch.float16)
    weight = codes.T.astype(np.float64) * scales.double().numpy()[:, None]
    return {name: torch.from_numpy(preprocess(codes)), "weight_scales": scales}, weight


def write(folder: Path, name: str = "weight") -> Path:
    """Write config.json and model.safetensors."""

    def quantize(path: str, weight: Tensor) -> Mapping[str, Tensor]:
        tensors, _ = stored(weight.shape[0], weight.shape[1], len(path), name)
        return {f"{path}.{local}": tensor for local, tensor in tensors.items()}

    return write_llama(folder, quantize, {"quant_method": "eetq", "weights": "int8"})


FORMAT_SAMPLES: dict[str, Callable[[Path], Path]] = {"eetq": lambda folder: write(folder / "eetq")}
