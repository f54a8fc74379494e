"""Rows and columns: two short vectors a layer that scale its values, so that a probe need not write them.

    theta = base · (1 + u_row) · (1 + v_column)

u has a number for each row of the layer's grid of values, v one for each column, and all views that scale the layer
move together. Scaling rows and columns of a matrix is scaling what goes in and comes out,

    y = (1 + u) ⊙ W ((1 + v) ⊙ x) + bias,

which is what `zoquant.optim.probes.probed_layers` does to any kernel. u and v are what a rule moves; the delta of the
views is computed from them, each product and sum rounded by itself, so that a run replays anywhere.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zoquant.errors import UnsupportedLayoutError
from zoquant.kernels.choice import factor_kernels
from zoquant.kernels.noise.definition import Noise
from zoquant.kernels.noise.source import NoiseSource
from zoquant.protocol import Grid, Gridded, ScaleView
from zoquant.record.mover import Mover
from zoquant.record.rules import Rule
from zoquant.record.step import Step
from zoquant.views.flat_buffer import FlatBuffer
from zoquant.views.layout import padded, view_count
from zoquant.views.model_views import AttachedLayer, BoundView, Views

LEAST = 2.0**-10 - 1
"""Least u or v: a factor 1 + u stops at 2⁻¹⁰, so scales keep their sign and a quotient of factors stays finite."""

_TILE = 1 << 17

_EXPERT = re.compile(r"(^|\.)experts\.\d+(\.|$)")
"""The path of a layer of one expert, in a model that has modules for each."""


@dataclass(frozen=True, eq=False)
class LayerRowsAndColumns:
    """The vectors of one layer.

    Attributes:
        layer: the layer.
        grid: how its values lie over its matrix.
        rows: where u lies in the buffer.
        columns: where v lies in the buffer.
        places: where the delta of each view lies in the buffer of its views, and whether it is transposed.
        outputs_in_order: whether the outputs go through the rows of the grid in order, as many neighbours a row.
        inputs_in_order: whether the inputs go through its columns so.
    """

    layer: AttachedLayer
    grid: Grid
    rows: slice
    columns: slice
    places: tuple[tuple[slice, bool], ...]
    outputs_in_order: bool
    inputs_in_order: bool

    def down(self, rows: Tensor) -> Tensor:
        """Return numbers of the rows, `[n, rows of the grid]`, for the outputs in order: neighbours may share one."""
        return rows if self.outputs_in_order else rows.index_select(1, self.grid.rows)

    def across(self, columns: Tensor) -> Tensor:
        """Return numbers of the columns, `[n, columns of the grid]`, for the inputs in order, as `down` does."""
        return columns if self.inputs_in_order else columns.index_select(1, self.grid.columns)

    def compose(self, factors: Tensor, delta: Tensor) -> None:
        """Write (1 + u)(1 + v) − 1 into the delta of the layer's views."""
        u, v = bounded(factors[self.rows])[:, None], bounded(factors[self.columns])
        composed = torch.mul(u, v).add_(u).add_(v)
        for place, transposed in self.places:
            delta[place] = (composed.t() if transposed else composed).reshape(-1)


class RowsAndColumnsBuffer:
    """The vectors u and v of all layers of one device, one after the other.

    Args:
        buffer: the buffer of the views.

    Attributes:
        delta: float32 `[n]`, u and v, each starting at a multiple of `noise.BLOCK`.
        device: where it lies.
        layers: what belongs to which layer.
        kernels: compiled rows and columns of this device; None where torch computes.

    Raises:
        UnsupportedLayoutError: a layer has no rows and columns; the message says what to leave out.
    """

    def __init__(self, buffer: FlatBuffer) -> None:
        self.device = buffer.device
        self.kernels = factor_kernels(buffer.device)
        self.layers: list[LayerRowsAndColumns] = []
        start = 0
        for layer, numbers in _by_layer(buffer).items():
            grids = _grids(layer, {buffer.views[number].name: buffer.views[number] for number in numbers})
            found = [(buffer.slice_of(number), grids[buffer.views[number].name]) for number in numbers]
            grid = found[0][1]
            rows = slice(start, start + grid.shape[0])
            columns = slice(start + padded(grid.shape[0]), start + padded(grid.shape[0]) + grid.shape[1])
            places = {place.start: (place, grid.transposed) for place, grid in found}
            ordered = _in_order(grid.rows, grid.shape[0]), _in_order(grid.columns, grid.shape[1])
            self.layers.append(LayerRowsAndColumns(layer, grid, rows, columns, tuple(places.values()), *ordered))
            start = columns.start + padded(grid.shape[1])
        self._places = _table(self.layers)
        with torch.inference_mode(False):
            self.delta = torch.zeros(start, dtype=torch.float32, device=self.device)
        self._source: NoiseSource | None = None

    def tiles(self) -> list[slice]:
        """Return the stretches that the vectors are walked in."""
        count = self.delta.numel()
        return [slice(first, min(first + _TILE, count)) for first in range(0, count, _TILE)]

    def source_of(self, noise: Noise) -> NoiseSource:
        """Return the source that draws a noise for u and v: its keys are `<layer>.rows` and `<layer>.columns`."""
        if self._source is None or self._source.noise != noise:
            keys = [f"{each.layer.path}.{part}" for each in self.layers for part in ("rows", "columns")]
            counts = [count for each in self.layers for count in each.grid.shape]
            with torch.inference_mode(False):
                self._source = NoiseSource(keys, counts, noise, self.device)
        return self._source

    def compose(self, delta: Tensor) -> None:
        """Write the delta of all views."""
        if self.kernels is not None:
            self.kernels.compose(self._places, self.delta, LEAST, delta)
            return
        for layer in self.layers:
            layer.compose(self.delta, delta)


class RowsAndColumnsMover(Mover):
    """Moves u and v, and computes the deltas of the views from them.

    Args:
        views: the views.
        noise, rule, decay: as for `zoquant.record.group.Group`.
        deltas: the deltas to write, one a buffer of the views; None for those of the views.

    Raises:
        UnsupportedLayoutError: a layer has no rows and columns.
    """

    def __init__(
        self, views: Views, noise: Noise, rule: Rule, decay: float = 0.0, *, deltas: Sequence[Tensor] | None = None
    ) -> None:
        self.vectors = [RowsAndColumnsBuffer(buffer) for buffer in views.buffers]
        super().__init__(self.vectors, noise, rule, decay)
        self._composed = [buffer.delta for buffer in views.buffers] if deltas is None else list(deltas)

    def reset(self) -> None:
        """Set u, v, what the rule remembers, and the deltas to zero."""
        super().reset()
        self._compose()

    def advance(self, steps: Sequence[Step]) -> None:
        """Move u and v by some steps, and compute the deltas. Writes no view."""
        super().advance(steps)
        self._compose()

    def _compose(self) -> None:
        for vectors, delta in zip(self.vectors, self._composed, strict=True):
            vectors.compose(delta)


def bounded(factors: Tensor, out: Tensor | None = None) -> Tensor:
    """Return u or v where 1 + u is at least 2⁻¹⁰."""
    return torch.clamp(factors, min=LEAST, out=out)


def _table(layers: Sequence[LayerRowsAndColumns]) -> Tensor:
    """Return the places of all layers as `zoquant.kernels.products.factors.compose` takes them."""
    rows = [
        (layer.rows.start, layer.columns.start, *layer.grid.shape, place.start, int(transposed))
        for layer in layers
        for place, transposed in layer.places
    ]
    return torch.tensor(rows, dtype=torch.int64).view(-1, 6)


def _in_order(places: Tensor, count: int) -> bool:
    """Whether so many places are gone through one after the other, by as many neighbours each."""
    width, rest = divmod(len(places), count)
    return not rest and torch.equal(places, torch.arange(len(places), device=places.device) // width)


def _by_layer(buffer: FlatBuffer) -> dict[AttachedLayer, list[int]]:
    """Return the numbers of the views of each layer."""
    found: dict[AttachedLayer, list[int]] = {}
    for number, view in enumerate(buffer.views):
        layer = view.layer if isinstance(view, BoundView) else None
        if layer is None:
            raise UnsupportedLayoutError(
                f"{view.name}: belongs to no layer of a model, and rows and columns scale what goes into a layer and "
                "comes out. Take the views that attach(model) returns."
            )
        found.setdefault(layer, []).append(number)
    return found


def _grids(layer: AttachedLayer, views: Mapping[str, ScaleView]) -> Mapping[str, Grid]:
    """Return the grids of a layer's views, once it is sure that together they scale its weights."""
    grids, name = layer.grids(), layer.path or type(layer.module).__name__
    if not isinstance(layer.backend, Gridded):
        raise UnsupportedLayoutError(
            f"{name}: backend {layer.backend.name} has no grids(), which says how values scale rows and columns of a "
            f"matrix. Leave the layer out: attach(model, exclude='{_pattern(layer)}'), or give the backend grids()."
        )
    if not grids:
        raise UnsupportedLayoutError(
            f"{name} ({layer.backend.name}): its values are no rows and columns of a matrix that multiplies an input, "
            f"which rows and columns scale. Leave it out: attach(model, exclude='{_pattern(layer)}')."
        )
    for key in grids.keys() - views.keys():
        raise UnsupportedLayoutError(
            f"{name} ({layer.backend.name}): {key} is not attached, but its weights are scaled by "
            f"{' and '.join(grids)} together. Attach all of them by roles and include, or leave the layer out: "
            f"exclude='{_pattern(layer)}'."
        )
    for key in views.keys() - grids.keys():
        raise UnsupportedLayoutError(
            f"{key} ({layer.backend.name}): does not scale the weights of its layer, so rows and columns cannot move "
            f"it. Leave it out: attach(model, exclude={key!r}), or by roles."
        )
    first = next(iter(grids.values()))
    for key, grid in grids.items():
        if not grid.same(first) or view_count(views[key]) != grid.shape[0] * grid.shape[1]:
            raise UnsupportedLayoutError(
                f"{key} ({layer.backend.name}): a grid of {list(grid.shape)} for values {list(views[key].shape)}, "
                f"beside one of {list(first.shape)}; expected one grid for all. Leave the layer out: "
                f"exclude='{_pattern(layer)}'."
            )
    _refuse_expert(layer)
    if layer.tied:
        raise UnsupportedLayoutError(
            f"{name}: {layer.tied[0].path} reads the same values, and a probe of one layer does not reach the other. "
            f"Leave it out: attach(model, exclude='{_pattern(layer)}')."
        )
    return grids


def _refuse_expert(layer: AttachedLayer) -> None:
    """Refuse a layer of one expert: it sees tokens of any row of the batch, by which probes are told apart."""
    if _EXPERT.search(layer.path):
        raise UnsupportedLayoutError(
            f"{layer.path}: probes that share a forward are told apart by rows of the batch, but an expert sees tokens "
            "that were gathered. Leave the experts out: attach(model, exclude='*experts.*')."
        )


def _pattern(layer: AttachedLayer) -> str:
    return f"{layer.path}.*" if layer.path else "*"
