"""Views of torchao's tensor subclasses, which stand in the place of the weight of a plain Linear or Embedding.

Source: torchao 0.18.0, quantization/quantize_/workflows/ (`Int8Tensor`, `Float8Tensor`, `IntxUnpackedToInt8Tensor`,
`Int4Tensor`).
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from zoquant.backends.torchao.layout import INT4, torchao_layout
from zoquant.errors import UnsupportedLayoutError
from zoquant.native import PackedWeight
from zoquant.protocol import Grid
from zoquant.views.packed_backend import PackedBackend, random_input, some_rows


class TorchAOBackend(PackedBackend):
    """Serves modules whose weight is one of torchao's: views `weight_scale`, and a `weight_zero_point` that is no code.

    Claimed by the class of the weight.
    """

    name = "torchao"

    def packed(self, module: nn.Module) -> PackedWeight:
        """Return the matrix over the tensors within the weight; its forward reads them at every call."""
        weight = _weight(module)
        found = {name: getattr(weight, name, None) for name in ("qdata", "scale", "zero_point")}
        parts = {name: part for name, part in found.items() if part is not None}
        kind, grid = type(weight).__name__, weight.scale.shape or (1, 1)
        down, across = grid[::-1] if kind == INT4 else grid
        block = weight.shape[0] // down, weight.shape[1] // across
        layout = torchao_layout(kind, block, zero="zero_point" in parts, type=kind)
        return layout.weight({f"_weight_{name}": part for name, part in parts.items()})

    def grids(self, module: nn.Module) -> Mapping[str, Grid]:
        """Return the grids of the fields; none where the layer rounds its input, so that a factor on it is not one."""
        return {} if _rounds(_weight(module)) else super().grids(module)

    def sample_input(self, module: nn.Module) -> Tensor:
        """Return an input `[2, in_features]` in the dtype of the weight, or the first indices of an embedding.

        A layer that also rounds its input to 8 bits gets what survives that: an Int8Tensor numbers in bfloat16, which
        is as coarse, an IntxUnpackedToInt8Tensor zeros and ones.
        """
        weight = _weight(module)
        if isinstance(module, nn.Embedding):
            return some_rows(module.num_embeddings, weight.device)
        coarse = getattr(weight, "act_quant_kwargs", None) is not None
        x = random_input(weight.shape[1], weight.device, torch.bfloat16 if coarse else weight.dtype)
        return (x > 0).to(x) if getattr(weight, "activation_quantization", None) is not None and not coarse else x


def _weight(module: nn.Module) -> Any:
    weight: Any = module.weight
    if weight.dim() != 2 or getattr(weight, "act_pre_scale", None) is not None:
        what = "is no matrix" if weight.dim() != 2 else "multiplies the activations with a scale of their own"
        raise UnsupportedLayoutError(
            f"torchao: the {type(weight).__name__} of {type(module).__name__} {what}, which zoquant does not follow. "
            "Leave the layer out of attach with exclude=, or quantize it in another way."
        )
    return weight


def _rounds(weight: Any) -> bool:
    """Whether a layer also rounds its input to 8 bits."""
    names = ("act_quant_kwargs", "activation_quantization")
    return any(getattr(weight, name, None) is not None for name in names)
