"""A small llama in every layout of SINQ."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.backends.sinq.reference import NAMES, Array, eight_bit, flat, tiled, words
from tests.checkpoint.folder.llama import write_llama

Made = tuple[dict[str, Tensor], dict[str, Any], Array]


def stored(rows: int, columns: int, bits: int, size: int, *, tiles: bool = False, aux: bool = False, seed: int = 0,
           dtype: torch.dtype = torch.float16) -> Made:  # fmt: skip
    """Return tensors by local name, what the JSON file says, and the weight that they stand for."""
    random = np.random.default_rng(seed)
    groups = rows * columns // size
    codes = random.integers(0, 1 << bits, (groups, size))
    shape = (groups // size, size, 1) if tiles else (groups, 1)
    numbers, tensors = {}, {"W_q": torch.from_numpy(words(codes, bits))}
    for name, low, high in (("scale", 0.5, 1), ("zero", 0, 1 << bits)):
        factor = 0.1 / (1 << bits) if name == "scale" else 1
        if aux:
            count = groups // 32 if name == "scale" else 1
            x = random.integers(0, 256, groups)
            s, m = (_random(random, a * factor, b * factor, (1, count), dtype)
                    for a, b in ((low / 256, high / 256), (low, high)))  # fmt: skip
            tensors |= {f"meta.{name}.x": torch.from_numpy(x.astype(np.uint8)).view(-1, count)}
            tensors |= {f"meta.{name}.s": s, f"meta.{name}.m": m}
            numbers[name] = eight_bit(x, s.double().numpy(), m.double().numpy())
        else:
            plain = _random(random, low * factor, high * factor, shape, dtype)
            tensors[f"meta.{name}"], numbers[name] = plain, plain.double().numpy().reshape(-1)
    tops = (groups // size, 1, size) if tiles else (1, columns)
    tensors["meta.scale2"] = _random(random, 0.5, 1.5, tops, dtype)
    dequantize = tiled if tiles else flat
    weight = dequantize(
        codes, numbers["scale"], numbers["zero"], tensors["meta.scale2"].double().numpy(), (rows, columns)
    )
    meta: dict[str, Any] = {
        "nbits": bits, "group_size": size, "shape": [rows, columns], "awq_scale": None, "axis": 1,
        "packing": NAMES[bits], "method": "sinq_quantAux" if aux else "sinq", "compute_dtype": str(dtype),
        "unpack_view_dtype": str(tensors["W_q"].dtype), "view_as_float": False,
    }  # fmt: skip
    if aux:
        meta |= {"scale.shape": list(shape), "zero.shape": list(shape)}
    return tensors, meta, weight


def _random(random: Any, low: float, high: float, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(random.uniform(low, high, shape)).to(dtype)


def write(folder: Path, bits: int = 4, size: int = 32, **options: Any) -> Path:
    """Write a folder as sinq does: shards, their index, and the JSON file of what is no tensor."""
    said = {}

    def quantize(path: str, weight: Tensor) -> Mapping[str, Tensor]:
        tensors, meta, _ = stored(weight.shape[0], weight.shape[1], bits, size, seed=len(path), **options)
        said[path] = {"meta": meta}
        return {f"{path}.{name}": tensor for name, tensor in tensors.items()}

    write_llama(folder, quantize, {"quant_method": "sinq", "nbits": bits, "group_size": size, "method": "sinq"})
    tensors = load_file(folder / "model.safetensors")
    shard = "model-00001-of-00001.safetensors"
    save_file(tensors, folder / shard)
    (folder / "model.safetensors").unlink()
    index = {"metadata": {"total_size": 0}, "weight_map": dict.fromkeys(tensors, shard)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    (folder / "model.safetensors.index.json.meta.json").write_text(json.dumps(said), encoding="utf-8")
    return folder


def edit_meta(folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Change the JSON file of what is no tensor."""
    path = folder / "model.safetensors.index.json.meta.json"
    said = json.loads(path.read_text(encoding="utf-8"))
    change(said)
    path.write_text(json.dumps(said), encoding="utf-8")
    return folder


def linear(bits: int = 4, *, tiles: bool = False, method: str = "sinq", dtype: torch.dtype = torch.float32,
           module: str = "sinqlinear_hf") -> nn.Module:  # fmt: skip
    """Return a layer that sinq itself quantized."""
    from importlib import import_module

    library: Any = import_module(f"sinq.{module}")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        dense = nn.Linear(64, 96, bias=True).to(dtype)
        config = library.sinq_base_quant_config(bits, 32, tiling_mode="2D" if tiles else "1D", method=method)
        layer: nn.Module = library.SINQLinear(
            linear_layer=dense, quant_config=config, compute_dtype=dtype, device="cpu", del_orig=False
        )
    return layer


BACKEND_SAMPLES: dict[str, Callable[[], nn.Module]] = {
    "sinq.sinqlinear_hf.SINQLinear": linear,
    "sinq.sinqlinear.SINQLinear": lambda: linear(module="sinqlinear"),
}
FORMAT_SAMPLES: dict[str, Callable[[Path], Path]] = {"sinq": lambda folder: write(folder / "sinq", aux=True)}
