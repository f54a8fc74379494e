"""Views of `hqq.core.quantize.HQQLinear`: scale and float zero point lie in its `meta` dict.

    W = (unpack(W_q) - zero) * scale, reshaped to [out_features, in_features]

Source: hqq 0.2.8.post1, hqq/core/quantize.py (`Quantizer.dequantize`, `HQQLinear`).
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoquant.backends.hqq.weights import axis_groups
from zoquant.errors import UnsupportedLayoutError
from zoquant.native.values import grid_of
from zoquant.protocol import Grid, Role, ScaleView
from zoquant.views.packed_backend import random_input
from zoquant.views.tensor_views import MemberView

_PARTS: tuple[Role, ...] = ("scale", "zero")
_ADVICE = {
    "its scale and zero point are packed into 'zero_scale' and offloaded": "Load the model with offload_meta=False",
    "it is not initialized": "Load the weights, or call initialize(), before attach",
}


class HQQBackend:
    """Serves `HQQLinear` of every bit width, axis, group size and torch kernel: views `scale` and `zero`.

    Where an older hqq quantized either of them to 8 bits, the views are those of its second level, `meta_scale.scale`
    and `meta_scale.zero`, or `meta_zero.scale` and `meta_zero.zero`.
    """

    name = "hqq"

    def open(self, module: nn.Module) -> Sequence[ScaleView]:
        """Return the views of `meta["scale"]` and `meta["zero"]`: `[groups, 1]` for axis 1, `[1, groups]` for axis 0.

        A member made under inference mode, as hqq's own quantizer leaves `zero`, is replaced by a copy that is not.
        """
        meta: dict[str, Any] = getattr(module, "meta", None) or {}
        _refuse(meta)
        return [view for name in _PARTS for view in _views(meta, name)]

    def grids(self, module: nn.Module) -> Mapping[str, Grid]:
        """Return the grid of `scale`; none where it is quantized, or where its groups straddle rows."""
        meta: dict[str, Any] = getattr(module, "meta", None) or {}
        if meta.get("quant_scale"):
            return {}
        scale, (rows, columns) = meta["scale"], meta["shape"]
        found = grid_of(scale, axis_groups(int(meta["axis"]), rows, columns, scale.numel()), rows, columns)
        return {} if found is None else {"scale": found}

    def dequantize(self, module: nn.Module) -> Tensor:
        """Return hqq's own dequantized weight, rounded to the compute dtype as its forward has it, float32."""
        with torch.no_grad():
            weight: Tensor = module.dequantize()  # type: ignore[operator]
        return weight.float()

    def sample_input(self, module: nn.Module) -> Tensor:
        """Return random numbers `[2, in_features]` in the layer's compute dtype: it takes no other."""
        layer: Any = module
        return random_input(layer.in_features, layer.W_q.device, layer.compute_dtype)


def _views(meta: dict[str, Any], name: Role) -> Iterator[ScaleView]:
    """Yield the view of scale or zero point, or the views of its second level."""
    if not meta.get(f"quant_{name}"):
        yield _view(name, name, meta, name)
        return
    for part in _PARTS:
        role: Role = "scale" if name == part == "scale" else "zero"
        yield _view(f"meta_{name}.{part}", role, meta[f"meta_{name}"], part)


def _view(name: str, role: Role, members: dict[str, Any], key: str) -> ScaleView:
    if members[key].is_inference():
        with torch.inference_mode(False):
            members[key] = members[key].clone()
    return MemberView(name, role, members, key)


def _refuse(meta: dict[str, Any]) -> None:
    needed = [f"meta_{name}" if meta.get(f"quant_{name}") else name for name in _PARTS]
    found = ("zero_scale" in meta, not all(name in meta for name in needed))
    for bad, (what, advice) in zip(found, _ADVICE.items(), strict=True):
        if bad:
            raise UnsupportedLayoutError(f"hqq: HQQLinear cannot be trained as it is: {what}. {advice}.")
