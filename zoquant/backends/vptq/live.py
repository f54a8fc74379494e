"""Views of `vptq.VQuantLinear`, whose plain torch product runs on a CPU.

Source: VPTQ 0.0.5, vptq/layers/vqlinear.py (`VQuantLinear`), vptq/ops/quant_gemm.py (`quant_gemm`, `dequant`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoquant.backends.vptq.settings import parts_of
from zoquant.backends.vptq.weights import ROLES, VPTQWeight
from zoquant.errors import UnsupportedLayoutError
from zoquant.protocol import ScaleView
from zoquant.views.tensor_views import TensorView


class VPTQBackend:
    """Serves `VQuantLinear` with packed indices: views `centroids.weight`, `weight_scale` and others, as there are."""

    name = "vptq"

    def open(self, module: nn.Module) -> Sequence[ScaleView]:
        """Return the views of every set of centroids, and of the norm.

        Raises:
            UnsupportedLayoutError: the indices are not packed, or are kept as floating point.
        """
        _weight(module)
        return [
            TensorView(name, role, tensor)
            for name, role in ROLES.items()
            if (tensor := _tensors(module).get(name)) is not None
        ]

    def dequantize(self, module: nn.Module) -> Tensor:
        """Return the weight that the module's tensors stand for, decoded by zoquant."""
        return _weight(module).dequantize()

    def sample_input(self, module: nn.Module) -> Tensor:
        """Return random numbers `[2, in_features]` in the dtype of the centroids."""
        layer: Any = module
        x = torch.randn(2, layer.in_features, generator=torch.Generator().manual_seed(0))
        weight: Tensor = layer.centroids.weight
        return x.to(weight.device, weight.dtype)


def _weight(module: nn.Module) -> VPTQWeight:
    layer: Any = module
    settings = {
        "vector_lens": (layer.outlier_vector_len, layer.vector_len),
        "num_centroids": (layer.num_outlier_centroids, layer.num_centroids),
        "num_res_centroids": (layer.outlier_num_res_centroids, layer.num_res_centroids),
        "group_num": layer.group_num,
    } | {name: getattr(layer, name) for name in ("group_size", "outlier_size", "is_indice_packed", "indices_as_float")}
    return VPTQWeight(layer.out_features, layer.in_features, parts_of(settings, _refusal), _tensors(module))


def _tensors(module: nn.Module) -> Mapping[str, Tensor]:
    return {name: tensor.detach() for name, tensor in module.named_parameters() if name != "bias"}


def _refusal(name: str, expected: str, got: str) -> UnsupportedLayoutError:
    return UnsupportedLayoutError(
        f"vptq: VQuantLinear cannot be trained as it is: {name} is {got}, expected {expected}. Pack the model with "
        "vptq.utils.pack.pack_model, or load a packed checkpoint."
    )
