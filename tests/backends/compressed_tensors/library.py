"""Checkpoints that compressed-tensors itself writes: round to nearest between the smallest and the largest weight."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.checkpoint.folder.llama import write_llama

INT8 = {"num_bits": 8, "type": "int", "symmetric": True, "dynamic": True, "strategy": "token"}
SCHEMES: dict[str, dict[str, Any]] = {
    "w4a16-sym": {"weights": {"num_bits": 4, "strategy": "group", "group_size": 32}},
    "w4a16-asym": {"weights": {"num_bits": 4, "strategy": "group", "group_size": 32, "symmetric": False}},
    "w3a16-asym": {"weights": {"num_bits": 3, "strategy": "group", "group_size": 32, "symmetric": False}},
    "w8a16-channel-asym": {"weights": {"num_bits": 8, "strategy": "channel", "symmetric": False}},
    "w8a8": {"weights": {"num_bits": 8, "strategy": "channel"}, "input_activations": INT8},
    "fp8-tensor": {"weights": {"num_bits": 8, "type": "float", "strategy": "tensor"}},
    "fp8-block": {"weights": {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [48, 16]}},
    "nvfp4": {"weights": {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}},
    "mxfp4": {
        "weights": {
            "num_bits": 4, "type": "float", "strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8",
        }
    },
}  # fmt: skip
FORMATS = {"w": "pack-quantized", "fp8": "float-quantized", "nv": "nvfp4-pack-quantized", "mx": "mxfp4-pack-quantized"}


def format_of(name: str) -> str:
    """Return the compression format of a scheme."""
    if name == "w8a8":
        return "int-quantized"
    return next(form for start, form in FORMATS.items() if name.startswith(start))


def write(folder: Path, name: str, dtype: torch.dtype) -> Path:
    """Quantize a llama of one layer and write it with `save_pretrained`.

    Args:
        folder: where to.
        name: one of `SCHEMES`.
        dtype: of the scales and of what is not quantized.
    """
    import transformers
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationConfig, QuantizationStatus, apply_quantization_config

    base = write_llama(folder / "base", lambda path, weight: {f"{path}.weight": weight.to(dtype)}, None, dtype=dtype)
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=dtype).eval()
    group = {"targets": ["Linear"], "format": format_of(name), **SCHEMES[name]}
    config = QuantizationConfig(
        config_groups={"group_0": group}, ignore=["lm_head"], format=format_of(name),
        quantization_status=QuantizationStatus.FROZEN,
    )  # fmt: skip
    apply_quantization_config(model, config)
    for module in model.modules():
        if getattr(module, "quantization_scheme", None) is not None:
            calibrate(module, module.quantization_scheme.weights)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    out = folder / name
    model.save_pretrained(out)
    compressor.update_config(str(out))
    return out


def calibrate(module: Any, args: Any) -> None:
    """Set scales and zero points from the smallest and largest weight of each block."""
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

    weight: Tensor = module.weight.detach().float()
    whole = generate_gparam(weight.min(), weight.max()) if args.strategy == "tensor_group" else None
    low, high = (blocks(weight, args, reduce) for reduce in (torch.amin, torch.amax))
    scale, zero = calculate_qparams(low, high, args, global_scale=whole)
    found: Mapping[str, Tensor | None] = {"scale": scale, "zero_point": zero, "global_scale": whole}
    for name, value in found.items():
        parameter: nn.Parameter | None = getattr(module, f"weight_{name}", None)
        if value is not None and parameter is not None:
            parameter.data = value.reshape(parameter.shape).to(parameter.dtype)


def blocks(weight: Tensor, args: Any, reduce: Any) -> Tensor:
    """Return the smallest or largest weight of each block that shares a scale."""
    rows, columns = weight.shape
    height, width = {"tensor": (rows, columns), "channel": (1, columns)}.get(
        args.strategy, tuple(args.block_structure or (1, args.group_size))
    )
    padded = nn.functional.pad(weight, (0, -columns % width, 0, -rows % height))
    tiles = padded.view(padded.shape[0] // height, height, padded.shape[1] // width, width)
    found: Tensor = reduce(tiles, dim=(1, 3))
    return found
