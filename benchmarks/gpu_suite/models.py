"""A model of true shapes without a checkpoint."""

from typing import Any

import torch
from torch import nn

from benchmarks.gpu_suite.mmdit import MMDiT
from benchmarks.gpu_suite.shapes import SHAPES, TINY, Case
from benchmarks.gpu_suite.weights import PACKED
from zoquant.native import PackedWeight, QuantLinear, Values
from zoquant.native.meta import ModuleSlots, WithoutWeights, forget_weights


def build(case: Case, device: torch.device, *, tiny: bool) -> nn.Module:
    """Return a model of random packed weights; what its checkpoints keep dense stays in float16 or bfloat16."""
    settings = dict(SHAPES[case.model])
    kind = settings.pop("kind")
    dtype = torch.bfloat16 if device.type == "cpu" or torch.cuda.is_bf16_supported() else torch.float16
    with WithoutWeights():
        model = _empty(kind, {**settings, **(TINY[kind] if tiny else {})})
    forget_weights(model)
    places, head = ModuleSlots(model), getattr(model, "get_output_embeddings", lambda: None)()
    for path, module in list(model.named_modules()):
        if type(module) is nn.Linear and module is not head:
            packed = PACKED[case.format](module.out_features, module.in_features, device)
            bias = None if module.bias is None else torch.zeros(module.out_features, device=device, dtype=dtype)
            places.replace(path, QuantLinear(packed, bias, compute_dtype=dtype))
    _fill(model, device, dtype)
    return model.to(device).eval().requires_grad_(False)


def _empty(kind: str, settings: dict[str, Any]) -> nn.Module:
    if kind == "mmdit":
        return MMDiT(**settings)
    import transformers

    config = transformers.AutoConfig.for_model(kind, **settings)
    empty: nn.Module = transformers.AutoModelForCausalLM.from_config(config)
    return empty


def _fill(model: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Give memory to what is not packed; tied parameters stay tied."""
    known: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, value in module._parameters.items():
            if value is not None and value.device.type == "meta":
                filled = nn.Parameter(torch.full(value.shape, 0.02, device=device, dtype=dtype), requires_grad=False)
                module._parameters[name] = known.setdefault(id(value), filled)
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_floating_point() and not isinstance(module, PackedWeight | Values):
                module._buffers[name] = buffer.to(device)


def weights_of(model: nn.Module) -> int:
    """Return how many numbers the dense model would have; tied ones count once."""
    packed = sum(each.rows * each.columns for each in model.modules() if isinstance(each, PackedWeight))
    return packed + sum(parameter.numel() for parameter in model.parameters())


def adamw_bytes(parameters: int) -> int:
    """Return what AdamW in bf16 holds: weights and gradients of 2 bytes, two moments of 4, and no activations."""
    return parameters * (2 + 2 + 4 + 4)
