"""Small VPTQ layers and checkpoints, the same bytes every time, written without vptq."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.checkpoint.folder.llama import write_llama


def pack(fields: Tensor, bits: int) -> Tensor:
    """Pack fields `[..., count]` into int32 words, the lowest bits of the first word first."""
    lines = fields.reshape(-1, fields.shape[-1]).tolist()
    words = -(-fields.shape[-1] * bits // 32)
    packed = [sum(field << (bits * place) for place, field in enumerate(line)) for line in lines]
    raw = b"".join(number.to_bytes(words * 4, "little") for number in packed)
    return torch.frombuffer(bytearray(raw), dtype=torch.int32).reshape(*fields.shape[:-1], words)


def settings_of(
    rows: int, columns: int, *, length: int = 4, count: int = 16, residual: int = 8, groups: int = 1,
    outliers: int = 0, outlier_length: int = 2, norm: bool = True, perm: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """Return the settings of a layer as the config has them."""
    return {
        "in_features": columns, "out_features": rows, "vector_lens": [outlier_length if outliers else -1, length],
        "num_centroids": [12 if outliers else -1, count], "num_res_centroids": [-1, residual or -1],
        "group_num": groups, "group_size": (columns - outliers) // groups, "outlier_size": outliers,
        "indices_as_float": False, "enable_norm": norm, "enable_perm": perm, "is_indice_packed": True,
    }  # fmt: skip


def vptq_tensors(settings: dict[str, Any], *, dtype: torch.dtype = torch.float32, seed: int = 0) -> dict[str, Tensor]:
    """Return the tensors of a layer of random indices and centroids."""
    generator = torch.Generator().manual_seed(seed)

    def numbers(*shape: int, around: float = 0.0) -> Tensor:
        return (torch.randn(shape, generator=generator) * 0.1 + around).to(dtype)

    def drawn(count: int, *shape: int) -> Tensor:
        return torch.randint(0, count, shape, generator=generator)

    rows, columns = settings["out_features"], settings["in_features"]
    (outlier_length, length), (outlier_count, count) = settings["vector_lens"], settings["num_centroids"]
    groups, size, residual = settings["group_num"], settings["group_size"], settings["num_res_centroids"][1]
    shape, bits = (groups, -(-rows // length), size), count.bit_length() - 1
    fields = drawn(count, *shape)
    tensors = {"centroids.weight": numbers(groups, count * length)}
    if residual > 0:
        fields = fields | drawn(residual, *shape) << bits
        bits += residual.bit_length() - 1
        tensors["res_centroids.weight"] = numbers(groups, residual * length)
    tensors["indices"] = pack(fields, bits)
    if settings["outlier_size"]:
        outliers = drawn(outlier_count, 1, -(-rows // outlier_length), settings["outlier_size"])
        tensors["outlier_indices"] = outliers.to(torch.int16)
        tensors["outlier_centroids.weight"] = numbers(1, outlier_count * outlier_length)
    if settings["enable_perm"]:
        tensors["perm"] = torch.randperm(columns, generator=generator).to(torch.int16)
    if settings["enable_norm"]:
        tensors |= {"weight_scale": numbers(columns, around=1.0), "weight_bias": numbers(columns)}
    return tensors


def vptq_folder(folder: Path, *, dtype: torch.dtype = torch.float32, **kind: Any) -> Path:
    """Write a llama of one layer as transformers does."""
    layers: dict[str, Any] = {}

    def quantize(path: str, weight: Tensor) -> dict[str, Tensor]:
        layers[path] = settings_of(*weight.shape, **kind)
        tensors = vptq_tensors(layers[path], dtype=dtype, seed=len(path))
        return {f"{path}.{name}": tensor for name, tensor in tensors.items()}

    config: dict[str, Any] = {"quant_method": "vptq", "config_for_layers": layers, "shared_layer_config": {}}
    return write_llama(folder / "vptq", quantize, config, dtype=dtype)


def vptq_linear(*, rows: int = 22, columns: int = 32, dtype: torch.dtype = torch.float32, **kind: Any) -> nn.Module:
    """Return a `vptq.VQuantLinear` with the same bytes every time."""
    from vptq import VQuantLinear

    settings = settings_of(rows, columns, **kind)
    layer = VQuantLinear(**settings, enable_proxy_error=False, bias=True, dtype=dtype)
    layer.load_state_dict({**vptq_tensors(settings, dtype=dtype), "bias": torch.linspace(-1, 1, rows).to(dtype)})
    module: nn.Module = layer.eval().requires_grad_(False)
    return module


BACKEND_SAMPLES: dict[str, Callable[[], nn.Module]] = {"vptq.layers.vqlinear.VQuantLinear": vptq_linear}
FORMAT_SAMPLES: dict[str, Callable[[Path], Path]] = {
    "vptq": lambda folder: vptq_folder(folder, outliers=8, groups=2, length=6)
}
