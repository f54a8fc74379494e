"""Which module of the model a tensor of the file belongs to.

Source: llama.cpp gguf-py `constants.MODEL_TENSORS`, `tensor_mapping.TensorNameMap`; the modules are those of
transformers' classes. Checked against transformers' own mapping in the tests.
"""

import re
from collections.abc import Mapping, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from zoquant.backends.gguf.header import Header, TensorInfo, refusal
from zoquant.errors import CheckpointError

Field = Literal["weight", "bias"]

_NAME = re.compile(r"(?:blk\.(0|[1-9]\d{0,5})\.)?(\w+)\.(weight|bias)")
_TOP: Mapping[str, str] = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_PHI_TOP: Mapping[str, str] = {**_TOP, "output_norm": "model.final_layernorm"}
_PROJECTIONS: Mapping[str, str] = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}  # fmt: skip
_ATTENTION: Mapping[str, str] = {"attn_norm": "input_layernorm", **_PROJECTIONS}
_MLP: Mapping[str, str] = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
_EXPERTS: Mapping[str, str] = {
    "ffn_gate_inp": "mlp.gate", "ffn_gate_exps": "mlp.experts.gate_proj", "ffn_up_exps": "mlp.experts.up_proj",
    "ffn_down_exps": "mlp.experts.down_proj",
}  # fmt: skip
_SHARED_EXPERT: Mapping[str, str] = {
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate", "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj", "ffn_down_shexp": "mlp.shared_expert.down_proj",
}  # fmt: skip
_QK_NORM: Mapping[str, str] = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_POST_NORM: Mapping[str, str] = {"ffn_norm": "post_attention_layernorm"}
_LLAMA: Mapping[str, str] = {**_ATTENTION, **_MLP, **_POST_NORM}
_FOUR_NORMS: Mapping[str, str] = {
    "post_attention_norm": "post_attention_layernorm", "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}  # fmt: skip
_SANDWICH: Mapping[str, str] = {
    "post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm",
}  # fmt: skip
_GLM: Mapping[str, str] = {
    "post_attention_norm": "post_self_attn_layernorm", "ffn_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_mlp_layernorm", "ffn_up": "mlp.gate_up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
_STARCODER: Mapping[str, str] = {"ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"}
_PHI: Mapping[str, str] = {"attn_output": "self_attn.dense", "ffn_up": "mlp.fc1", "ffn_down": "mlp.fc2"}
_FUSED: Mapping[str, str] = {
    "attn_norm": "input_layernorm", "attn_qkv": "self_attn.qkv_proj", "attn_output": "self_attn.o_proj",
    "ffn_up": "mlp.gate_up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip


@dataclass(frozen=True)
class Target:
    """Where a tensor goes.

    Attributes:
        module: dotted path of the module.
        field: its weight or its bias.
        part: the file's word for it without the number of the layer, e.g. `"attn_q"`.
    """

    module: str
    field: Field
    part: str

    @property
    def experts(self) -> str | None:
        """The module of the experts that the tensor holds all at once, or None for another tensor."""
        return self.module.rpartition(".")[0] if self.part.endswith("_exps") else None

    def placed(self, tensor: TensorInfo) -> TensorInfo:
        """Return a tensor in the shape that the model has it in: the gate of a shared expert is a matrix of one row."""
        if self.part == "ffn_gate_inp_shexp" and len(tensor.shape) == 1:
            return replace(tensor, shape=(1, *tensor.shape))
        return tensor


@dataclass(frozen=True)
class Architecture:
    """What zoquant knows of one `general.architecture`.

    Attributes:
        name: the file's word for it.
        model_type: transformers' word for it.
        layer: part -> path of the module inside of a layer.
        permuted: parts whose rows the file holds in llama.cpp's rope order: pairs side by side, not in two halves.
        norm_offset: what the file adds to the weights of the norms.
        rope_tensors: tensors that hold rope factors and belong to no module.
        epsilon: transformers' word for the epsilon of the norms; `"rms_norm_eps"` tells that they are RMS norms.
        top: part -> path of the module outside of the layers.
    """

    name: str
    model_type: str
    layer: Mapping[str, str]
    permuted: Set[str] = field(default_factory=frozenset)
    norm_offset: float = 0.0
    rope_tensors: Set[str] = field(default_factory=frozenset)
    epsilon: str = "rms_norm_eps"
    top: Mapping[str, str] = field(default_factory=lambda: _TOP)

    def target(self, tensor: str) -> Target | None:
        """Return where a tensor goes, or None for a name that this kind of model does not have."""
        match = _NAME.fullmatch(tensor)
        if match is None:
            return None
        number, part, what = match.groups()
        module = self.top.get(part) if number is None else self.layer.get(part)
        if module is None or (part.endswith("_exps") and what == "bias"):
            return None
        path = module if number is None else f"model.layers.{number}.{module}"
        return Target(path, "weight" if what == "weight" else "bias", part)

    def added_to(self, target: Target) -> float:
        """Return what the file adds to the numbers of a tensor."""
        return self.norm_offset if target.part.endswith("norm") else 0.0


_LLAMA_ORDER = {"attn_q", "attn_k"}
_LLAMA_ROPE, _PHI_ROPE = {"rope_freqs.weight"}, {"rope_factors_long.weight", "rope_factors_short.weight"}
ARCHITECTURES: Mapping[str, Architecture] = {
    each.name: each
    for each in (
        Architecture("llama", "llama", _LLAMA, _LLAMA_ORDER, rope_tensors=_LLAMA_ROPE),
        Architecture("qwen2", "qwen2", _LLAMA),
        Architecture("qwen3", "qwen3", {**_LLAMA, **_QK_NORM}),
        Architecture("qwen2moe", "qwen2_moe", {**_ATTENTION, **_EXPERTS, **_SHARED_EXPERT, **_POST_NORM}),
        Architecture("qwen3moe", "qwen3_moe", {**_ATTENTION, **_EXPERTS, **_POST_NORM, **_QK_NORM}),
        Architecture("gemma2", "gemma2", {**_ATTENTION, **_MLP, **_FOUR_NORMS}, norm_offset=1.0),
        Architecture("gemma3", "gemma3_text", {**_ATTENTION, **_MLP, **_FOUR_NORMS, **_QK_NORM}, norm_offset=1.0),
        Architecture("phi3", "phi3", {**_FUSED, **_POST_NORM}, rope_tensors=_PHI_ROPE),
        Architecture("gemma", "gemma", _LLAMA, norm_offset=1.0),
        Architecture("granite", "granite", _LLAMA, _LLAMA_ORDER, rope_tensors=_LLAMA_ROPE),
        Architecture("smollm3", "smollm3", _LLAMA, _LLAMA_ORDER, rope_tensors=_LLAMA_ROPE),
        Architecture("olmo2", "olmo2", {**_PROJECTIONS, **_MLP, **_SANDWICH, **_QK_NORM}),
        Architecture("glm4", "glm4", {**_ATTENTION, **_GLM}),
        Architecture("starcoder2", "starcoder2", {**_ATTENTION, **_STARCODER, **_POST_NORM}, epsilon="norm_epsilon"),
        Architecture("stablelm", "stablelm", _LLAMA, epsilon="layer_norm_eps"),
        Architecture("phi2", "phi", {**_ATTENTION, **_PHI}, epsilon="layer_norm_eps", top=_PHI_TOP),
        Architecture("command-r", "cohere", {**_ATTENTION, **_MLP, **_QK_NORM}, epsilon="layer_norm_eps"),
        Architecture("cohere2", "cohere2", {**_ATTENTION, **_MLP}, epsilon="layer_norm_eps"),
    )
}
"""`general.architecture` -> what zoquant knows of it."""

REFUSED: Mapping[str, str] = {
    **dict.fromkeys(("qwen35", "qwen35moe", "qwen3next"), "zoquant has no place for the tensors of linear attention"),
    **dict.fromkeys(("gpt2", "falcon"), "zoquant does not read its fused q, k and v"),
    "deepseek2": "zoquant does not read latent keys and values, which the file splits by head",
    "gemma4": "zoquant does not read its embeddings and scales of a layer",
    "gpt-oss": "zoquant's layers for experts have no biases, and it does not read attention sinks",
    "granitemoe": "zoquant cannot fill the experts of transformers' class",
    "lfm2": "zoquant does not read its short convolutions",
    "llama4": "zoquant cannot fill the experts of transformers' class",
    "mistral3": "zoquant does not scale queries by their position",
}
"""`general.architecture` of a kind that is often met -> why zoquant cannot run it."""

_MIXTRAL = Architecture("mixtral", "mixtral", {**_ATTENTION, **_EXPERTS, **_POST_NORM}, _LLAMA_ORDER)
"""What the architecture `llama` is in a file with experts."""


def architecture_of(header: Header) -> Architecture:
    """Return the architecture of a file.

    Raises:
        CheckpointError: zoquant does not know it.
    """
    name = header.architecture
    if name not in ARCHITECTURES:
        why = f": {REFUSED[name]}" if name in REFUSED else ""
        raise CheckpointError(
            f"{header.path}: expected one of the architectures {', '.join(sorted(ARCHITECTURES))}, got {name!r}. "
            f"zoquant cannot run or index this kind of model{why}."
        )
    return _MIXTRAL if name == "llama" and header.metadata.get("llama.expert_count") else ARCHITECTURES[name]


def target_of(path: Path, architecture: Architecture, tensor: str) -> Target:
    """Return where a tensor goes.

    Raises:
        CheckpointError: this kind of model has no such tensor.
    """
    target = architecture.target(tensor)
    if target is None:
        remedy = "To leave it out would change the model, so the file is refused."
        raise refusal(path, f"tensor {tensor!r}", f"a tensor of a {architecture.name} model", "an unknown name", remedy)
    return target
