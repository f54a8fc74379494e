"""Views of transformers' BitNet layers.

    BitLinear:      W = code / weight_scale, four codes to a byte
    AutoBitLinear:  W = weight * weight_scale, weight in plain numbers

Both round their input to eight bits for each token, with 127 for its largest number.

Source: transformers 5.23.0, integrations/bitnet.py (`BitLinear`, `AutoBitLinear`, `ActQuant`).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoquant.backends.bitnet.layout import bitnet_layout
from zoquant.errors import UnsupportedLayoutError
from zoquant.protocol import ScaleView
from zoquant.views.tensor_views import TensorView


class BitNetBackend:
    """Serves `BitLinear` and `AutoBitLinear`: view `weight_scale`, one number a layer."""

    name = "bitnet"

    def open(self, module: nn.Module) -> Sequence[ScaleView]:
        """Return the view of `weight_scale`, `[1]`."""
        layer: Any = module
        if getattr(layer, "online_quant", False):
            raise UnsupportedLayoutError(
                f"bitnet: {type(module).__name__} quantizes plain weights in every forward and has no scale. Load the "
                "model with quantization_mode='offline'."
            )
        if getattr(layer, "rms_norm", None) is not None:  # transformers 4 has none
            raise UnsupportedLayoutError(
                f"bitnet: {type(module).__name__} normalizes its input, so it does not multiply with one matrix. Load "
                "the model with use_rms_norm=False."
            )
        if isinstance(module, nn.Linear) and layer.bias is not None:
            raise UnsupportedLayoutError(
                f"bitnet: {type(module).__name__} multiplies its bias with weight_scale as well. Load the model with "
                "linear_class='bitlinear'."
            )
        return [TensorView("weight_scale", "scale", layer.weight_scale)]

    def dequantize(self, module: nn.Module) -> Tensor:
        if not isinstance(module, nn.Linear):
            return bitnet_layout(divided=True).weight_of(module).dequantize()
        layer: Any = module
        weight: Tensor = layer.weight.detach().float() * layer.weight_scale.float()
        return weight

    def sample_input(self, module: nn.Module) -> Tensor:
        """Return random whole numbers `[2, in_features]` up to 127: the layer rounds its input, and these are exact."""
        layer: Any = module
        x = torch.randint(-126, 127, (2, layer.in_features), generator=torch.Generator().manual_seed(0))
        x[:, 0] = 127
        dtype = layer.weight.dtype if isinstance(module, nn.Linear) else layer.dtype
        return x.to(layer.weight.device, dtype or torch.get_default_dtype())
