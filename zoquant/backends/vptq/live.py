"""Views of `vptq.VQuantLinear`, whose plain torch product runs on a CPU.

Source: VPTQ 0.0.5, vptq/layers/vqlinear.py (`VQuantLinear`), vptq/ops/quant_gemm.py (`quant_gemm`, `dequant`).
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from zoquant.backends.vptq.settings import parts_of
from zoquant.backends.vptq.weights import ROLES, VPTQWeight
from zoquant.errors import UnsupportedLayoutError
from zoquant.views.packed_backend import PackedBackend

_SAME = ("group_size", "outlier_size", "is_indice_packed", "indices_as_float")
"""Settings that a layer calls as the config does."""


class VPTQBackend(PackedBackend):
    """Serves `VQuantLinear` with packed indices: views `centroids.weight`, `weight_scale` and others, as there are."""

    name = "vptq"

    def packed(self, module: nn.Module) -> VPTQWeight:
        layer: Any = module
        settings = {
            "vector_lens": (layer.outlier_vector_len, layer.vector_len),
            "num_centroids": (layer.num_outlier_centroids, layer.num_centroids),
            "num_res_centroids": (layer.outlier_num_res_centroids, layer.num_res_centroids),
            "group_num": layer.group_num,
        } | {name: getattr(layer, name) for name in _SAME}
        return VPTQWeight(layer.out_features, layer.in_features, parts_of(settings, _refusal), _tensors(module))


def _tensors(module: nn.Module) -> Mapping[str, Tensor]:
    """Return the tensors of a layer, those with views first, in their order."""
    held = {name: tensor.detach() for name, tensor in module.named_parameters() if name != "bias"}
    return {name: held[name] for name in [*ROLES, *held] if name in held}


def _refusal(name: str, expected: str, got: str) -> UnsupportedLayoutError:
    return UnsupportedLayoutError(
        f"VQuantLinear cannot be trained as it is: {name} is {got}, expected {expected}. Pack the model with "
        "vptq.utils.pack.pack_model, or load a packed checkpoint."
    )
