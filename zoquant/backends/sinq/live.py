"""Views of `SINQLinear`, SINQ's own layer: the tensors in its dict `meta`, under their names in the file.

Source: sinq 0.2.0, sinqlinear_hf.py and sinqlinear.py (`SINQLinear.forward_pytorch`), quantizer.py.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoquant.errors import UnsupportedLayoutError
from zoquant.protocol import Role, ScaleView
from zoquant.views.packed_backend import random_input
from zoquant.views.tensor_views import MemberView, TensorView

_PARTS: dict[str, Role] = {"scale": "scale", "zero": "zero", "scale2": "scale"}
_AUX = ("x", "s", "m")


class SINQBackend:
    """Serves `SINQLinear` on torch: views `meta.scale`, `meta.zero` and `meta.scale2`.

    Where scales and zeros are quantized to 8 bits, their second level: `meta.scale.s`, `meta.scale.m` and likewise.
    """

    name = "sinq"

    def open(self, module: nn.Module) -> Sequence[ScaleView]:
        """Return the views of the tensors in `meta`; the forward reads them at every call."""
        layer: Any = module
        if not layer.ready or layer.meta is None:
            raise UnsupportedLayoutError("sinq: SINQLinear is not quantized yet. Load its weights before attach.")
        if layer.use_gemlite:
            raise UnsupportedLayoutError(
                "sinq: SINQLinear computes with GemLite, which packed copies of the scales. Call "
                "set_forward_backend('pytorch') on it and set use_gemlite to False, or use runtime='native'."
            )
        return [view for name in _PARTS for view in _views(layer.meta, name)]

    def dequantize(self, module: nn.Module) -> Tensor:
        """Return sinq's own dequantized weight, rounded to the compute dtype as its forward has it, float32."""
        layer: Any = module
        with torch.no_grad():
            weight: Tensor = layer.dequantize()
        return weight.float()

    def sample_input(self, module: nn.Module) -> Tensor:
        """Return random numbers `[2, in_features]` in the layer's compute dtype."""
        layer: Any = module
        dtype = layer.meta.get("compute_dtype") or layer.compute_dtype
        return random_input(layer.meta["shape"][1], layer.W_q.device, dtype)


def _views(meta: dict[str, Any], name: str) -> Iterator[ScaleView]:
    held, role = meta[name], _PARTS[name]
    if isinstance(held, Tensor):
        yield MemberView(f"meta.{name}", role, meta, name)
    else:
        parts = dict(zip(_AUX, held, strict=False)) if isinstance(held, tuple) else held
        for part in _AUX[1:]:
            yield TensorView(f"meta.{name}.{part}", role, parts[part])
