"""A GGUF file as a model of transformers on zoquant's native layers.

The model is built without memory for its weights. Quantized matrices become native layers over the file's blocks,
plain ones native layers in the dtype of the file, and everything else float32 parameters. Every tensor of the file is
used and every parameter filled, or the file is refused.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zoquant.backends.gguf.architectures import Architecture, Field, Target, architecture_of, target_of
from zoquant.backends.gguf.config import config_of
from zoquant.backends.gguf.data import read_dense, read_matrix
from zoquant.backends.gguf.header import Header, TensorInfo, refusal
from zoquant.backends.gguf.keys import Keys
from zoquant.backends.gguf.types import DENSE
from zoquant.checkpoint.folder.libraries import refusing
from zoquant.errors import CheckpointError
from zoquant.native import QuantEmbedding, QuantExperts, QuantLinear
from zoquant.native.meta import ModuleSlots, WithoutWeights, forget_weights, unfilled
from zoquant.views.stored_form import StoredForm, keep_form

_ROPE_TOLERANCE = 1e-3

Part = tuple[Target, TensorInfo]
"""A tensor of the file and where it goes."""


def build_model(header: Header, *, compute_dtype: torch.dtype, device: torch.device) -> nn.Module:
    """Return the model that a file holds, in eval mode and without gradients.

    Raises:
        CheckpointError: the file lacks a tensor, has one that the model has not, or asks for what zoquant cannot do.
    """
    architecture, model = architecture_of(header), empty_model(header)
    _Filler(header, architecture, model, device, compute_dtype).fill()
    _check_filled(header, model)
    return model.to(device).eval().requires_grad_(False)


def empty_model(header: Header) -> nn.Module:
    """Return the model that the metadata of a file describes, without memory for its weights.

    Raises:
        CheckpointError: the file asks for what zoquant or transformers cannot do.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    architecture = architecture_of(header)
    held = architecture.rope_tensors & header.tensors.keys()
    rope = {name: read_dense(header.tensors[name], torch.device("cpu")).float() for name in held}
    config = config_of(header, architecture, {name: factors.flatten().tolist() for name, factors in rope.items()})
    what = f"transformers cannot build a {architecture.model_type!r} model from the file's metadata"
    advice = "Update transformers, or convert the checkpoint again."
    with refusing(header.path, what, advice), WithoutWeights(), torch.device("cpu"):
        model: nn.Module = AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture.model_type, **config))
    forget_weights(model)
    _set_rope(header, model, rope.get("rope_freqs.weight"))
    return model


@dataclass
class _Filler:
    """Puts the tensors of a file into an empty model."""

    header: Header
    architecture: Architecture
    model: nn.Module
    device: torch.device
    compute_dtype: torch.dtype

    def __post_init__(self) -> None:
        self.places = ModuleSlots(self.model)

    def fill(self) -> None:
        for path, matrices in self._stacked().items():
            self._fill_experts(path, matrices)
        for path, parts in self._by_module().items():
            self._fill_module(path, parts)
        self._tie()

    def _targets(self) -> Iterator[Part]:
        for name, info in self.header.tensors.items():
            if name not in self.architecture.rope_tensors:
                target = target_of(self.header.path, self.architecture, name)
                yield target, target.placed(info)

    def _stacked(self) -> dict[str, dict[str, TensorInfo]]:
        """Return by the path of a layer's experts the tensors that hold all of them, by the name of the matrix."""
        experts: dict[str, dict[str, TensorInfo]] = defaultdict(dict)
        for target, info in self._targets():
            if target.experts is not None:
                experts[target.experts][target.module.rpartition(".")[2]] = info
        return experts

    def _by_module(self) -> dict[str, dict[Field, Part]]:
        modules: dict[str, dict[Field, Part]] = defaultdict(dict)
        for target, info in self._targets():
            if target.experts is None:
                modules[target.module][target.field] = (target, info)
        return modules

    def _fill_module(self, path: str, parts: Mapping[Field, Part]) -> None:
        module = self._module(path, next(iter(parts.values()))[1])
        for field, (_, info) in parts.items():
            self._check_shape(module, path, field, info)
        weight = parts.get("weight")
        if weight is None or (weight[1].type.name in DENSE and not isinstance(module, nn.Linear | nn.Embedding)):
            for field, part in parts.items():
                numbers, form = self._numbers(part)
                module.register_parameter(field, nn.Parameter(numbers, requires_grad=False))
                keep_form(module, field, form)
        elif "bias" in parts:
            bias, form = self._numbers(parts["bias"])
            native = self._native(module, weight, bias)
            keep_form(native, "bias", form)
            self.places.replace(path, native)
        elif getattr(module, "bias", None) is not None:
            raise _incomplete(self.header, [f"{path}.bias"])
        else:
            self.places.replace(path, self._native(module, weight, None))

    def _fill_experts(self, path: str, matrices: Mapping[str, TensorInfo]) -> None:
        """Put native experts in the place of those of transformers, fused or in a list."""
        from transformers.activations import ACT2FN

        config: Any = self.model.config
        count = getattr(config, "num_experts", None) or config.num_local_experts
        width = getattr(config, "moe_intermediate_size", None) or config.intermediate_size
        outer, inner = (count, width, config.hidden_size), (count, config.hidden_size, width)
        self._module(path, next(iter(matrices.values())))
        layers: dict[str, QuantLinear] = {}
        for name, shape in (("gate_proj", outer), ("up_proj", outer), ("down_proj", inner)):
            if name not in matrices:
                raise _incomplete(self.header, [f"{path}.{name}.weight"])
            if matrices[name].shape != shape:
                raise self._contradiction(matrices[name], f"{path}.{name}.weight", shape)
            layers[name] = QuantLinear(read_matrix(matrices[name], self.device), compute_dtype=self.compute_dtype)
        experts = QuantExperts(*layers.values(), count=count, activation=ACT2FN[config.hidden_act])
        self.places.replace(path, experts)

    def _module(self, path: str, info: TensorInfo) -> nn.Module:
        try:
            return self.model.get_submodule(path)
        except AttributeError as error:
            raise CheckpointError(
                f"{info.file}: tensor {info.name!r}: the model has no {path!r} to hold it. "
                "The file contradicts its metadata; convert the checkpoint again."
            ) from error

    def _check_shape(self, module: nn.Module, path: str, field: Field, info: TensorInfo) -> None:
        expected = getattr(module, field, None)
        if not isinstance(expected, Tensor) or tuple(expected.shape) != info.shape:
            wanted = tuple(expected.shape) if isinstance(expected, Tensor) else "no such tensor"
            raise self._contradiction(info, f"{path}.{field}", wanted)

    def _contradiction(self, info: TensorInfo, key: str, wanted: object) -> CheckpointError:
        remedy = "The file contradicts its metadata; convert the checkpoint again."
        return refusal(info.file, f"tensor {info.name!r} ({key})", str(wanted), str(info.shape), remedy)

    def _native(self, module: nn.Module, weight: Part, bias: Tensor | None) -> nn.Module:
        target, info = weight
        packed = read_matrix(info, self.device, self._row_order(target, info))
        if isinstance(module, nn.Linear):
            return QuantLinear(packed, bias, compute_dtype=self.compute_dtype)
        if isinstance(module, nn.Embedding):
            scale = getattr(module, "embed_scale", None)
            return QuantEmbedding(packed, scale=None if scale is None else float(scale))
        expected = f"one of the types {', '.join(DENSE)} for a {type(module).__name__}"
        raise refusal(info.file, f"tensor {info.name!r} ({target.module})", expected, info.type.name)

    def _numbers(self, part: Part) -> tuple[Tensor, StoredForm]:
        """Return plain numbers as the model holds them, float32, and how the file does."""
        target, info = part
        stored = read_dense(info, self.device).float()
        added = self.architecture.added_to(target)
        form = StoredForm(DENSE[info.type.name], self._row_order(target, info), added, stored if added else None)
        return form.held(stored), form

    def _row_order(self, target: Target, info: TensorInfo) -> Tensor | None:
        if target.part not in self.architecture.permuted:
            return None
        config: Any = self.model.config
        width: int = config.head_dim
        if info.shape[0] % width or width % 2:
            raise info.error(f"rows for heads of {width}", f"{info.shape[0]} rows")
        return torch.arange(info.shape[0]).view(-1, width // 2, 2).transpose(1, 2).flatten()

    def _tie(self) -> None:
        if "output.weight" in self.header.tensors:
            return
        embedding = self.model.get_submodule(self.architecture.top["token_embd"])
        if isinstance(embedding, QuantEmbedding):
            self.places.replace("lm_head", QuantLinear(embedding.packed, compute_dtype=self.compute_dtype))


def _set_rope(header: Header, model: nn.Module, factors: Tensor | None) -> None:
    """Check the rotary embeddings against the metadata; divide their frequencies by `factors`, as llama.cpp does."""
    keys = Keys(header)
    width = keys.get("rope.dimension_count")
    for path, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if not name.endswith("inv_freq"):
                continue
            if width is not None and 2 * buffer.numel() != width:
                raise keys.error("rope.dimension_count", f"{2 * buffer.numel()}, as {path}.{name} has", repr(width))
            if factors is not None:
                _divide(header, buffer, factors)
        if header.architecture == "phi3":
            _check_attention_factor(keys, getattr(module, "attention_scaling", None))


def _divide(header: Header, frequencies: Tensor, factors: Tensor) -> None:
    if factors.shape != frequencies.shape:
        expected, got = f"shape {tuple(frequencies.shape)}", str(tuple(factors.shape))
        raise refusal(header.path, "tensor 'rope_freqs.weight'", expected, got)
    frequencies.div_(factors)


def _check_attention_factor(keys: Keys, factor: object) -> None:
    """Compare what long rope multiplies queries and keys with; transformers computes it, llama.cpp reads it."""
    if isinstance(factor, float):
        said = keys.number("rope.scaling.attn_factor", factor)
        if abs(said - factor) > _ROPE_TOLERANCE * factor:
            raise keys.error("rope.scaling.attn_factor", f"{factor}, as transformers has it", str(said))


def _check_filled(header: Header, model: nn.Module) -> None:
    missing = unfilled(model)
    if missing:
        raise _incomplete(header, missing)


def _incomplete(header: Header, missing: Sequence[str]) -> CheckpointError:
    more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    return CheckpointError(
        f"{header.path}: expected a tensor for {missing[0]!r}{more}, got none. "
        "The file is incomplete or of another kind than it says; convert the checkpoint again."
    )
