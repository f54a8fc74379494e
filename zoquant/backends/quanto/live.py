"""Views of optimum-quanto's `QLinear`: the scales and shifts within the tensor subclass that is its weight.

Source: optimum-quanto 0.2.7, nn/qlinear.py, tensor/weights/ (`WeightQBytesTensor`, `WeightQBitsTensor`).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoquant.backends.quanto.layout import CODES, PACKED, SCALE, SHIFT, eight_bit, few_bit
from zoquant.errors import UnsupportedLayoutError
from zoquant.native import AffineWeight
from zoquant.protocol import ScaleView
from zoquant.views.tensor_views import TensorView

_SERVED = ("WeightQBytesTensor", "WeightQBitsTensor")


class QuantoBackend:
    """Serves frozen `QLinear` layers: views `weight._scale`, and with 4 and 2 bits `weight._shift`.

    Layers of 4 and 2 bits do not run under `torch.inference_mode`, whoever calls them: use `torch.no_grad`.
    """

    name = "quanto"

    def open(self, module: nn.Module) -> Sequence[ScaleView]:
        """Return views of the tensors within the weight; the forward reads them at every call.

        Raises:
            UnsupportedLayoutError: the layer is not frozen, quantizes activations, or is in the order of some kernel.
        """
        weight = _weight(module)
        names = [field.name for field in _packed(weight).fields]
        return [TensorView(name, "scale", getattr(weight, name.removeprefix("weight."))) for name in names]

    def dequantize(self, module: nn.Module) -> Tensor:
        """Return the weight by the layout of the file, float32 `[out_features, in_features]`."""
        with torch.no_grad():
            return _packed(_weight(module)).dequantize()

    def sample_input(self, module: nn.Module) -> Tensor:
        """Return random numbers `[2, in_features]` in the dtype of the scales."""
        weight = _weight(module)
        x = torch.randn(2, weight.shape[1], generator=torch.Generator().manual_seed(0))
        return x.to(weight._scale.device, weight._scale.dtype)


def _weight(module: nn.Module) -> Any:
    layer: Any = module
    weight, kind = layer.weight, type(layer.weight).__name__
    if "Tensor" not in kind:
        raise UnsupportedLayoutError("quanto: QLinear is not frozen. Call optimum.quanto.freeze(model) before attach.")
    if kind not in _SERVED:
        raise UnsupportedLayoutError(
            f"quanto: the kernel of {kind} keeps scale and shift in an order of its own, and rounds what it makes of "
            "them. It takes 16-bit models alone: quantize the model in float32, or load it with runtime='native'."
        )
    if layer.activation_qtype is not None:
        raise UnsupportedLayoutError(
            "quanto: QLinear quantizes activations by scales of its calibration, which zoquant does not follow. "
            "Quantize the weights alone."
        )
    return weight


def _packed(weight: Any) -> AffineWeight:
    if type(weight).__name__ == "WeightQBytesTensor":
        return eight_bit(weight._data.dtype).weight({CODES: weight._data, SCALE: weight._scale})
    codes, scale, shift = weight._data._data, weight._scale, weight._shift
    layout = few_bit(weight._data._bits, codes.shape[1], shift.dtype)
    return layout.weight({PACKED: codes, SCALE: scale, SHIFT: shift}, tuple(weight.shape))
