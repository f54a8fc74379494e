"""What a kind of model asks for besides what every file says.

Source: llama.cpp llama-model.cpp `load_hparams` and its graphs, convert_hf_to_gguf.py; the names are those
of transformers' configuration classes.
"""

from collections.abc import Callable, Mapping
from typing import Any

from zoquant.backends.gguf.keys import DEFAULT_THETA, Keys

_LAYERS_OF_27B = {"gemma2": 46, "gemma3": 62}


def _llama(keys: Keys, config: dict[str, Any]) -> dict[str, Any]:
    tensors, width = keys.header.tensors, config["head_dim"]
    return {
        "head_dim": keys.integer("attention.key_length", keys.integer("rope.dimension_count", width)),
        "attention_bias": "blk.0.attn_q.bias" in tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in tensors,
    }


def _qwen3(keys: Keys, config: dict[str, Any]) -> dict[str, Any]:
    return {"attention_bias": "blk.0.attn_q.bias" in keys.header.tensors}


def _qwen2moe(keys: Keys, config: dict[str, Any]) -> dict[str, Any]:
    return {
        **_experts(keys),
        "shared_expert_intermediate_size": keys.integer("expert_shared_feed_forward_length"),
        "norm_topk_prob": False,
    }


def _qwen3moe(keys: Keys, config: dict[str, Any]) -> dict[str, Any]:
    bias = "blk.0.attn_q.bias" in keys.header.tensors
    return {**_experts(keys), "attention_bias": bias, "norm_topk_prob": True}


def _experts(keys: Keys) -> dict[str, Any]:
    """Return what the kinds of Qwen say of their experts; which of them normalizes the weights is llama.cpp's."""
    return {
        "num_experts": keys.integer("expert_count"),
        "num_experts_per_tok": _experts_used(keys),
        "moe_intermediate_size": keys.integer("expert_feed_forward_length"),
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


def _mixtral(keys: Keys, config: dict[str, Any]) -> dict[str, Any]:
    width = keys.integer("attention.key_length", keys.integer("rope.dimension_count", config["head_dim"]))
    experts = {"num_local_experts": keys.integer("expert_count"), "num_experts_per_tok": _experts_used(keys)}
    return {"head_dim": width, "sliding_window": None, **experts}


def _experts_used(keys: Keys) -> int:
    """Return how many experts a token is sent to; keys that weigh them otherwise than by a softmax are refused."""
    for key, usual in (("expert_weights_scale", 1.0), ("expert_gating_func", 1), ("expert_group_count", 1)):
        if keys.number(key, usual) not in (0, usual):
            raise keys.error(key, f"{usual}, for zoquant knows no other", str(keys.get(key)))
    used, count = keys.integer("expert_used_count"), keys.integer("expert_count")
    if used > count:
        raise keys.error("expert_used_count", f"at most {count}, the number of experts", str(used))
    return used


def _gemma2(keys: Keys, config: dict[str, Any]) -> dict[str, Any]:
    return {
        "query_pre_attn_scalar": _query_scale(keys, config),
        "sliding_window": keys.integer("attention.sliding_window", 4096),
        "attn_logit_softcapping": keys.number("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": keys.number("final_logit_softcapping", 30.0),
    }


def _gemma3(keys: Keys, config: dict[str, Any]) -> dict[str, Any]:
    pattern = keys.get("attention.sliding_window_pattern")
    if pattern not in (None, 6):
        raise keys.error("attention.sliding_window_pattern", "6", repr(pattern)[:80])
    return {
        "query_pre_attn_scalar": _query_scale(keys, config),
        "sliding_window": keys.integer("attention.sliding_window", 1024),
        "rope_local_base_freq": keys.number("rope.freq_base_swa", DEFAULT_THETA),
        "final_logit_softcapping": keys.number("final_logit_softcapping", 0.0) or None,
    }


def _query_scale(keys: Keys, config: dict[str, Any]) -> int:
    """Return the square of what queries are divided by. The file does not say; llama.cpp goes by the layers, too."""
    if config["num_hidden_layers"] == _LAYERS_OF_27B[keys.header.architecture]:
        return int(config["hidden_size"] // config["num_attention_heads"])
    return int(config["head_dim"])


def _phi3(keys: Keys, config: dict[str, Any]) -> dict[str, Any]:
    rotated = keys.integer("rope.dimension_count", config["head_dim"])
    context = config["max_position_embeddings"]
    return {
        "original_max_position_embeddings": keys.integer("rope.scaling.original_context_length", context),
        "partial_rotary_factor": rotated / config["head_dim"],
        "sliding_window": keys.number("attention.sliding_window", 0) or None,
    }


def _granite(keys: Keys, config: dict[str, Any]) -> dict[str, Any]:
    usual = config["head_dim"] ** -0.5
    return {"attention_multiplier": config.get("attention_multiplier", usual), **_llama(keys, config)}


def _smollm3(keys: Keys, config: dict[str, Any]) -> dict[str, Any]:
    """Every fourth layer is without rotary positions: llama.cpp has no key for it."""
    return {**_llama(keys, config), "no_rope_layer_interval": 4, "use_sliding_window": False}


def _olmo2(keys: Keys, config: dict[str, Any]) -> dict[str, Any]:
    if keys.get("attention.sliding_window"):
        raise keys.error("attention.sliding_window", "no such key, for zoquant cannot run OLMo 3", "one")
    return {"attention_bias": "blk.0.attn_q.bias" in keys.header.tensors}


def _glm4(keys: Keys, config: dict[str, Any]) -> dict[str, Any]:
    if keys.get("rope.dimension_sections"):
        raise keys.error("rope.dimension_sections", "no such key, for zoquant cannot run GLM-4 with images", "one")
    return {**_partial_rotary(keys, config), "attention_bias": "blk.0.attn_q.bias" in keys.header.tensors}


def _starcoder2(keys: Keys, config: dict[str, Any]) -> dict[str, Any]:
    return {"use_bias": "blk.0.attn_q.bias" in keys.header.tensors, "sliding_window": None}


def _stablelm(keys: Keys, config: dict[str, Any]) -> dict[str, Any]:
    tensors = keys.header.tensors
    return {
        **_partial_rotary(keys, config),
        "use_qkv_bias": "blk.0.attn_q.bias" in tensors,
        "use_parallel_residual": "blk.0.ffn_norm.weight" not in tensors,
    }


def _command_r(keys: Keys, config: dict[str, Any]) -> dict[str, Any]:
    tensors = keys.header.tensors
    return {
        "logit_scale": keys.number("logit_scale"),
        "attention_bias": "blk.0.attn_q.bias" in tensors,
        "use_qk_norm": "blk.0.attn_q_norm.weight" in tensors,
    }


def _cohere2(keys: Keys, config: dict[str, Any]) -> dict[str, Any]:
    """Three layers of four look through a window, and only they have rotary positions."""
    return {
        "logit_scale": keys.number("logit_scale"),
        "attention_bias": "blk.0.attn_q.bias" in keys.header.tensors,
        "sliding_window": keys.integer("attention.sliding_window"),
    }


def _partial_rotary(keys: Keys, config: dict[str, Any]) -> dict[str, Any]:
    return {"partial_rotary_factor": keys.integer("rope.dimension_count", config["head_dim"]) / config["head_dim"]}


SCALES: Mapping[str, Mapping[str, str]] = {
    "granite": {
        "attention.scale": "attention_multiplier", "embedding_scale": "embedding_multiplier",
        "residual_scale": "residual_multiplier", "logit_scale": "logits_scaling",
    },
    "command-r": {"logit_scale": "logit_scale"},
    "cohere2": {"logit_scale": "logit_scale"},
}  # fmt: skip
"""Kind of model -> key of a factor that it multiplies with -> transformers' word for it."""

EXTRAS: Mapping[str, Callable[[Keys, dict[str, Any]], dict[str, Any]]] = {
    "llama": _llama, "qwen3": _qwen3, "qwen2moe": _qwen2moe, "qwen3moe": _qwen3moe, "mixtral": _mixtral,
    "gemma2": _gemma2, "gemma3": _gemma3, "phi3": _phi3, "granite": _granite, "smollm3": _smollm3, "olmo2": _olmo2,
    "glm4": _glm4, "starcoder2": _starcoder2, "stablelm": _stablelm, "phi2": _partial_rotary,
    "command-r": _command_r, "cohere2": _cohere2,
}  # fmt: skip
"""What a kind of model asks for besides."""
