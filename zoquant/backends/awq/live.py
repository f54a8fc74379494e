"""Views of the AWQ layers of GPTQModel and AutoAWQ: `scales`, and `qzeros` where they are continuous.

Source: gptqmodel 7.7.0, nn_modules/qlinear/torch_awq.py, torch_aten_kernel_awq.py, torch_fused_awq.py,
torch_cpu_avx512_awq.py, gemm_awq.py, gemv_awq.py, gemv_fast_awq.py; autoawq 0.2.9, awq/modules/linear.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from zoquant.backends.awq.layout import BITS, FAST, GEMM, GEMM_ZEROS, GEMV, awq_layout
from zoquant.backends.gptq import live as gptq
from zoquant.backends.gptq.views import BufferView, dequantize_pairs
from zoquant.errors import UnsupportedLayoutError
from zoquant.native import PackedWeight
from zoquant.protocol import ScaleView
from zoquant.views.packed_backend import PackedBackend


class GEMMBackend(PackedBackend):
    """`AwqTorchLinear`, `AwqGEMMLinear` and `AwqGEMMTritonLinear`, AutoAWQ's `WQLinear_GEMM`: they decode each time."""

    name = "awq"
    kind = GEMM

    def open(self, module: nn.Module) -> Sequence[ScaleView]:
        """Return the views of `scales`, and with `gemv_fast` of the zeros, in the shape of the file."""
        _check_bits(module)
        fields = self.packed(module).fields
        return [BufferView(field.name, module, dtype=field.dtype) for field in fields]

    def packed(self, module: nn.Module) -> PackedWeight:
        layer: Any = module
        zeros = getattr(layer, "zeros_name", "qzeros")  # GPTQModel's layers of llm-awq have another
        return awq_layout(self.kind, max(layer.group_size, 0), zeros=zeros).weight_of(layer)


class GEMVBackend(GEMMBackend):
    """`AwqGEMVLinear` and AutoAWQ's `WQLinear_GEMV`."""

    kind = GEMV


class FastBackend(GEMMBackend):
    """`AwqGEMVFastLinear` and `LLMAwqLinear`, AutoAWQ's `WQLinear_GEMVFast`: their zeros are continuous."""

    kind = FAST

    def sample_input(self, module: nn.Module) -> Tensor:
        """Return random numbers `[1, 2, in_features]`: AutoAWQ's layer wants a batch."""
        return super().sample_input(module).unsqueeze(0)


class Int4PackBackend(gptq.Int4PackBackend):
    """GPTQModel's `TorchAtenAwqLinear` and `TorchFusedAwqLinear`: they pack scales with offsets when they first run."""

    name = "awq"

    def open(self, module: nn.Module) -> Sequence[ScaleView]:
        """Return the view of `scales`, `[groups, out_features]`; it writes where the kernel reads.

        Raises:
            UnsupportedLayoutError: other than 4 bits, or a scale of zero after the first forward.
        """
        _check_bits(module)
        return super().open(module)

    def loaded_zeros(self, layer: Any) -> Tensor:
        return GEMM_ZEROS(layer.qzeros, slice(None)).t()

    def loaded_weight(self, layer: Any) -> Tensor:
        return GEMMBackend().dequantize(layer)

    def packed_weight(self, layer: Any, pairs: Tensor) -> Tensor:
        return dequantize_pairs(layer, pairs)


class AVX512Backend(gptq.AVX512Backend):
    """GPTQModel's `TorchCpuAvx512AwqLinear`: it replaces its scales by a float32 copy when it first runs."""

    name = "awq"

    def open(self, module: nn.Module) -> Sequence[ScaleView]:
        """Return the view of `scales`, `[groups, out_features]`, in the dtype that the model was loaded in."""
        _check_bits(module)
        return super().open(module)


def _check_bits(module: Any) -> None:
    bits = getattr(module, "bits", getattr(module, "w_bit", BITS))
    if bits != BITS:
        raise UnsupportedLayoutError(
            f"{type(module).__name__} holds codes of {bits} bits, expected 4: AWQ with other widths is GPTQModel's own "
            "layout. Quantize the model to 4 bits, or to GPTQ."
        )
