"""Tiny llama folders as transformers writes them, each matrix stored as a format's own tensors."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.folders import CONFIG, tiny_llama

Quantize = Callable[[str, Tensor], Mapping[str, Tensor]]
"""Takes the path of a layer and its weight; returns tensors by full name."""


def write_llama(
    folder: Path, quantize: Quantize, quantization_config: Mapping[str, Any] | None, *,
    metadata: Mapping[str, str] | None = None, dtype: torch.dtype = torch.float32, skip: tuple[str, ...] = ("lm_head",),
    **changes: Any,
) -> Path:  # fmt: skip
    """Write config.json and model.safetensors of a llama with random weights.

    Args:
        folder: where to; made if it is not there.
        quantize: stores the weight of every Linear whose path ends with none of `skip`.
        quantization_config: what config.json says of it; None to leave that out.
        metadata: of the safetensors file.
        dtype: of all tensors that are not quantized.
        skip: ends of the paths of layers that stay dense.
        changes: of the model's config.
    """
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1, **changes}
    state = tiny_llama(**sizes).to(dtype).state_dict()
    tensors: dict[str, Tensor] = {}
    for name, tensor in state.items():
        path = name.removesuffix(".weight")
        if tensor.dim() == 2 and not path.endswith(("embed_tokens", *skip)):
            tensors.update(quantize(path, tensor.float()))
        else:
            tensors[name] = tensor.clone()
    said = {**CONFIG, **sizes, "dtype": str(dtype).removeprefix("torch.")}
    return write_tensors(folder, tensors, quantization_config, config=said, metadata=metadata)


def write_tensors(
    folder: Path, tensors: Mapping[str, Tensor], quantization_config: Mapping[str, Any] | None, *,
    config: Mapping[str, Any] | None = None, metadata: Mapping[str, str] | None = None,
) -> Path:  # fmt: skip
    """Write config.json and model.safetensors with these tensors."""
    said = dict(config or {})
    if quantization_config is not None:
        said["quantization_config"] = dict(quantization_config)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(said), encoding="utf-8")
    save_file(dict(tensors), folder / "model.safetensors", {"format": "pt", **(metadata or {})})
    return folder


def edit_tensors(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> Path:
    """Change the tensors of a folder in place."""
    from safetensors import safe_open
    from safetensors.torch import load_file

    path = folder / "model.safetensors"
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata)
    return folder


def edit_config(folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Change config.json in place."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    change(config)
    path.write_text(json.dumps(config), encoding="utf-8")
    return folder


def logits(model: Any) -> Tensor:
    """Return the logits of a fixed prompt, float32."""
    ids = torch.randint(0, 48, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        output: Tensor = model(input_ids=ids).logits
    return output.float()
