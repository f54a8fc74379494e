"""A small GPT-OSS with experts in MXFP4."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

SIZES = {
    "hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 32,
    "num_key_value_heads": 1, "num_local_experts": 4, "num_experts_per_tok": 2, "vocab_size": 48,
    "max_position_embeddings": 64, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"],
}  # fmt: skip


def write(folder: Path) -> Path:
    """Write config.json and model.safetensors."""
    import transformers

    if not hasattr(transformers, "GptOssConfig"):
        pytest.skip("this transformers has no GPT-OSS")
    config = transformers.GptOssConfig(**SIZES)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = transformers.GptOssForCausalLM(config).state_dict()
    random = torch.Generator().manual_seed(0)
    tensors: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            experts, columns, rows = tensor.shape
            tensors[f"{name}_blocks"] = torch.randint(
                0, 256, (experts, rows, columns // 32, 16), generator=random, dtype=torch.uint8
            )
            tensors[f"{name}_scales"] = torch.randint(
                118, 124, (experts, rows, columns // 32), generator=random, dtype=torch.uint8
            )
        else:
            tensors[name] = torch.randn(tensor.shape, generator=random) * 0.1 if "bias" in name else tensor.clone()
    folder.mkdir(parents=True)
    said: dict[str, Any] = {**config.to_dict(), "architectures": ["GptOssForCausalLM"], "dtype": "float32"}
    said["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]}
    (folder / "config.json").write_text(json.dumps(said))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


FORMAT_SAMPLES: dict[str, Callable[[Path], Path]] = {"mxfp4": lambda folder: write(folder / "mxfp4")}
