"""Tiny GGUF files, written with llama.cpp's own writer."""

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, quants
from torch import Tensor, nn

from zoquant.backends.gguf.blocks import CODECS, BlockCodec

HIDDEN, VOCAB = 256, 96
QUANTIZABLE = ("F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0", "MXFP4")

_ARCHS = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
_ROTARY_ORDER = ("llama", "granite", "smollm3")


def random_blocks(codec: BlockCodec, rows: int, groups: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """Return random blocks, uint8 `[rows, groups, bytes]`, whose fields are small finite numbers."""
    random = np.random.default_rng(seed)
    blocks = random.integers(0, 256, (rows, groups, codec.nbytes), dtype=np.uint8)
    small = (random.standard_normal((len(codec.fields) + 1, rows, groups)) * 1e-3).astype(np.float16)
    for value, start in zip(small, codec.offsets, strict=False):
        blocks[..., start : start + 2] = value[..., None].view(np.uint8)
    if codec.name == "IQ1_M":
        words, d = blocks[..., 48:].view(np.uint16), np.abs(small[-1]).view(np.uint16)
        for index in range(4):
            words[..., index] = (words[..., index] & 0xFFF) | (d >> 4 * index & 15) << 12
    if codec.name == "MXFP4":
        blocks[..., 0] = random.integers(115, 122, (rows, groups))
    if codec.name == "NVFP4":
        blocks[..., :4] = random.integers(1, 24, (rows, groups, 4))
    return blocks


@dataclass
class TinyFile:
    """What to write.

    Attributes:
        arch: llama.cpp's name of the architecture.
        model: the model of transformers whose weights are written.
        metadata: keys without the architecture's name -> value.
        types: for tensors that are matrices, the type; a sequence is dealt out in turn.
        extra: more tensors.
        skip: tensors to leave out.
        edit: called with the writer before anything is written.
        tensors_a_shard: how many tensors a file takes; 0 for all.
    """

    arch: str
    model: nn.Module
    metadata: Mapping[str, Any] = field(default_factory=dict)
    types: str | Sequence[str] = "F32"
    extra: Mapping[str, np.ndarray[Any, Any]] = field(default_factory=dict)
    skip: Sequence[str] = ()
    edit: Callable[[GGUFWriter], None] | None = None
    tensors_a_shard: int = 0

    def write(self, path: Path) -> Path:
        """Write the file, or all shards beside it, and return the path of the first."""
        writer = GGUFWriter(path, self.arch, split_max_tensors=self.tensors_a_shard)
        writer.add_name("tiny")
        for key, value in {**standard_metadata(self.model.config), **self.metadata}.items():
            _add(writer, f"{self.arch}.{key}", value)
        for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
            writer.add_uint32(f"tokenizer.ggml.{key}_token_id", getattr(self.model.config, f"{name}_token_id"))
        if self.edit is not None:
            self.edit(writer)
        types = [self.types] if isinstance(self.types, str) else list(self.types)
        number = 0
        for name, array in {**self.tensors(), **self.extra}.items():
            if name in self.skip:
                continue
            if array.ndim >= 2 and "ffn_gate_inp" not in name and "norm" not in name:
                _add_matrix(writer, name, array, types[number % len(types)], seed=number)
                number += 1
            else:
                writer.add_tensor(name, array)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return min(path.parent.glob(f"{path.stem}-*-of-*.gguf"), default=path) if self.tensors_a_shard else path

    def tensors(self) -> dict[str, np.ndarray[Any, Any]]:
        """Return the model's tensors under the file's names, rows and norms as llama.cpp converts them."""
        config: Any = self.model.config
        gemma, tensors = self.arch.startswith("gemma"), {}
        for key, tensor in with_stacked_experts(self.model.state_dict()).items():
            if key == "lm_head.weight" and config.tie_word_embeddings:
                continue
            name = file_name(key, self.arch)
            array = tensor.detach().float().numpy().copy()
            if self.arch in _ROTARY_ORDER and (".attn_q." in name or ".attn_k." in name):
                heads = config.num_attention_heads if ".attn_q." in name else config.num_key_value_heads
                array = array.reshape(heads, 2, -1, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)
            if gemma and "norm" in name:
                array = array + 1
            if name.endswith("ffn_gate_inp_shexp.weight"):
                array = array[0]
            tensors[name] = np.ascontiguousarray(array)
        return tensors


def with_stacked_experts(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the parameters of a model with one tensor `[experts, rows, columns]` a matrix, as the file has them.

    transformers 5 holds gate and up in one tensor, transformers 4 every expert in modules of its own.
    """
    stacked, parts = {}, defaultdict(list)
    for key, tensor in state.items():
        alone = re.fullmatch(r"(.*\.experts)\.\d+\.(\w+)\.weight", key)
        if alone:
            parts[f"{alone[1]}.{alone[2]}.weight"].append(tensor)
        elif key.endswith(".experts.gate_up_proj"):
            path = key.removesuffix("gate_up_proj")
            stacked[f"{path}gate_proj.weight"], stacked[f"{path}up_proj.weight"] = tensor.chunk(2, dim=1)
        elif key.endswith(".experts.down_proj"):
            stacked[f"{key}.weight"] = tensor
        else:
            stacked[key] = tensor
    return {**stacked, **{key: torch.stack(tensors) for key, tensors in parts.items()}}


def file_name(key: str, arch: str) -> str:
    """Return the name that llama.cpp's converter gives a parameter, by its own map; llama's if the kind has no such."""
    path, _, what = key.rpartition(".")
    names = (_names_of(each).get_name(path) for each in (arch, "llama"))
    return f"{next(name for name in names if name is not None)}.{what}"


@cache
def _names_of(arch: str) -> gguf.TensorNameMap:
    return gguf.get_tensor_name_map(_ARCHS[arch], 100)


def standard_metadata(config: Any) -> dict[str, Any]:
    """Return the keys that every converter of llama.cpp writes."""
    theta = getattr(config, "rope_theta", None)
    if theta is None:
        parameters = config.rope_parameters
        theta = parameters.get("rope_theta") or parameters["full_attention"]["rope_theta"]
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        **_epsilon(config),
        "attention.key_length": head,
        "attention.value_length": head,
        "rope.freq_base": float(theta),
        "vocab_size": config.vocab_size,
    }


def _epsilon(config: Any) -> dict[str, float]:
    if hasattr(config, "rms_norm_eps"):
        return {"attention.layer_norm_rms_epsilon": float(config.rms_norm_eps)}
    value = getattr(config, "layer_norm_eps", None) or config.norm_epsilon
    return {"attention.layer_norm_epsilon": float(value)}


def randomized(model: nn.Module, seed: int = 0) -> nn.Module:
    """Fill every parameter with small random numbers, norms and biases too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + noise * 0.1 if "norm" in name else noise * 0.05)
    return model.eval()


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def _add_matrix(writer: GGUFWriter, name: str, array: np.ndarray[Any, Any], kind: str, seed: int) -> None:
    number = GGMLQuantizationType[kind]
    if kind == "F32":
        writer.add_tensor(name, array)
    elif kind in QUANTIZABLE:
        writer.add_tensor(name, quants.quantize(array, number), raw_dtype=number)
    else:
        codec = CODECS[kind]
        blocks = random_blocks(codec, prod(array.shape[:-1]), array.shape[-1] // codec.block, seed)
        writer.add_tensor(name, blocks.reshape(*array.shape[:-1], -1), raw_dtype=number)
