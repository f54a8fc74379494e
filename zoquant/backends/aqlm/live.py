"""Views of `aqlm.QuantizedLinear`.

    W[rows of group i, columns of group j] = scales[i] * sum_k codebooks[k, codes[i, j, k]]

Source: aqlm 1.1.7, aqlm/inference.py (`QuantizedLinear`), aqlm/utils.py (`_dequantize_weight`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from zoquant.errors import UnsupportedLayoutError
from zoquant.native import FieldSpec, PackedWeight, Values, VectorWeight
from zoquant.native.values import per_row
from zoquant.protocol import ScaleView
from zoquant.views.packed_backend import PackedBackend

PARTS = ("codes", "codebooks", "scales")
_OURS = "_zoquant_matmul"


class AQLMBackend(PackedBackend):
    """Serves `QuantizedLinear` of every shape: views `scales` and `codebooks`.

    On a CPU `open` changes the layer in two ways. Its product becomes aqlm's own plain torch one: the numba kernel adds
    to one vector from several threads at once, and its outputs differ from call to call. And codes that an earlier
    forward turned around in place for that kernel are turned back, so that the layer can be saved again.
    """

    name = "aqlm"

    def open(self, module: nn.Module) -> Sequence[ScaleView]:
        """Return the views `scales` `[row groups, 1, 1, 1]` and `codebooks` `[codebooks, entries, height, width]`."""
        layer: Any = module
        if layer.codes.is_meta or layer.codebooks.is_meta:
            raise UnsupportedLayoutError("QuantizedLinear has no weights yet. Load them before attach.")
        if layer.codes.device.type == "cpu":
            _compute_with_torch(layer)
        groups = (layer.out_features // layer.out_group_size, layer.in_features // layer.in_group_size)
        if tuple(layer.codes.shape) != (*groups, layer.num_codebooks):
            raise UnsupportedLayoutError(
                f"codes of shape {tuple(layer.codes.shape)}, expected {(*groups, layer.num_codebooks)}. Load the "
                "model again."
            )
        return super().open(module)

    def packed(self, module: nn.Module) -> PackedWeight:
        return aqlm_weight({name: getattr(module, name).detach() for name in PARTS})


def aqlm_weight(tensors: Mapping[str, Tensor]) -> PackedWeight:
    """Return the matrix of `codes`, `codebooks` and `scales`, of a file or a layer."""
    codes, codebooks, scales = (tensors[name] for name in PARTS)
    scale = Values(FieldSpec("scales", "scale", scales.dtype), scales, per_row)
    return VectorWeight("AQLM", codes, (FieldSpec("codebooks", "codebook", codebooks.dtype), codebooks), scale)


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
