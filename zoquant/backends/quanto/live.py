"""Views of optimum-quanto's `QLinear`: the scales and shifts within the tensor subclass that is its weight.

Source: optimum-quanto 0.2.7, nn/qlinear.py, tensor/weights/ (`WeightQBytesTensor`, `WeightQBitsTensor`).
"""

from typing import Any

from torch import nn

from zoquant.backends.quanto.layout import CODES, PACKED, SCALE, SHIFT, eight_bit, few_bit
from zoquant.errors import UnsupportedLayoutError
from zoquant.native import PackedWeight
from zoquant.views.packed_backend import PackedBackend

_SERVED = ("WeightQBytesTensor", "WeightQBitsTensor")


class QuantoBackend(PackedBackend):
    """Serves frozen `QLinear` layers: views `weight._scale`, and with 4 and 2 bits `weight._shift`.

    Layers of 4 and 2 bits do not run under `torch.inference_mode`, whoever calls them: use `torch.no_grad`.
    """

    name = "quanto"

    def packed(self, module: nn.Module) -> PackedWeight:
        """Return the matrix over the tensors within the weight; the forward reads them at every call."""
        weight = _weight(module)
        if type(weight).__name__ == "WeightQBytesTensor":
            return eight_bit(weight._data.dtype).weight({CODES: weight._data, SCALE: weight._scale})
        codes, scale, shift = weight._data._data, weight._scale, weight._shift
        layout = few_bit(weight._data._bits, codes.shape[1], shift.dtype)
        return layout.weight({PACKED: codes, SCALE: scale, SHIFT: shift}, tuple(weight.shape))


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
