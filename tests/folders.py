"""Small checkpoint folders, written by torch and safetensors alone."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

CONFIG: dict[str, Any] = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 48, "hidden_size": 32,
    "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 64, "tie_word_embeddings": False, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
}  # fmt: skip
"""A llama of one layer: every matrix has 32 or 64 columns."""


def tiny_llama(seed: int = 0, **changes: Any) -> nn.Module:
    """Return a llama of transformers with the same random weights every time, float32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = {name: value for name, value in CONFIG.items() if name not in ("model_type", "architectures")}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: nn.Module = LlamaForCausalLM(LlamaConfig(**{**settings, **changes})).eval().requires_grad_(False)
    return model


def save_folder(model: nn.Module, path: Path, *, shards: int = 1, **changes: Any) -> Path:
    """Write a model as transformers does: every parameter by its name, a tied head left out."""
    tied = {"lm_head.weight"} if changes.get("tie_word_embeddings") else set()
    tensors = {name: value for name, value in model.state_dict().items() if name not in tied}
    return write_folder(path, tensors, shards=shards, config={**CONFIG, **changes})


def write_folder(
    path: Path, tensors: Mapping[str, Tensor], *, config: Mapping[str, Any] = CONFIG, shards: int = 1
) -> Path:
    """Write tensors and a config to a new folder, in one safetensors file or in several with an index."""
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(dict(config), indent=1))
    names = sorted(tensors)
    if shards == 1:
        save_file({name: tensors[name].contiguous() for name in names}, path / "model.safetensors", {"format": "pt"})
        return path
    places: dict[str, str] = {}
    for number in range(shards):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name].contiguous() for name in names[number::shards]}
        save_file(part, path / file, {"format": "pt"})
        places.update(dict.fromkeys(part, file))
    index = {"metadata": {}, "weight_map": places}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return path
