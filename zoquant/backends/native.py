"""Views of zoquant's own layers."""

from collections.abc import Mapping
from typing import Literal, cast

from torch import Tensor, nn

from zoquant.native import PackedWeight, QuantEmbedding, QuantLinear
from zoquant.protocol import Grid
from zoquant.views.packed_backend import PackedBackend, random_input, some_rows


class NativeBackend(PackedBackend):
    """Serves `QuantLinear` and `QuantEmbedding`: one view for each continuous field of the layer's codec."""

    name = "native"
    cached: Literal[False] = False

    def packed(self, module: nn.Module) -> PackedWeight:
        return cast(QuantLinear | QuantEmbedding, module).packed

    def grids(self, module: nn.Module) -> Mapping[str, Grid]:
        return super().grids(module) if isinstance(module, QuantLinear) else {}

    def dequantize(self, module: nn.Module) -> Tensor:
        """Return the weight, float32 `[out_features, in_features]`; for a lookup table `[rows, columns]`, scaled."""
        weight = super().dequantize(module)
        return weight * module.scale if isinstance(module, QuantEmbedding) and module.scale is not None else weight

    def sample_input(self, module: nn.Module) -> Tensor:
        """Return random numbers float32 `[2, in_features]`, or the first rows' indices for a lookup table."""
        packed = self.packed(module)
        if isinstance(module, QuantEmbedding):
            return some_rows(packed.rows, packed.device)
        return random_input(packed.columns, packed.device)
