"""Views of bitsandbytes' own layers.

    4 bits:  W = table[code] * absmax, with  absmax = nested_quant_map[code2] * nested_absmax + offset  when nested
    8 bits:  W = code * SCB / 127

Source: bitsandbytes 0.50.2, nn/modules.py (`Linear4bit`, `Linear8bitLt`, `Embedding4bit`, `Embedding8bit`),
functional.py (`QuantState`).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoquant.backends.bitsandbytes.quant_state import QuantState
from zoquant.backends.bitsandbytes.weights import EIGHT_BIT, four_bit
from zoquant.errors import UnsupportedLayoutError
from zoquant.protocol import ScaleView
from zoquant.views.tensor_views import TensorView


class FourBitBackend:
    """Serves `Linear4bit` and `Embedding4bit`, NF4 and FP4: view `absmax`, or `nested_absmax` when nested.

    On a CPU with AVX512-BF16 the layer's first forward in eval mode packs its words anew, rounds absmax to bfloat16 and
    drops the nested level. `open` switches that kernel off; the layer then computes from the tensors of the file.
    """

    name = "bitsandbytes"

    def open(self, module: nn.Module) -> Sequence[ScaleView]:
        """Return the view of the level of absmax that is floating point.

        Raises:
            UnsupportedLayoutError: the weight is not quantized yet, or a forward packed it anew.
        """
        layer: Any = module
        state = _state(layer)
        if getattr(state, "packing_format_for_cpu", False):
            raise UnsupportedLayoutError(
                "bitsandbytes: an earlier forward packed the layer for its AVX512 kernel and rounded absmax to "
                "bfloat16. Load the model again and call attach before its first forward, or use runtime='native'."
            )
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False
        if state.nested:
            return [TensorView("nested_absmax", "scale", state.state2.absmax)]
        return [TensorView("absmax", "scale", state.absmax)]

    def dequantize(self, module: nn.Module) -> Tensor:
        """Return the weight by the layout of the file, float32 `[out_features, in_features]`.

        Not by bitsandbytes' own operator: that of 0.50.2 mixes up the blocks on a CPU where in_features is no multiple
        of the blocksize, and the check of attach shall see it.
        """
        layer: Any = module
        found = _state(layer)
        nested = found.state2.blocksize if found.nested else 0
        offset = float(found.offset) if found.nested else 0.0
        rows, columns = found.shape
        state = QuantState(found.quant_type, found.blocksize, rows, columns, nested, offset)
        tensors = {"weight": layer.weight.data, "absmax": found.absmax}
        if nested:
            tensors |= {"nested_absmax": found.state2.absmax, "nested_quant_map": found.state2.code}
        return four_bit(tensors, state).dequantize()

    def sample_input(self, module: nn.Module) -> Tensor:
        """Return random numbers `[2, in_features]` in the compute dtype, or the first indices of an embedding.

        A layer without a compute dtype takes that of its first input, so it gets the dtype of its original weights.
        """
        layer: Any = module
        if isinstance(layer, nn.Embedding):
            return _first_rows(layer)
        return _random(layer).to(layer.weight.device, layer.compute_dtype or _state(layer).dtype)


class EightBitBackend:
    """Serves `Linear8bitLt` and `Embedding8bit`: view `SCB`, the largest magnitude of each row."""

    name = "bitsandbytes"

    def open(self, module: nn.Module) -> Sequence[ScaleView]:
        """Return the view of `SCB`, `[out_features]`; the first forward moves that tensor, and keeps it.

        Raises:
            UnsupportedLayoutError: the weight is not quantized: it is still to be moved to its device, or the layer
                was made with has_fp16_weights=True and quantizes at every forward.
        """
        return [TensorView("SCB", "scale", _codes_and_scale(module)[1])]

    def dequantize(self, module: nn.Module) -> Tensor:
        """Return codes times scales, float32 `[out_features, in_features]`."""
        codes, scale = _codes_and_scale(module)
        return EIGHT_BIT.weight({"weight": codes, "SCB": scale}).dequantize()

    def sample_input(self, module: nn.Module) -> Tensor:
        """Return random signs `[2, in_features]` in float16, or the first indices of an embedding.

        LLM.int8() rounds its input to 8 bits as well. Signs survive that, so that what is compared is the weight.
        """
        layer: Any = module
        if isinstance(layer, nn.Embedding):
            return _first_rows(layer)
        return _random(layer).sign().to(layer.weight.device, torch.float16)


def _state(layer: Any) -> Any:
    """Return the `QuantState` of a layer."""
    state = getattr(layer.weight, "quant_state", None) or getattr(layer, "quant_state", None)
    if state is None:
        raise UnsupportedLayoutError(
            f"bitsandbytes: {type(layer).__name__} is not quantized yet. Move it to its device, which quantizes it, or "
            "load a quantized checkpoint, before attach."
        )
    return state


def _codes_and_scale(layer: Any) -> tuple[Tensor, Tensor]:
    """Return the int8 codes and `SCB`: both move from the weight to the layer's state at the first forward."""
    state: Any = getattr(layer, "state", None)
    for holder in (layer.weight, state):
        if getattr(holder, "SCB", None) is not None and not getattr(state, "has_fp16_weights", False):
            return (layer.weight.data if holder.CB is None else holder.CB), holder.SCB
    raise UnsupportedLayoutError(
        f"bitsandbytes: {type(layer).__name__} holds no quantized weight. Make it with has_fp16_weights=False and move "
        "it to its device, which quantizes it, or load a quantized checkpoint, before attach."
    )


def _random(layer: Any) -> Tensor:
    return torch.randn(2, layer.in_features, generator=torch.Generator().manual_seed(0))


def _first_rows(layer: Any) -> Tensor:
    return torch.arange(min(4, layer.num_embeddings), device=layer.weight.device)
