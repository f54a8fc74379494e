"""Views of the layers of GPTQModel and AutoGPTQ: `scales`, whatever the kernel did to it.

Source: gptqmodel 7.7.0, nn_modules/qlinear/torch.py, torch_aten_kernel.py, torch_fused.py, torch_cpu_avx512.py,
tritonv2.py; auto-gptq 0.7.1, nn_modules/qlinear/qlinear_cuda.py, qlinear_cuda_old.py, qlinear_triton.py.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from zoquant.backends.gptq.layout import Wrap, gptq_layout
from zoquant.backends.gptq.views import (
    CENTRE,
    BufferView,
    Int4PackView,
    dequantize_pairs,
    pairs_of,
    pairs_or_scales,
    zeros_of_pairs,
)
from zoquant.errors import UnsupportedLayoutError
from zoquant.native import PackedWeight
from zoquant.native.packed_rows import fields
from zoquant.protocol import ScaleView
from zoquant.views.packed_backend import PackedBackend, random_input
from zoquant.views.tensor_views import TensorView

_OLD = "cuda-old"
"""The kernel that ignores `g_idx`, and alone keeps a zero of its words within its bits."""


class TorchBackend:
    """GPTQModel's `TorchLinear` and `TritonV2Linear`: both decode the words anew at each forward.

    `TorchLinear` compiles that with inductor, which may take the scales for constants: the compiled function is taken
    off the layer, and the eager one beneath it serves.
    """

    name = "gptq"

    def open(self, module: nn.Module) -> Sequence[ScaleView]:
        """Return the view of `scales`, `[groups, out_features]`."""
        layer: Any = module
        layer.__dict__.pop("dequantize_weight", None)
        return [TensorView("scales", "scale", layer.scales)]

    def dequantize(self, module: nn.Module) -> Tensor:
        """Return GPTQModel's own dequantized weight, rounded to the dtype of the scales as its forward has it."""
        return own_weight(module)

    def sample_input(self, module: nn.Module) -> Tensor:
        """Return random numbers `[2, in_features]` in the dtype of the scales."""
        layer: Any = module
        return random_input(layer.in_features, layer.scales.device, layer.scales.dtype)


class EmbeddingBackend(TorchBackend):
    """GPTQModel's `TorchQuantEmbeddings`: its "input features" are the rows of the table."""

    def dequantize(self, module: nn.Module) -> Tensor:
        """Return the table, float32 `[rows, columns]`."""
        return super().dequantize(module).t()

    def sample_input(self, module: nn.Module) -> Tensor:
        """Return the indices of rows spread over the table."""
        layer: Any = module
        return torch.arange(0, layer.in_features, max(1, layer.in_features // 7), device=layer.scales.device)


class Int4PackBackend:
    """GPTQModel's `TorchAtenLinear` and `TorchFusedLinear`: they pack scales with offsets at their first forward."""

    name = "gptq"

    def open(self, module: nn.Module) -> Sequence[ScaleView]:
        """Return the view of `scales`, `[groups, out_features]`; it writes where the kernel reads.

        Raises:
            UnsupportedLayoutError: `TorchFusedLinear` with other zeros than 8, which it leaves out of its product, or
                a scale of zero after the first forward.
        """
        layer: Any = module
        pairs = pairs_of(layer)
        zeros = self.loaded_zeros(layer) if pairs is None else zeros_of_pairs(pairs)
        if type(layer).__name__ == "TorchFusedLinear" and not (layer.sym and bool((zeros == CENTRE).all())):
            raise UnsupportedLayoutError(
                "TorchFusedLinear leaves the zeros of asymmetric codes out of its product, expected zeros of 8. Load "
                "the model with BACKEND.GPTQ_TORCH or BACKEND.GPTQ_TORCH_ATEN, or with zoquant.load(..., "
                "runtime='native')."
            )
        return [Int4PackView(layer, zeros)]

    def dequantize(self, module: nn.Module) -> Tensor:
        """Return the weight that the kernel multiplies with, read through the kernel once it has packed its words."""
        pairs = pairs_of(module)
        return self.loaded_weight(module) if pairs is None else self.packed_weight(module, pairs)

    def sample_input(self, module: nn.Module) -> Tensor:
        """Return random numbers `[2, in_features]` in the dtype of the scales, the only one after the first forward."""
        layer, like = cast(Any, module), pairs_or_scales(module)
        return random_input(layer.in_features, like.device, like.dtype)

    def loaded_zeros(self, layer: Any) -> Tensor:
        """Return the integer zeros of a layer that has not run, `[groups, out_features]`."""
        return fields(layer.qzeros, layer.bits, torch.arange(layer.out_features, device=layer.qzeros.device))

    def loaded_weight(self, layer: Any) -> Tensor:
        """Return the weight of a layer that has not run, float32 `[out_features, in_features]`."""
        return own_weight(layer)

    def packed_weight(self, layer: Any, pairs: Tensor) -> Tensor:
        """Return the weight of a layer that has run, float32 `[out_features, in_features]`."""
        packed = dequantize_pairs(layer, pairs)
        restored = torch.empty_like(packed)
        restored[:, layer.ret_idx.long()] = packed
        return restored


class AVX512Backend:
    """GPTQModel's `TorchCpuAvx512Linear`: it replaces its scales by a float32 copy at its first forward."""

    name = "gptq"

    def open(self, module: nn.Module) -> Sequence[ScaleView]:
        """Return the view of `scales`, `[groups, out_features]`, in the dtype that the model was loaded in."""
        return [BufferView("scales", module, dtype=_loaded_dtype(module))]

    def dequantize(self, module: nn.Module) -> Tensor:
        """Return GPTQModel's own dequantized weight."""
        return own_weight(module)

    def sample_input(self, module: nn.Module) -> Tensor:
        """Return random numbers `[2, in_features]`, bfloat16 once the words are packed: the layer takes no other."""
        layer: Any = module
        dtype = torch.bfloat16 if layer.linear_mode == "inference" else _loaded_dtype(layer)
        return random_input(layer.in_features, layer.scales.device, dtype)


class AutoGPTQBackend(PackedBackend):
    """AutoGPTQ's `QuantLinear` of qlinear_cuda, qlinear_cuda_old and qlinear_triton: view `scales`."""

    name = "gptq"

    def packed(self, module: nn.Module) -> PackedWeight:
        layer: Any = module
        old = layer.QUANT_TYPE == _OLD
        wrap: Wrap = "fields" if old and layer.bits != 3 else "never"
        layout = gptq_layout(layer.bits, layer.group_size, minus_one=True, wrap=wrap, g_idx=not old)
        return layout.weight_of(layer, (layer.qweight.shape[1], layer.infeatures))


def own_weight(layer: Any) -> Tensor:
    """Return GPTQModel's own dequantized weight, float32 `[out_features, in_features]`."""
    with torch.no_grad():
        weight: Tensor = type(layer).dequantize_weight(layer)
    return weight.t().float()


def _loaded_dtype(module: Any) -> torch.dtype:
    """Return the dtype that the scales of an AVX512 kernel had before its first forward."""
    dtype: torch.dtype = getattr(module, "_dequant_scales_dtype", module.scales.dtype)
    return dtype
