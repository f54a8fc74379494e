"""What peft is told of a stranger's adapter_config.json: the keys listed here, of the types listed here, and no other.

peft acts on some keys by importing modules that they name, loading tokenizers and files, matching regular expressions,
or changing the base. Which layers an adapter has, and of which rank, its tensors say: no pattern of the config is run.

Source: peft 0.21.2, tuners/lora/config.py, tuners/ia3/config.py, tuners/prefix_tuning/config.py,
tuners/prompt_tuning/config.py; lora/tp_layer.py (`megatron_core`); utils/save_and_load.py.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from zoquant.checkpoint.folder import Folder
from zoquant.errors import UnsupportedLayoutError

_NAME = re.compile(r"[\w.\\^$-]{1,200}")
"""A name of a module, or one with its dots escaped and its ends marked: nothing that can be matched in many ways."""
Allowed = dict[str, str]
"""Keys, and which of `_VALUES` peft writes there."""
_VALUES: dict[str, Callable[[Any], bool]] = {
    "flag": lambda value: type(value) is bool,
    "number": lambda value: type(value) in (int, float),
    "count": lambda value: type(value) is int and value > 0,
    "text": lambda value: isinstance(value, str),
    "names": lambda value: (
        isinstance(value, list) and all(isinstance(each, str) and _NAME.fullmatch(each) for each in value)
    ),
    "factors": lambda value: (
        isinstance(value, Mapping) and all(_NAME.fullmatch(key) and _VALUES["number"](value[key]) for key in value)
    ),
}
_COMMON: Allowed = {
    "peft_type": "text",
    "task_type": "text",
    "base_model_name_or_path": "text",
    "modules_to_save": "names",
}
_VIRTUAL: Allowed = dict.fromkeys(
    ("num_virtual_tokens", "token_dim", "num_transformer_submodules", "num_attention_heads", "num_layers"), "count"
)
_KINDS: dict[str, Allowed] = {
    "LORA": {
        "r": "count", "lora_alpha": "number", "alpha_pattern": "factors", "fan_in_fan_out": "flag",
        "bias": "text", "use_rslora": "flag", "use_dora": "flag", "lora_bias": "flag",
    },
    "IA3": {"fan_in_fan_out": "flag"},
    "PREFIX_TUNING": {**_VIRTUAL, "encoder_hidden_size": "count", "prefix_projection": "flag"},
    "PROMPT_TUNING": _VIRTUAL,
}  # fmt: skip
_IDLE = {
    "auto_mapping", "peft_version", "revision", "inference_mode", "lora_dropout", "megatron_core", "qalora_group_size",
    "rank_pattern", "target_modules", "exclude_modules", "feedforward_modules", "layers_to_transform", "layers_pattern",
    "loftq_config", "eva_config", "corda_config", "lora_ga_config", "init_ia3_weights", "init_weights",
    "prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs", "runtime_config",
}  # fmt: skip
"""Keys that peft is not told, whatever they hold: they are for training it, or the tensors say the same."""
_INITS = ("gaussian", "orthogonal", "eva")
"""Ways to begin a LoRA that leave its base as it was; others take a part out of the base, once more at every load."""
_LORA = re.compile(
    r"base_model\.model\.(.+?)\.(?:lora_(?:A|B|embedding_A|embedding_B|magnitude_vector)|ia3_l)(?:\..+)?"
)


def peft_arguments(folder: Folder) -> dict[str, Any]:
    """Return the arguments for `peft.PeftConfig.from_peft_type`.

    Raises:
        CheckpointError: a value is of another type than peft writes.
        UnsupportedLayoutError: another kind of adapter, or a key that is none of those above holds something.
    """
    said, kind = folder.config, str(folder.config["peft_type"])
    if kind not in _KINDS:
        raise UnsupportedLayoutError(
            f"{folder.path}: 'peft_type': zoquant opens {', '.join(_KINDS)}, and this is {kind[:40]!r}. Load the model "
            "with peft and call zoquant.attach."
        )
    allowed = _COMMON | _KINDS[kind]
    found: dict[str, Any] = {}
    for key, value in said.items():
        if key in _IDLE or value is None or value is False or value in ([], {}):
            continue
        if key == "init_lora_weights" and (value is True or value in _INITS):
            continue
        if key not in allowed:
            raise UnsupportedLayoutError(
                f"{folder.path}: {key[:80]!r}: peft would act on it, and zoquant does not tell it: expected nothing, "
                f"got {repr(value)[:60]}. Load the model with peft, if you trust the adapter, and call zoquant.attach."
            )
        if not _VALUES[allowed[key]](value):
            raise folder.error(key, "what peft writes there", repr(value)[:60])
        found[key] = value
    return found | _layers(folder, kind, int(found.get("r", 8)))


def _layers(folder: Folder, kind: str, rank: int) -> dict[str, Any]:
    """Return which layers have an adapter, as the names of its tensors say."""
    if kind not in ("LORA", "IA3"):
        return {}
    parts = {name: match[1] for name in folder.tensors if (match := _LORA.fullmatch(name))}
    odd = [path for path in parts.values() if not _NAME.fullmatch(path)]
    if odd or not parts:
        raise folder.error(
            "tensors", "names of layers and of their adapter", repr(odd[:1] or [*folder.tensors][:1])[:80]
        )
    targets: dict[str, Any] = {"target_modules": sorted(set(parts.values()))}
    if kind == "IA3":
        before = {path for name, path in parts.items() if _shape(folder, name)[0] == 1}
        return targets | {"feedforward_modules": sorted(before)}
    downs = {path: name for name, path in parts.items() if ".lora_A" in name or ".lora_embedding_A" in name}
    ranks = {path: _shape(folder, name)[0] for path, name in downs.items()}
    return targets | {"rank_pattern": {path: each for path, each in ranks.items() if each != rank}}


def _shape(folder: Folder, name: str) -> tuple[int, ...]:
    shape = folder.tensors[name].shape
    if len(shape) != 2:
        raise folder.error(name, "a matrix", str(list(shape)))
    return shape
