"""Views of bitsandbytes' own layers.

    4 bits:  W = table[code] * absmax, with  absmax = nested_quant_map[code2] * nested_absmax + offset  when nested
    8 bits:  W = code * SCB / 127

Source: bitsandbytes 0.50.2, nn/modules.py (`Linear4bit`, `Linear8bitLt`, `Embedding4bit`, `Embedding8bit`),
functional.py (`QuantState`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from zoquant.backends.bitsandbytes.quant_state import QuantState
from zoquant.backends.bitsandbytes.weights import EIGHT_BIT, four_bit
from zoquant.errors import UnsupportedLayoutError
from zoquant.native import PackedWeight
from zoquant.protocol import Grid, ScaleView
from zoquant.views.packed_backend import PackedBackend


class FourBitBackend(PackedBackend):
    """Serves `Linear4bit` and `Embedding4bit`, NF4 and FP4: view `absmax`, or `nested_absmax` when nested.

    On a CPU with AVX512-BF16 the layer's first forward in eval mode packs its words anew, rounds absmax to bfloat16 and
    drops the nested level. `open` switches that kernel off; the layer then computes from the tensors of the file.
    """

    name = "bitsandbytes"

    def open(self, module: nn.Module) -> Sequence[ScaleView]:
        """Return the view of the level of absmax that is floating point."""
        layer: Any = module
        state = _state(layer)
        if getattr(state, "packing_format_for_cpu", False):
            raise UnsupportedLayoutError(
                "an earlier forward packed the layer for its AVX512 kernel and rounded absmax to "
                "bfloat16. Load the model again and call attach before its first forward, or use runtime='native'."
            )
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False
        return super().open(module)

    def packed(self, module: nn.Module) -> PackedWeight:
        """Return the matrix by the layout of the file, over the layer's own tensors.

        bitsandbytes' own operator, that of 0.50.2, mixes up the blocks on a CPU where in_features is no multiple of the
        blocksize, and the check of attach shall see it.
        """
        layer: Any = module
        found = _state(layer)
        nested = found.state2.blocksize if found.nested else 0
        offset = float(found.offset) if found.nested else 0.0
        tensors = {"weight": layer.weight.data, "weight.absmax": found.absmax}
        if nested:
            tensors |= {"weight.nested_absmax": found.state2.absmax, "weight.nested_quant_map": found.state2.code}
        rows, columns = found.shape
        return four_bit(tensors, QuantState(found.quant_type, found.blocksize, rows, columns, nested, offset))

    def sample_input(self, module: nn.Module) -> Tensor:
        """Return random numbers `[2, in_features]` in the compute dtype, or the first indices of an embedding.

        A layer without a compute dtype takes that of its first input, so it gets the dtype of its original weights.
        """
        layer: Any = module
        x = super().sample_input(module)
        return x if isinstance(layer, nn.Embedding) else x.to(layer.compute_dtype or _state(layer).dtype)


class EightBitBackend(PackedBackend):
    """Serves `Linear8bitLt` and `Embedding8bit`: view `SCB`, the largest magnitude of each row."""

    name = "bitsandbytes"

    def packed(self, module: nn.Module) -> PackedWeight:
        """Return the matrix over the codes and `SCB`; the first forward moves them, and keeps them."""
        return EIGHT_BIT.weight(_codes_and_scale(module))

    def grids(self, module: nn.Module) -> Mapping[str, Grid]:
        """Return nothing: which columns of an input are outliers changes with what it is scaled by."""
        return {}

    def sample_input(self, module: nn.Module) -> Tensor:
        """Return random signs `[2, in_features]` in float16, or the first indices of an embedding.

        LLM.int8() rounds its input to 8 bits as well. Signs survive that, so that what is compared is the weight.
        """
        x = super().sample_input(module)
        return x if isinstance(module, nn.Embedding) else x.sign().half()


def _state(layer: Any) -> Any:
    """Return the `QuantState` of a layer."""
    state = getattr(layer.weight, "quant_state", None) or getattr(layer, "quant_state", None)
    if state is None:
        raise UnsupportedLayoutError(
            f"{type(layer).__name__} is not quantized yet. Move it to its device, which quantizes it, or "
            "load a quantized checkpoint, before attach."
        )
    return state


def _codes_and_scale(layer: Any) -> dict[str, Tensor]:
    """Return the int8 codes and `SCB`: both move from the weight to the layer's state at the first forward."""
    state: Any = getattr(layer, "state", None)
    for holder in (layer.weight, state):
        if getattr(holder, "SCB", None) is not None and not getattr(state, "has_fp16_weights", False):
            return {"weight": layer.weight.data if holder.CB is None else holder.CB, "SCB": holder.SCB}
    raise UnsupportedLayoutError(
        f"{type(layer).__name__} holds no quantized weight. Make it with has_fp16_weights=False and move it to its "
        "device, which quantizes it, or load a quantized checkpoint, before attach."
    )
