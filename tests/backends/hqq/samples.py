"""Small HQQ layers and checkpoints, the same bytes every time, written without hqq."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.checkpoint.folder.llama import write_llama

KINDS: dict[str, dict[str, Any]] = {
    "q_proj": {"bits": 8},
    "k_proj": {"bits": 3},
    "v_proj": {"bits": 3, "axis": 0},
    "o_proj": {"bits": 2, "axis": 0, "size": 16},
    "gate_proj": {"bits": 1, "store": torch.float16},
    "up_proj": {"size": None, "dtype": torch.float16},
}
"""What is special about some layers of the samples; all others have 4 bits, axis 1, groups of 8, float32 numbers."""
PACKINGS = {8: "8bit_u8", 4: "4bit_u8", 3: "3bit_32", 2: "2bit_u8", 1: "1bit_u8"}


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack codes `[rows, columns]` as hqq 0.2.8 does: row r in plane r // height of words, the first plane highest."""
    count, dtype = (10, torch.int32) if bits == 3 else (8 // bits, torch.uint8)
    height = -(-len(codes) // count)
    padded = torch.zeros(height * count, codes.shape[1], dtype=torch.int64)
    padded[: len(codes)] = codes
    shifts = torch.arange(count - 1, -1, -1) * bits
    return (padded.view(count, height, -1) << shifts[:, None, None]).sum(0).to(dtype)


def hqq_matrix(
    rows: int, columns: int, *, bits: int = 4, axis: int = 1, size: int | None = 8,
    dtype: torch.dtype = torch.float32, store: torch.dtype | None = None, seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """Return the tensors and settings of a matrix of random codes, scales and zero points."""
    generator = torch.Generator().manual_seed(seed)
    width = size or (columns if axis == 1 else rows)
    groups = rows * columns // width
    shape = (groups, width) if axis == 1 else (width, groups)
    codes = torch.randint(0, 1 << bits, shape, generator=generator)
    numbers = (groups, 1) if axis == 1 else (1, groups)
    words = pack(codes, bits)
    return {
        "W_q": words if store is None else words.view(store),
        "scale": (torch.rand(numbers, generator=generator) * 0.05 + 0.01).to(dtype),
        "zero": (torch.rand(numbers, generator=generator) * (1 << bits)).to(dtype),
        "nbits": bits,
        "group_size": size,
        "shape": torch.Size([rows, columns]),
        "axis": axis,
        "packing": PACKINGS[bits],
        "unpack_view_dtype": words.dtype,
        "view_as_float": store is not None,
        "quant_scale": False,
        "quant_zero": False,
        "compute_dtype": dtype,
        "offload_meta": False,
        "stores_quant_config": True,
        "channel_wise": True,
        "optimize": True,
        "round_zero": False,
    }


def quantize_meta(matrix: dict[str, Any], name: str, *, size: int | None = 16, seed: int = 1) -> dict[str, Any]:
    """Give a matrix random scales or zero points of two levels, as hqq's `quant_scale` and `quant_zero` did."""
    shape = matrix[name].shape
    width = size or shape.numel()
    meta = hqq_matrix(shape[0], shape[1], bits=8, axis=0, size=width, dtype=matrix[name].dtype, seed=seed)
    if size is None:
        meta.update(scale=meta["scale"].reshape(-1)[0].clone(), zero=meta["zero"].reshape(-1)[0].clone())
    words = meta.pop("W_q").view(shape) if size is None else meta.pop("W_q")
    kept = ("nbits", "group_size", "shape", "scale", "zero", "axis", "packing", "view_as_float", "compute_dtype")
    inner = {key: meta[key] for key in kept} | {"group_size": size}
    rest = {key: value for key, value in matrix.items() if key != name}
    return {**rest, f"quant_{name}": True, f"{name}_q": words, f"meta_{name}": inner}


def encoded(value: Any) -> Tensor | None:
    """Return a setting as hqq keeps it in safetensors; None for what it leaves out."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, torch.Size):
        return torch.tensor(value)
    if isinstance(value, str | torch.dtype):
        return torch.tensor([ord(letter) for letter in str(value)], dtype=torch.uint8)
    return None if value is None else torch.tensor(value, dtype=torch.uint8 if isinstance(value, bool) else torch.int32)


def hqq_folder(folder: Path, **changes: Any) -> Path:
    """Write a llama of one layer as transformers 4.48 does, nearly every matrix of another kind."""

    def quantize(path: str, weight: Tensor) -> dict[str, Tensor]:
        kind = {"dtype": torch.float32, **KINDS.get(path.rpartition(".")[2], {})}
        matrix = hqq_matrix(*weight.shape, **{**kind, "size": kind.get("size", 8) or weight.shape[1]}, seed=len(path))
        parts = {f"{path}.{name}": encoded(value) for name, value in matrix.items()}
        return {name: tensor for name, tensor in parts.items() if tensor is not None}

    return write_llama(folder / "hqq", quantize, {"quant_method": "hqq"}, **changes)


def hqq_archive(
    folder: Path, *, dtype: torch.dtype = torch.float32, old: bool = False, levels: int = 2, **changes: Any
) -> Path:
    """Write a llama of one layer as hqq itself does: `qmodel.pt`, a dict of modules.

    Args:
        folder: where to.
        dtype: dtype of all scales and zero points.
        old: keep all but the words in a dict `meta`, as the first hqq did.
        levels: 2 to quantize the numbers of two matrices once more, else 1.
        changes: changes of the config.
    """
    modules: dict[str, dict[str, Any]] = {}

    def quantize(path: str, weight: Tensor) -> dict[str, Tensor]:
        name = path.rpartition(".")[2]
        matrix = hqq_matrix(*weight.shape, **{**KINDS.get(name, {}), "dtype": dtype}, seed=len(path))
        if levels == 2 and name in ("down_proj", "o_proj"):
            matrix = quantize_meta(quantize_meta(matrix, "scale"), "zero", size=None)
        words = {"W_q": nn.Parameter(matrix.pop("W_q"), requires_grad=False)}
        modules[path] = {**words, "meta": matrix} if old else {**words, **matrix}
        return {}

    path = write_llama(folder / "hqq-pt", quantize, None, **changes)
    return as_archive(path, modules)


def as_archive(path: Path, modules: dict[str, dict[str, Any]]) -> Path:
    """Turn the safetensors file of a folder into hqq's `qmodel.pt`, with these modules besides."""
    from safetensors.torch import load_file

    file = path / "model.safetensors"
    for name, tensor in load_file(file).items():
        module, _, field = name.rpartition(".")
        modules.setdefault(module, {})[field] = tensor
    torch.save(modules, path / "qmodel.pt")
    file.unlink()
    return path


def hqq_linear(
    nbits: float = 4, *, axis: int = 1, group_size: int | None = 16, dtype: torch.dtype = torch.float32,
    view_as_float: bool = False, bias: bool = False,
) -> nn.Module:  # fmt: skip
    """Return an HQQLinear [16 -> 24] with the same bytes every time."""
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    with torch.random.fork_rng():
        torch.manual_seed(0)
        linear = nn.Linear(16, 24, bias=bias).requires_grad_(False)
    config = BaseQuantizeConfig(nbits=nbits, group_size=group_size, axis=axis, view_as_float=view_as_float)
    layer: nn.Module = HQQLinear(linear, config, compute_dtype=dtype, device="cpu")
    return layer


BACKEND_SAMPLES: dict[str, Callable[[], nn.Module]] = {"hqq.core.quantize.HQQLinear": hqq_linear}
FORMAT_SAMPLES: dict[str, Callable[[Path], Path]] = {"hqq": partial(hqq_archive, old=True)}
