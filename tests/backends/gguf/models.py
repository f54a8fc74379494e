"""Tiny models of every architecture that zoquant reads from GGUF files."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from torch import Tensor, nn

from tests.backends.gguf.files import HIDDEN, VOCAB, randomized

VERSION = Version(transformers.__version__)


def tiny(arch: str, **changes: Any) -> nn.Module:
    """Return a model of an architecture with random weights; skip the test if transformers is too old for it."""
    config = _CONFIGS[arch]
    settings = {**_COMMON, **config[1], **changes}
    try:
        kind = transformers.AutoConfig.for_model(config[0], **settings)
    except ValueError:
        pytest.skip(f"transformers {VERSION} has no {config[0]}")
    torch.manual_seed(0)
    model: nn.Module = transformers.AutoModelForCausalLM.from_config(kind)
    return randomized(model)


_COMMON: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCAB,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GEMMA: dict[str, Any] = {
    "head_dim": 256,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "sliding_window": 8,
    "tie_word_embeddings": True,
}
_EXPERTS: dict[str, Any] = {
    "num_experts": 6,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 256,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}
_CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"head_dim": 64}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"head_dim": 128}),
    "gemma2": ("gemma2", _GEMMA),
    "gemma3": ("gemma3_text", _GEMMA),
    "phi3": ("phi3", {}),
    "gemma": ("gemma", {"head_dim": 256, "num_attention_heads": 2, "tie_word_embeddings": True}),
    "granite": (
        "granite",
        {
            "attention_multiplier": 0.3,
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.4,
            "logits_scaling": 2.0,
        },
    ),
    "smollm3": ("smollm3", {"num_hidden_layers": 4}),
    "olmo2": ("olmo2", {}),
    "glm4": ("glm4", {"head_dim": 64, "partial_rotary_factor": 0.5, "attention_bias": True}),
    "starcoder2": ("starcoder2", {"sliding_window": None, "tie_word_embeddings": True}),
    "stablelm": ("stablelm", {"use_qkv_bias": True, "partial_rotary_factor": 0.25}),
    "phi2": ("phi", {"partial_rotary_factor": 0.5}),
    "command-r": ("cohere", {"logit_scale": 0.5, "tie_word_embeddings": True, "use_qk_norm": True}),
    "cohere2": (
        "cohere2",
        {"logit_scale": 0.5, "tie_word_embeddings": True, "sliding_window": 8, "num_hidden_layers": 4},
    ),
    "qwen2moe": ("qwen2_moe", {**_EXPERTS, "shared_expert_intermediate_size": 512}),
    "qwen3moe": ("qwen3_moe", {**_EXPERTS, "head_dim": 128, "norm_topk_prob": True}),
    "mixtral": ("mixtral", {"num_local_experts": 6, "num_experts_per_tok": 2, "head_dim": 64}),
}
MIXTURES = ("qwen2moe", "qwen3moe", "mixtral")
VENDOR = ("llama", "qwen2", "qwen3", "gemma2", "gemma3", "phi3")
"""Those that transformers' own reader is held against; it does not know all of the others."""
ARCHITECTURES = tuple(arch for arch in _CONFIGS if arch not in MIXTURES)


SCALES = {
    "attention_multiplier": "attention.scale",
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "logits_scaling": "logit_scale",
    "logit_scale": "logit_scale",
}


def partial_rotary(config: Any) -> float:
    """Return which part of a head is rotated, wherever this version of transformers says it."""
    parameters = getattr(config, "rope_parameters", None) or {}
    return float(parameters.get("partial_rotary_factor") or config.partial_rotary_factor)


def metadata_of(model: nn.Module) -> dict[str, Any]:
    """Return the keys that only some architectures have."""
    config: Any = model.config
    keys: dict[str, Any] = {}
    if getattr(config, "sliding_window", None) and config.model_type.startswith("gemma"):
        keys["attention.sliding_window"] = config.sliding_window
    for name, key in SCALES.items():
        if config.model_type in ("granite", "cohere", "cohere2") and getattr(config, name, None):
            keys[key] = float(getattr(config, name))
    if config.model_type == "cohere2":
        keys["attention.sliding_window"] = config.sliding_window
    if config.model_type in ("glm4", "stablelm", "phi"):
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        keys["rope.dimension_count"] = int(head * partial_rotary(config))
    if config.model_type in ("qwen2_moe", "qwen3_moe", "mixtral"):
        keys["expert_count"] = getattr(config, "num_experts", None) or config.num_local_experts
        keys["expert_used_count"] = config.num_experts_per_tok
    if config.model_type != "mixtral" and hasattr(config, "moe_intermediate_size"):
        keys["expert_feed_forward_length"] = config.moe_intermediate_size
    if config.model_type == "qwen2_moe":
        keys["expert_shared_feed_forward_length"] = config.shared_expert_intermediate_size
    return keys


def logits(model: Callable[..., Any]) -> Tensor:
    """Return the logits for a fixed prompt, longer than the tiny sliding windows."""
    ids = torch.randint(0, VOCAB, (2, 17), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        output: Tensor = model(input_ids=ids).logits
    return output


def relative_error(got: Tensor, expected: Tensor) -> float:
    """Return the largest difference in units of the largest number."""
    return float((got - expected).abs().max() / expected.abs().max())
