"""Views of `aqlm.QuantizedLinear`.

    W[rows of group i, columns of group j] = scales[i] * sum_k codebooks[k, codes[i, j, k]]

Source: aqlm 1.1.7, aqlm/inference.py (`QuantizedLinear`), aqlm/utils.py (`_dequantize_weight`).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoquant.errors import UnsupportedLayoutError
from zoquant.protocol import ScaleView
from zoquant.views.tensor_views import TensorView

_OURS = "_zoquant_matmul"


class AQLMBackend:
    """Serves `QuantizedLinear` of every shape: views `scales` and `codebooks`.

    On a CPU `open` changes the layer in two ways. Its product becomes aqlm's own plain torch one: the numba kernel adds
    to one vector from several threads at once, and its outputs differ from call to call. And codes that an earlier
    forward turned around in place for that kernel are turned back, so that the layer can be saved again.
    """

    name = "aqlm"

    def open(self, module: nn.Module) -> Sequence[ScaleView]:
        """Return the views of `scales` `[row groups, 1, 1, 1]` and `codebooks` `[codebooks, entries, height, width]`.

        Raises:
            UnsupportedLayoutError: the layer has no weights yet, or codes of another shape than its settings say.
        """
        layer: Any = module
        if layer.codes.is_meta or layer.codebooks.is_meta:
            raise UnsupportedLayoutError("aqlm: QuantizedLinear has no weights yet. Load them before attach.")
        if layer.codes.device.type == "cpu":
            _compute_with_torch(layer)
        groups = (layer.out_features // layer.out_group_size, layer.in_features // layer.in_group_size)
        if tuple(layer.codes.shape) != (*groups, layer.num_codebooks):
            raise UnsupportedLayoutError(
                f"aqlm: codes of shape {tuple(layer.codes.shape)}, expected {(*groups, layer.num_codebooks)}. Load the "
                "model again."
            )
        return [
            TensorView("scales", "scale", layer.scales),
            TensorView("codebooks", "codebook", layer.codebooks),
        ]

    def dequantize(self, module: nn.Module) -> Tensor:
        """Return aqlm's own dequantized weight, float32."""
        from aqlm.utils import _dequantize_weight, unpack_int_data

        layer: Any = module
        with torch.no_grad():
            codes = unpack_int_data(layer.codes, layer.nbits_per_codebook)
            weight: Tensor = _dequantize_weight(codes, layer.codebooks, layer.scales)
        return weight.float()

    def sample_input(self, module: nn.Module) -> Tensor:
        """Return random numbers `[2, in_features]` in the dtype of the codebooks."""
        layer: Any = module
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(2, layer.in_features, generator=generator)
        return x.to(layer.codebooks.device, layer.codebooks.dtype)


def _compute_with_torch(layer: Any) -> None:
    """Give the layer the product that aqlm has for shapes without a kernel, and its codes the order of the file."""
    from aqlm.inference import _get_autograd_matmul_op
    from aqlm.inference_kernels.dequantization import dequantize_gemm

    if getattr(layer, _OURS, False):
        return
    if layer.gemv_op is not None and layer.codebook_size == 256:
        layer.codes.data = layer.codes.data.permute(1, 0, 2).contiguous()
    layer.gemv_op = layer.gemm_op = _get_autograd_matmul_op(dequantize_gemm, None)
    layer.use_gemv_rule = _always
    setattr(layer, _OURS, True)


def _always(x: Tensor) -> bool:
    del x
    return True
