"""The file's metadata as a configuration of transformers.

transformers' own reader of GGUF metadata needs seconds and leaves out what it does not know: rope scaling, soft caps,
the width of a head. Here a value that changes the model is used, or the file is refused.

Source: llama.cpp gguf-py `constants.Keys`, llama-model.cpp `load_hparams`; the names are those of transformers'
configuration classes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoquant.backends.gguf.architectures import Architecture
from zoquant.backends.gguf.header import Header, TensorInfo, refusal
from zoquant.errors import CheckpointError

_REFUSED = ("attention.scale", "logit_scale", "embedding_scale", "residual_scale")
_EXPERTS = ("qwen2moe", "qwen3moe", "mixtral")
_LAYERS_OF_27B = {"gemma2": 46, "gemma3": 62}
_DEFAULT_THETA = 10000.0


@dataclass(frozen=True)
class Keys:
    """Typed access to the metadata of one architecture. Keys are given without its name."""

    header: Header

    def number(self, key: str, default: float | None = None) -> float:
        """Return a number; a missing key without a default is an error."""
        value = self.get(key)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.error(key, "a number", "nothing" if value is None else repr(value)[:80])
        return value

    def integer(self, key: str, default: int | None = None) -> int:
        """Return a whole number of at least 1."""
        value = self.number(key, default)
        if not isinstance(value, int) or value < 1:
            raise self.error(key, "a whole number above 0", repr(value))
        return value

    def get(self, key: str) -> Any:
        """Return a value of any type, or None."""
        return self.header.metadata.get(f"{self.header.architecture}.{key}")

    def error(self, key: str, expected: str, got: str) -> CheckpointError:
        """Return the error for a key."""
        name = f"{self.header.architecture}.{key}"
        return refusal(self.header.path, f"key {name!r}", expected, got)


def config_of(header: Header, architecture: Architecture, rope_factors: Mapping[str, list[float]]) -> dict[str, Any]:
    """Return the arguments of transformers' configuration class.

    Args:
        header: the file.
        architecture: its kind.
        rope_factors: the values of the file's rope tensors, by name.

    Raises:
        CheckpointError: a key is missing or contradicts the tensors, or zoquant cannot do what it asks for.
    """
    keys = Keys(header)
    for key in _REFUSED if architecture.name in _EXPERTS else (*_REFUSED, "expert_count"):
        if keys.get(key):
            raise keys.error(key, "no such key, for zoquant cannot run such a model", repr(keys.get(key)))
    config = _common(keys)
    if architecture.name in _EXTRAS:
        config |= _EXTRAS[architecture.name](keys, config)
    if architecture.name == "phi3" and rope_factors:
        config |= _long_rope(header.path, rope_factors)
    _check_heads(keys, config)
    return config


def _common(keys: Keys) -> dict[str, Any]:
    header, metadata = keys.header, keys.header.metadata
    embedding = _embedding(header)
    said = keys.integer("embedding_length")
    if embedding.shape[1] != said:
        raise keys.error("embedding_length", f"{embedding.shape[1]}, as 'token_embd.weight' has", str(said))
    heads = keys.integer("attention.head_count")
    width = keys.integer("attention.key_length", max(1, embedding.shape[1] // heads))
    if keys.integer("attention.value_length", width) != width:
        raise keys.error("attention.value_length", f"the key_length {width}", repr(keys.get("attention.value_length")))
    config: dict[str, Any] = {
        "vocab_size": embedding.shape[0],
        "hidden_size": embedding.shape[1],
        "intermediate_size": keys.integer("feed_forward_length"),
        "num_hidden_layers": _layers(keys),
        "num_attention_heads": heads,
        "num_key_value_heads": keys.integer("attention.head_count_kv", heads),
        "head_dim": width,
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
        "max_position_embeddings": keys.integer("context_length"),
        "rope_theta": keys.number("rope.freq_base", _DEFAULT_THETA),
        "tie_word_embeddings": "output.weight" not in header.tensors,
    }
    for name, key in (("bos_token_id", "bos"), ("eos_token_id", "eos"), ("pad_token_id", "padding")):
        value = metadata.get(f"tokenizer.ggml.{key}_token_id")
        config[name] = value if isinstance(value, int) and 0 <= value < embedding.shape[0] else None
    scaling = _rope_scaling(keys)
    if scaling:
        config["rope_scaling"] = scaling
    return config


def _embedding(header: Header) -> TensorInfo:
    embedding = header.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        got = "none" if embedding is None else f"shape {embedding.shape}"
        raise refusal(header.path, "tensor 'token_embd.weight'", "a matrix", got)
    return embedding


def _layers(keys: Keys) -> int:
    layers = keys.integer("block_count")
    present = {name.split(".")[1] for name in keys.header.tensors if name.startswith("blk.")}
    if layers != len(present):
        raise keys.error("block_count", f"{len(present)}, the number of layers in the file", str(layers))
    return layers


def _check_heads(keys: Keys, config: Mapping[str, Any]) -> None:
    """Compare the heads with a tensor before transformers makes frequencies for a width that may be a lie."""
    tensors, heads, width = keys.header.tensors, config["num_attention_heads"], config["head_dim"]
    queries = tensors.get("blk.0.attn_q.weight", tensors.get("blk.0.attn_qkv.weight"))
    if queries is None:
        raise refusal(keys.header.path, "tensor 'blk.0.attn_q.weight'", "a matrix", "none")
    if heads * width > queries.shape[0]:
        expected = f"{heads} heads in the {queries.shape[0]} rows of {queries.name!r}"
        raise keys.error("attention.key_length", expected, f"heads of {width}")
    if keys.integer("rope.dimension_count", width) > width:
        raise keys.error("rope.dimension_count", f"at most {width}, the width of a head", "more")


def _rope_scaling(keys: Keys) -> dict[str, Any]:
    kind = keys.get("rope.scaling.type")
    if kind in (None, "none", "longrope"):
        if keys.number("rope.scale_linear", 1.0) != 1.0:
            return {"rope_type": "linear", "factor": keys.number("rope.scale_linear")}
        return {}
    factor = keys.number("rope.scaling.factor")
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind != "yarn":
        raise keys.error("rope.scaling.type", "'none', 'linear', 'yarn' or 'longrope'", repr(kind))
    for key, usual in (("rope.scaling.attn_factor", 1.0), ("rope.scaling.yarn_log_multiplier", 0.0)):
        if keys.number(key, usual) != usual:
            raise keys.error(key, f"{usual}, for zoquant knows no other for 'yarn'", str(keys.get(key)))
    return {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": keys.integer("rope.scaling.original_context_length"),
    }


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
        "rope_local_base_freq": keys.number("rope.freq_base_swa", _DEFAULT_THETA),
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


def _long_rope(path: Path, factors: Mapping[str, list[float]]) -> dict[str, Any]:
    """Return the scaling that the rope tensors of Phi-3 ask for."""
    missing = {"rope_factors_long.weight", "rope_factors_short.weight"} - factors.keys()
    if missing:
        raise refusal(path, f"tensor {min(missing)!r}", "long and short rope factors", "one of them")
    short, long = (factors[f"rope_factors_{which}.weight"] for which in ("short", "long"))
    return {"rope_scaling": {"type": "longrope", "short_factor": short, "long_factor": long}}


_EXTRAS: Mapping[str, Callable[[Keys, dict[str, Any]], dict[str, Any]]] = {
    "llama": _llama, "qwen3": _qwen3, "qwen2moe": _qwen2moe, "qwen3moe": _qwen3moe, "mixtral": _mixtral,
    "gemma2": _gemma2, "gemma3": _gemma3, "phi3": _phi3,
}  # fmt: skip
"""What a kind of model asks for besides."""
