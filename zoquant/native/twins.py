"""The twins of all layers that a pair of probes moves."""

from collections.abc import Mapping
from types import TracebackType

import torch
from torch import nn

from zoquant.errors import UnsupportedLayoutError
from zoquant.native.layers import QuantEmbedding, QuantLinear
from zoquant.native.packed import PackedWeight
from zoquant.native.pair import twin_of


class Twins:
    """A context manager: within it the second half of the rows of a batch sees the values that were taken last.

    Args:
        layers: the layers by path, all of them native.

    Raises:
        UnsupportedLayoutError: a layer is not one of zoquant's own.
    """

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        twins: dict[int, tuple[PackedWeight, PackedWeight]] = {}
        self._layers: list[tuple[QuantLinear | QuantEmbedding, PackedWeight]] = []
        for path, module in layers.items():
            if not isinstance(module, QuantLinear | QuantEmbedding):
                raise UnsupportedLayoutError(
                    f"{path}: a {type(module).__name__} has one set of values, but a pair of probes in one forward "
                    f"needs two. Load with runtime='native', or leave it out: attach(model, exclude='{path}.*')."
                )
            if id(module.packed) not in twins:
                twins[id(module.packed)] = (module.packed, twin_of(module.packed))
            self._layers.append((module, twins[id(module.packed)][1]))
        self._values = [
            (packed.value(field.name), twin.value(field.name))
            for packed, twin in twins.values()
            for field in packed.fields
        ]

    def take(self) -> None:
        """Copy the present values of all layers to their twins."""
        torch._foreach_copy_([copied for _, copied in self._values], [value for value, _ in self._values])

    def __enter__(self) -> "Twins":
        for module, twin in self._layers:
            module.twin = twin
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for module, _ in self._layers:
            module.twin = None
