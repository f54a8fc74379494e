"""The backend of layers that hold a matrix as `zoquant.native` knows it: all but the matrix follows from it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from zoquant.native.packed import PackedWeight
from zoquant.protocol import Grid, ScaleView
from zoquant.views.tensor_views import TensorView


class PackedBackend(ABC):
    """Base of such backends; an implementation of `zoquant.protocol.Backend` and `Gridded`.

    What a layer does otherwise is one method that a backend overrides.

    Attributes:
        name: how messages and `zoquant backends` call it, in kebab-case.
    """

    name: str

    @abstractmethod
    def packed(self, module: nn.Module) -> PackedWeight:
        """Return the matrix of a layer, over the tensors that its forward reads, such as its format makes of a file."""

    def open(self, module: nn.Module) -> Sequence[ScaleView]:
        """Return a view of every continuous field, in the order of the file."""
        packed = self.packed(module)
        return [
            TensorView(field.name, field.role, packed.value(field.name), dtype=field.dtype) for field in packed.fields
        ]

    def grids(self, module: nn.Module) -> Mapping[str, Grid]:
        """Return the grids of the fields that together scale the weights; a lookup table multiplies no input."""
        return {} if isinstance(module, nn.Embedding) else self.packed(module).grids()

    def dequantize(self, module: nn.Module) -> Tensor:
        """Return the weight, float32 `[out_features, in_features]`."""
        with torch.no_grad():
            return self.packed(module).dequantize()

    def sample_input(self, module: nn.Module) -> Tensor:
        """Return random numbers `[2, in_features]` in the dtype of the first field; of a lookup table some rows."""
        packed = self.packed(module)
        if isinstance(module, nn.Embedding):
            return some_rows(packed.rows, packed.device)
        first = packed.value(packed.fields[0].name)
        return random_input(packed.columns, first.device, first.dtype)


def random_input(columns: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return random numbers `[2, columns]`, the same every time."""
    return torch.randn(2, columns, generator=torch.Generator().manual_seed(0)).to(device, dtype)


def some_rows(count: int, device: torch.device) -> Tensor:
    """Return the indices of the first rows of a lookup table, int64 `[4]` or fewer."""
    return torch.arange(min(4, count), device=device)
