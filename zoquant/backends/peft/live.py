"""Views of the adapters of peft: LoRA and IA3 layers, prefix and prompt encoders, copied modules, on any base.

A view is named as the adapter's file names its tensor, so without the name of the adapter:
`<path>.lora_A.weight` for the live parameter `<path>.lora_A.default.weight`.

Source: peft 0.21.2, peft/tuners/tuners_utils.py (`BaseTunerLayer.adapter_layer_names`), lora/layer.py, ia3/layer.py,
peft/utils/save_and_load.py (`get_peft_model_state_dict`).
"""

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from zoquant.errors import UnsupportedLayoutError
from zoquant.native import QuantLinear
from zoquant.protocol import Backend, ScaleView
from zoquant.registry import backend_of, plain_backend
from zoquant.views.tensor_views import TensorView


class PeftLayerBackend:
    """Serves a layer that wraps another one: the parameters of its active adapter, and plain ones of its base."""

    name = "peft"

    def open(self, module: nn.Module) -> Sequence[ScaleView]:
        """Return the views of the active adapter's parameters; those of a plain base layer are dense."""
        layer: Any = module
        active = _active(layer)
        views: list[ScaleView] = [
            TensorView(name, "adapter", tensor) for name, tensor in _parameters(layer, active) if active is not None
        ]
        if backend_of(layer.base_layer) is None:
            for view in plain_backend().open(layer.base_layer):
                cast(Any, view).name = f"base_layer.{view.name}"
                views.append(view)
        return views

    def dequantize(self, module: nn.Module) -> Tensor:
        """Return the weight of the base and the adapter together, float32 `[out_features, in_features]`."""
        layer: Any = module
        weight, active = _backend(layer.base_layer).dequantize(layer.base_layer), _active(layer)
        with torch.no_grad():
            return weight if active is None else _changed(layer, active, weight)

    def sample_input(self, module: nn.Module) -> Tensor:
        """Return the input that the base layer takes."""
        base: nn.Module = module.base_layer  # type: ignore[assignment]
        return _backend(base).sample_input(base)


class PeftCopyBackend:
    """Serves `modules_to_save`: a copy of a whole module, trained and saved with the adapter."""

    name = "peft-copy"

    def open(self, module: nn.Module) -> Sequence[ScaleView]:
        """Return the views of the active copy's parameters."""
        return [TensorView(name, "adapter", value) for name, value in _copy(module).named_parameters()]

    def dequantize(self, module: nn.Module) -> Tensor:
        """Return the weight of the active copy, float32 `[out_features, in_features]`."""
        return plain_backend().dequantize(_copy(module))

    def sample_input(self, module: nn.Module) -> Tensor:
        """Return the input that the copy takes."""
        return plain_backend().sample_input(_copy(module))


class PeftPromptBackend:
    """Serves the encoders of prompt learning whose output is their embedding: prompt tuning, plain prefix tuning."""

    name = "peft-prompt"

    def open(self, module: nn.Module) -> Sequence[ScaleView]:
        """Return the view of the virtual tokens, `[tokens, width]`."""
        encoder: Any = module
        if getattr(encoder, "prefix_projection", False):
            raise UnsupportedLayoutError(
                "prefix_projection=True: the adapter's file holds what the projection makes, not the parameters. "
                "Train with prefix_projection=False."
            )
        return [TensorView("prompt_embeddings", "adapter", encoder.embedding.weight)]

    def dequantize(self, module: nn.Module) -> Tensor:
        """Return the virtual tokens, float32 `[tokens, width]`."""
        return plain_backend().dequantize(module.embedding)  # type: ignore[arg-type]

    def sample_input(self, module: nn.Module) -> Tensor:
        """Return the indices of the first virtual tokens."""
        return plain_backend().sample_input(module.embedding)  # type: ignore[arg-type]


def lora_on_native(config: Any) -> Any:
    """Let a `LoraConfig` of peft wrap zoquant's native linear layers; IA3 of peft takes no other class than its own.

    Args:
        config: the configuration for `get_peft_model`, or for `PeftModel.from_pretrained(..., config=config)`.

    Returns:
        `config`.

    Source: peft 0.21.2, `LoraConfig._register_custom_module`, the documented way to add a layer of one's own.
    """
    from peft.tuners.lora.layer import Linear

    config._register_custom_module({QuantLinear: Linear})
    return config


def prompts_on_native(model: Any) -> Any:
    """Let a model of peft with virtual tokens look its words up in zoquant's native embedding.

    peft looks for the embedding among the parameters of the model, where a quantized one is not.

    Args:
        model: what `get_peft_model` or `PeftModel.from_pretrained` returned for a prompt tuning.

    Returns:
        `model`.

    Source: peft 0.21.2, `PeftModel._setup_prompt_encoder`.
    """
    model.word_embeddings = model.get_base_model().get_input_embeddings()
    return model


def _active(layer: Any) -> str | None:
    """Return the name of the adapter that the forward adds, or None if this layer has no part in it."""
    if layer.merged or layer.disable_adapters:
        state = "merged into its base" if layer.merged else "disabled"
        raise UnsupportedLayoutError(f"the adapter is {state}: unmerge and enable it before attach.")
    held = [name for name in layer.active_adapters if name in layer._get_available_adapters()]
    if len(held) > 1:
        raise UnsupportedLayoutError(f"{len(held)} adapters are active, {', '.join(held)}: set_adapter one of them.")
    return held[0] if held else None


def _parameters(layer: Any, active: str | None) -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters of the active adapter, named as in the adapter's file."""
    for kind in dict.fromkeys(layer.adapter_layer_names):
        holder = getattr(layer, kind)
        if active not in holder:
            continue
        if not isinstance(holder[active], nn.Module):
            yield kind, holder[active]
        elif kind == "lora_magnitude_vector":  # DoRA's, saved by the name of its module
            yield kind, holder[active].weight
        else:
            yield from ((f"{kind}.{name}", value) for name, value in holder[active].named_parameters())


def _changed(layer: Any, active: str, weight: Tensor) -> Tensor:
    """Return the weight as the adapter changes it; LoRA of a lookup table holds both factors transposed."""
    if hasattr(layer, "ia3_l"):
        factors: Tensor = layer.ia3_l[active]
        return weight * factors.float()
    if active in layer.lora_variant:
        kind = type(layer.lora_variant[active]).__name__
        raise UnsupportedLayoutError(f"LoRA of the variant {kind} does not add one matrix.")
    low: Tensor
    high: Tensor
    if active in layer.lora_A:
        low, high = layer.lora_A[active].weight.float(), layer.lora_B[active].weight.float()
    else:
        low, high = layer.lora_embedding_B[active].float().t(), layer.lora_embedding_A[active].float().t()
    return weight + float(layer.scaling[active]) * (high @ low)


def _copy(module: nn.Module) -> nn.Module:
    wrapper: Any = module
    if wrapper.disable_adapters or not wrapper.active_adapters:
        raise UnsupportedLayoutError("the adapter is disabled: enable it before attach.")
    copy: nn.Module = wrapper.modules_to_save[wrapper.active_adapters[0]]
    return copy


def _backend(module: nn.Module) -> Backend:
    return backend_of(module) or plain_backend()
