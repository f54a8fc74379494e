"""Views of AMD Quark's `QParamsLinear`: the scales within its quantizer of weights, in the order of the file.

Source: amd-quark 0.13, torch/export/nn/modules/qparamslinear.py (`QParamsLinear._forward_generic`), realquantizer.py.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoquant.errors import UnsupportedLayoutError
from zoquant.protocol import ScaleView
from zoquant.views.packed_backend import random_input
from zoquant.views.tensor_views import TensorView


class QuarkBackend:
    """Serves layers that quantize weights alone: view `weight_scale`, or `weight_scale_2` where that one is float8."""

    name = "quark"

    def open(self, module: nn.Module) -> Sequence[ScaleView]:
        """Return the view of the scales in floating point; the forward reads them at every call."""
        name, scale = _scale(module)
        return [TensorView(name, "scale", scale)]

    def dequantize(self, module: nn.Module) -> Tensor:
        """Return the weight as Quark's own quantizer gives it, float32 `[out_features, in_features]`."""
        layer: Any = module
        with torch.no_grad():
            weight: Tensor = layer.weight_quantizer(layer.weight.data)
        return weight.float()

    def sample_input(self, module: nn.Module) -> Tensor:
        """Return random numbers `[2, in_features]`."""
        layer: Any = module
        return random_input(layer.in_features, layer.weight.device)


def _scale(module: nn.Module) -> tuple[str, Tensor]:
    layer: Any = module
    if layer.input_quantizer is not None or layer.output_quantizer is not None or layer.bias_quantizer is not None:
        raise _refusal("quantizes activations or its bias as well, in every forward")
    if layer.weight_quantizer is None:
        raise _refusal("holds a weight that is not quantized")
    steps = list(layer.weight_quantizer) if isinstance(layer.weight_quantizer, nn.Sequential) else []
    last: Any = steps[-1] if steps else layer.weight_quantizer
    scale: Tensor = last.scale
    if not torch.is_floating_point(scale) or scale.dtype.itemsize == 1:
        raise _refusal("has scales that are powers of two, nothing to train")
    return "weight_scale_2" if steps else "weight_scale", scale


def _refusal(why: str) -> UnsupportedLayoutError:
    return UnsupportedLayoutError(f"QParamsLinear {why}. Load the checkpoint with runtime='native'.")
