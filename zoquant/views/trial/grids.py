"""Whether the grids of a layer say what its values do: rows and columns that are scaled scale its weights alike."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from zoquant.errors import UnsupportedLayoutError
from zoquant.protocol import Grid, Gridded, ScaleView
from zoquant.views.layout import view_count, write_view
from zoquant.views.model_views import AttachedLayer

_ROW, _COLUMN = 2.0, 4.0
"""The factors of rows and of columns: different, so that nobody takes one for the other, and without a rounding."""

_TOLERANCE = 0.05

_OUTPUTS = 64
"""Outputs of a layer that are looked at, unless the check is thorough."""


def check_grids(layer: AttachedLayer, views: Sequence[ScaleView], *, thorough: bool = False) -> None:
    """Scale some rows and columns of the values of a layer, see whether its weights follow, and write all back.

    Args:
        layer: the layer.
        views: all views of the layer, with their local names.
        thorough: tell every row and every column apart, not only some from others.

    Raises:
        UnsupportedLayoutError: the grids do not say what the values do; the message says what is wrong.
    """
    grids = layer.backend.grids(layer.module) if isinstance(layer.backend, Gridded) else {}
    if not grids:
        return
    weight = layer.backend.dequantize(layer.module)
    outputs = torch.arange(len(weight))[:: 1 if thorough else max(1, len(weight) // _OUTPUTS)]
    trial = _Trial(layer, views, [view.read() for view in views], outputs, weight[outputs.to(weight.device)].cpu())
    complaint = _ill_formed(trial, grids, tuple(weight.shape))
    try:
        for u, v in _factors(next(iter(grids.values())).shape, thorough):
            complaint = complaint or ("" if trial.follows(grids, u, v) else _cause(trial, grids, u, v))
    finally:
        trial.restore()
    if complaint:
        name = layer.path or type(layer.module).__name__
        raise UnsupportedLayoutError(
            f"{name} ({layer.backend.name}): grids() does not say how the values scale the weights: {complaint}. Mend "
            "grids(), or leave it out: then the layer is trained by its values alone."
        )


@dataclass(frozen=True, eq=False)
class _Trial:
    """A layer and its views, with the values from before anything was scaled, and the weights of some outputs."""

    layer: AttachedLayer
    views: Sequence[ScaleView]
    old: Sequence[Tensor]
    outputs: Tensor
    weight: Tensor

    def follows(self, grids: Mapping[str, Grid], u: Tensor, v: Tensor) -> bool:
        """Whether scaling rows by u and columns by v scales the weights so. What left its dtype does not count."""
        kept = torch.ones(len(u), len(v), dtype=torch.bool)
        for view, before in zip(self.views, self.old, strict=True):
            grid = grids.get(view.name)
            laid = torch.ones(()) if grid is None else (u[:, None] * v).t() if grid.transposed else u[:, None] * v
            asked = before * (laid if grid is None else laid.reshape(before.shape)).to(before.device)
            write_view(view, asked)
            if grid is not None:
                same = (view.read() == asked).cpu().reshape(laid.shape)
                kept &= same.t() if grid.transposed else same
        self.layer.refresh()
        rows, columns = grid_of(grids).rows.cpu()[self.outputs], grid_of(grids).columns.cpu()
        asked = self.weight * u[rows][:, None] * v[columns]
        got = self.layer.backend.dequantize(self.layer.module)
        away = (got[self.outputs.to(got.device)].cpu() - asked).abs()
        near = away <= _TOLERANCE * asked.abs() + 1e-6 * asked.abs().max()
        return bool((near | ~kept[rows][:, columns]).all())

    def restore(self) -> None:
        """Write all values back."""
        for view, before in zip(self.views, self.old, strict=True):
            view.write(before)
        self.layer.refresh()


def grid_of(grids: Mapping[str, Grid]) -> Grid:
    """Return the grid that all of them are."""
    return next(iter(grids.values()))


def _ill_formed(trial: _Trial, grids: Mapping[str, Grid], size: tuple[int, ...]) -> str:
    """Return why grids cannot be tried at all, or nothing."""
    first, counts = grid_of(grids), {view.name: view_count(view) for view in trial.views}
    for name, grid in grids.items():
        if name not in counts:
            return f"it names {name!r}, and the views are {', '.join(counts)}"
        if counts[name] != grid.shape[0] * grid.shape[1]:
            return f"a grid of {list(grid.shape)} for the {counts[name]} values of {name!r}"
        if not grid.same(first):
            return f"the grid of {name!r} is another than that of {next(iter(grids))!r}, expected one for all"
    for axis, (what, where) in enumerate((("rows", first.rows), ("columns", first.columns))):
        found = [int(end) for end in where.aminmax()] if where.numel() else []
        if where.shape != (size[axis],) or found[0] < 0 or found[1] >= first.shape[axis]:
            got = f"{list(where.shape)} numbers from {found[0]} to {found[1]}" if found else "no numbers"
            return f"{what} has {got}, expected {size[axis]} from 0 to {first.shape[axis] - 1}"
    return ""


def _factors(shape: tuple[int, int], thorough: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield factors of rows and columns: drawn ones, or by each digit of their numbers, so that no two are alike."""
    for digit in range(max((length - 1).bit_length() for length in shape) if thorough else 1):
        rows, columns = (1 - (torch.arange(n) >> digit) % 2 if thorough else _drawn(n) for n in shape)
        yield _ROW ** rows.float(), _COLUMN ** columns.float()


def _drawn(count: int) -> Tensor:
    """Return zeros and ones, the same every time, of which the first is 1 and the last of several 0."""
    drawn = torch.randint(0, 2, (count,), generator=torch.Generator().manual_seed(0))
    drawn[-1], drawn[0] = 0, 1
    return drawn


def _cause(trial: _Trial, grids: Mapping[str, Grid], u: Tensor, v: Tensor) -> str:
    """Return what is wrong with grids that the weights do not follow, as far as other grids tell."""
    grid = grid_of(grids)
    for view in trial.views:
        alike = view.name not in grids and view_count(view) == u.numel() * v.numel()
        if alike and trial.follows({**grids, view.name: grid}, u, v):
            return f"{view.name!r} scales them, too, and is not named"
    if trial.follows({name: replace(each, transposed=not each.transposed) for name, each in grids.items()}, u, v):
        return f"transposed is {grid.transposed}, expected {not grid.transposed}"
    wrong = "columns" if trial.follows(grids, u, torch.ones_like(v)) else "rows"
    each = "input its column" if wrong == "columns" else "output its row"
    return f"{wrong} does not give every {each} of the grid"
