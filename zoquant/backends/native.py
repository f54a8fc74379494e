"""Views of zoquant's own layers."""

from collections.abc import Mapping, Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn

from zoquant.native import QuantEmbedding, QuantLinear
from zoquant.protocol import Grid, ScaleView
from zoquant.views.tensor_views import TensorView


class NativeBackend:
    """Serves `QuantLinear` and `QuantEmbedding`: one view for each continuous field of the layer's codec."""

    name = "native"
    cached: Literal[False] = False

    def open(self, module: nn.Module) -> Sequence[ScaleView]:
        """Return a view of every continuous field, in the order of the file."""
        packed = cast(QuantLinear | QuantEmbedding, module).packed
        return [
            TensorView(field.name, field.role, packed.value(field.name), dtype=field.dtype) for field in packed.fields
        ]

    def grids(self, module: nn.Module) -> Mapping[str, Grid]:
        """Return the grids of a linear layer's fields; a lookup table multiplies no input."""
        return module.packed.grids() if isinstance(module, QuantLinear) else {}

    def dequantize(self, module: nn.Module) -> Tensor:
        """Return the weight, float32 `[out_features, in_features]`; for a lookup table `[rows, columns]`, scaled."""
        if isinstance(module, QuantEmbedding):
            weight = module.packed.dequantize()
            return weight if module.scale is None else weight * module.scale
        return cast(QuantLinear, module).packed.dequantize()

    def sample_input(self, module: nn.Module) -> Tensor:
        """Return random numbers `[2, in_features]`, or the first rows' indices for a lookup table."""
        if isinstance(module, QuantEmbedding):
            return torch.arange(min(4, module.num_embeddings), device=module.packed.device)
        linear = cast(QuantLinear, module)
        generator = torch.Generator().manual_seed(0)
        return torch.randn(2, linear.in_features, generator=generator).to(linear.packed.device)
