"""The file's metadata as a configuration of transformers.

transformers' own reader of GGUF metadata needs seconds and leaves out what it does not know: rope scaling, soft caps,
the width of a head. Here a value that changes the model is used, or the file is refused.

Source: llama.cpp gguf-py `constants.Keys`, llama-model.cpp `load_hparams`; the names are those of transformers'
configuration classes.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoquant.backends.gguf.architectures import Architecture
from zoquant.backends.gguf.header import Header, TensorInfo, refusal
from zoquant.backends.gguf.keys import DEFAULT_THETA, Keys
from zoquant.backends.gguf.kinds import EXTRAS, SCALES

_REFUSED = ("attention.scale", "logit_scale", "embedding_scale", "residual_scale")
_EXPERTS = ("qwen2moe", "qwen3moe", "mixtral")


def config_of(header: Header, architecture: Architecture, rope_factors: Mapping[str, list[float]]) -> dict[str, Any]:
    """Return the arguments of transformers' configuration class.

    Raises:
        CheckpointError: a key is missing or contradicts the tensors, or zoquant cannot do what it asks for.
    """
    keys = Keys(header)
    scales = SCALES.get(architecture.name, {})
    for key in _REFUSED if architecture.name in _EXPERTS else (*_REFUSED, "expert_count"):
        if keys.get(key) and key not in scales:
            raise keys.error(key, "no such key, for zoquant cannot run such a model", repr(keys.get(key)))
    config = _common(keys, architecture)
    config |= {name: keys.number(key) for key, name in scales.items() if keys.get(key)}
    if architecture.name in EXTRAS:
        config |= EXTRAS[architecture.name](keys, config)
    if architecture.name == "phi3" and rope_factors:
        config |= _long_rope(header.path, rope_factors)
    _check_heads(keys, config)
    return config


def _common(keys: Keys, architecture: Architecture) -> dict[str, Any]:
    header, metadata = keys.header, keys.header.metadata
    rms = "rms_" if architecture.epsilon == "rms_norm_eps" else ""
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
        architecture.epsilon: keys.number(f"attention.layer_norm_{rms}epsilon"),
        "max_position_embeddings": keys.integer("context_length"),
        "rope_theta": keys.number("rope.freq_base", DEFAULT_THETA),
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


def _long_rope(path: Path, factors: Mapping[str, list[float]]) -> dict[str, Any]:
    """Return the scaling that the rope tensors of Phi-3 ask for."""
    missing = {"rope_factors_long.weight", "rope_factors_short.weight"} - factors.keys()
    if missing:
        raise refusal(path, f"tensor {min(missing)!r}", "long and short rope factors", "one of them")
    short, long = (factors[f"rope_factors_{which}.weight"] for which in ("short", "long"))
    return {"rope_scaling": {"type": "longrope", "short_factor": short, "long_factor": long}}
