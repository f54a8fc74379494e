"""Views of the scales of kernels that replace their tensors at the first forward."""

from typing import Any

import torch
from torch import Tensor, nn

from zoquant.errors import UnsupportedLayoutError
from zoquant.views.tensor_views import MemberView, store

CENTRE = 8
"""aten's int4 product takes `(code − 8) · scale + offset`."""


class BufferView(MemberView):
    """A view of a tensor that its module may replace by one of another dtype, in the same order.

    Args:
        name: local name of the view, and of the tensor.
        module: the layer; what it holds under this name is looked up anew each time, wherever it holds it.
        dtype: dtype of the values when the model was loaded: what is written is rounded to it.
    """

    def __init__(self, name: str, module: nn.Module, *, dtype: torch.dtype) -> None:
        super().__init__(name, "scale", vars(module), name, dtype=dtype)
        self._module = module

    @property
    def _tensor(self) -> Tensor:
        tensor: Tensor = getattr(self._module, self.name)
        return tensor


class Int4PackView(BufferView):
    """A view of `scales` of a kernel on aten's int4 product, which reads `scales_and_zeros` after its first forward.

    Args:
        module: the layer.
        zeros: integer zeros `[groups, rows]`.
    """

    def __init__(self, module: nn.Module, zeros: Tensor) -> None:
        super().__init__("scales", module, dtype=pairs_or_scales(module).dtype)
        self._zeros = zeros

    def read(self) -> Tensor:
        pairs = pairs_of(self._module)
        return super().read() if pairs is None else pairs[..., 0].to(torch.float32, copy=True)

    def write(self, value: Tensor) -> None:
        """Store `value` as the scales, and with the zeros as the offsets `(8 − zero) · scale`.

        Raises:
            ShapeError, ValueRangeError: see `check_value`.
        """
        super().write(value)
        pairs = pairs_of(self._module)
        if pairs is not None:
            scales = self._tensor.to(pairs.dtype)
            store(pairs[..., 0], scales)
            store(pairs[..., 1], (CENTRE - self._zeros).to(pairs.dtype) * scales)


def pairs_of(module: nn.Module) -> Tensor | None:
    """Return `scales_and_zeros` `[groups, rows, 2]`, or None before the first forward."""
    pairs: Tensor | None = getattr(module, "scales_and_zeros", None)
    return pairs


def pairs_or_scales(module: Any) -> Tensor:
    """Return the tensor that the next forward reads the scales from."""
    pairs = pairs_of(module)
    scales: Tensor = module.scales
    return scales if pairs is None else pairs


def zeros_of_pairs(pairs: Tensor) -> Tensor:
    """Return the integer zeros behind the offsets of `scales_and_zeros`, int32 `[groups, rows]`.

    Raises:
        UnsupportedLayoutError: a scale is zero, and with it its offset.
    """
    scales, offsets = pairs[..., 0].float(), pairs[..., 1].float()
    if not scales.all():
        raise UnsupportedLayoutError(
            "a scale of zero hides its zero point once the kernel has run, expected none. Call attach before the first "
            "forward."
        )
    return CENTRE - (offsets / scales).round().to(torch.int32)


def dequantize_pairs(module: Any, pairs: Tensor) -> Tensor:
    """Return the weight that aten's int4 product multiplies with, float32 `[out_features, in_features]`.

    The words lie in an order that depends on the CPU, so the product itself reads them, with scales of 1.
    """
    ones = torch.stack([torch.ones_like(pairs[..., 0]), torch.zeros_like(pairs[..., 0])], -1)
    inputs = torch.eye(module.in_features, dtype=pairs.dtype)
    with torch.no_grad():
        codes = torch.ops.aten._weight_int4pack_mm_for_cpu(inputs, module.qweight, module.group_size, ones).float()
    groups = torch.arange(module.in_features) // module.group_size
    weight: Tensor = codes * pairs[..., 0].float()[groups] + pairs[..., 1].float()[groups]
    return weight.t()
