"""Views of `hqq.core.quantize.HQQLinear`: scale and float zero point lie in its `meta` dict.

    W = (unpack(W_q) - zero) * scale, reshaped to [out_features, in_features]

Source: hqq 0.2.8.post1, hqq/core/quantize.py (`Quantizer.dequantize`, `HQQLinear`).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoquant.errors import UnsupportedLayoutError
from zoquant.protocol import Role, ScaleView
from zoquant.views import MemberView

_MEMBERS: tuple[Role, ...] = ("scale", "zero")
_ADVICE = {
    "its scale or zero point is itself quantized (quant_scale, quant_zero)": "Quantize the model again with hqq 0.2.8, "
    "which keeps both in floating point",
    "its scale and zero point are packed into 'zero_scale' and offloaded": "Load the model with offload_meta=False",
    "it is not initialized": "Load the weights, or call initialize(), before attach",
}


class HQQBackend:
    """Serves `HQQLinear` of every bit width, axis, group size and torch kernel: views `scale` and `zero`."""

    name = "hqq"

    def open(self, module: nn.Module) -> Sequence[ScaleView]:
        """Return the views of `meta["scale"]` and `meta["zero"]`: `[groups, 1]` for axis 1, `[1, groups]` for axis 0.

        A member made under inference mode, as hqq's own quantizer leaves `zero`, is replaced by a copy that is not.

        Raises:
            UnsupportedLayoutError: scale or zero point are quantized, offloaded, or not there yet.
        """
        meta: dict[str, Any] = getattr(module, "meta", None) or {}
        _refuse(meta)
        for name in _MEMBERS:
            if meta[name].is_inference():
                with torch.inference_mode(False):
                    meta[name] = meta[name].clone()
        return [MemberView(name, name, meta, name) for name in _MEMBERS]

    def dequantize(self, module: nn.Module) -> Tensor:
        """Return hqq's own dequantized weight, rounded to the compute dtype as its forward has it, float32."""
        with torch.no_grad():
            weight: Tensor = module.dequantize()  # type: ignore[operator]
        return weight.float()

    def sample_input(self, module: nn.Module) -> Tensor:
        """Return random numbers `[2, in_features]` in the layer's compute dtype: it takes no other."""
        layer: Any = module
        generator = torch.Generator().manual_seed(0)
        return torch.randn(2, layer.in_features, generator=generator).to(layer.W_q.device, layer.compute_dtype)


def _refuse(meta: dict[str, Any]) -> None:
    found = (
        bool(meta.get("quant_scale") or meta.get("quant_zero") or "meta_scale" in meta or "meta_zero" in meta),
        "zero_scale" in meta,
        not all(name in meta for name in _MEMBERS),
    )
    for bad, (what, advice) in zip(found, _ADVICE.items(), strict=True):
        if bad:
            raise UnsupportedLayoutError(f"hqq: HQQLinear cannot be trained as it is: {what}. {advice}.")
