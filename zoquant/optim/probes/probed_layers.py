"""Probes without a write: hooks scale what goes into a layer and what comes out, row by row of the batch.

The rows of a batch are cut into equal blocks of neighbours, one for each evaluation. At u and v, the block of the
evaluation u + ε a, v + ε b is multiplied by

    x ← x ⊙ (1 + v + ε b) / (1 + v)
    y ← (y − bias) ⊙ (1 + u + ε a) / (1 + u) + bias,

which is what the written values would give before they are rounded to their dtype. Kernel and model stay as they are.
Where sequences share rows, `sharing_rows` says how: a token goes with the row of the batch that its sequence is.

Source: many perturbations in one batch are P-RGE's and EGGROLL's, of low rank there; here they are rows plus columns.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from zoquant.errors import ShapeError, UnsupportedLayoutError
from zoquant.kernels.noise.definition import Noise
from zoquant.kernels.products.matmul import Factors
from zoquant.native import QuantLinear
from zoquant.native.scaling import scale_output, scaled_input, shift_output
from zoquant.optim.probes.probe import Probe
from zoquant.record.rows_and_columns import (
    LEAST,
    LayerRowsAndColumns,
    RowsAndColumnsBuffer,
    RowsAndColumnsMover,
    bounded,
)
from zoquant.views.dry_run import trying


class SharedRows(Protocol):
    """How the sequences of a batch lie in the rows of a forward."""

    @property
    def sequences(self) -> Tensor:
        """int64 `[rows, length]`: number of the sequence that a token belongs to, -1 where there is none."""

    @property
    def count(self) -> int:
        """Number of sequences."""


_present: ContextVar[SharedRows | None] = ContextVar("shared_rows", default=None)


@contextmanager
def sharing_rows(rows: SharedRows) -> Iterator[None]:
    """Say within a `with` that sequences share rows so."""
    token = _present.set(rows)
    try:
        yield
    finally:
        _present.reset(token)


class ProbedLayers:
    """A context in which every block of rows, in their order, sees a probe of the rows and columns of all groups."""

    def __init__(self, groups: Sequence[RowsAndColumnsMover], probes: Sequence[Probe]) -> None:
        rows = _Rows(len(probes))
        self._scalings = []
        for number, group in enumerate(groups):
            for buffer in group.vectors:
                found = ratios(buffer, group.noise, [probe.of(number) for probe in probes])
                self._scalings += [_Scaling(layer, found, rows) for layer in buffer.layers]
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> "ProbedLayers":
        try:
            for scaling in self._scalings:
                module = scaling.vectors.layer.module
                self._handles.append(module.register_forward_pre_hook(scaling.scale_input, with_kwargs=True))
                self._handles.append(module.register_forward_hook(scaling.scale_output))
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._handles:
            self._handles.pop().remove()

    def check(self, losses: int) -> None:
        """Refuse a forward that gave so many losses of other rows, or that went past a layer.

        Raises:
            ShapeError: the layers saw a number of rows that is no multiple of the losses.
            UnsupportedLayoutError: a layer was not called, so its probe had no effect.
        """
        for scaling in self._scalings:
            rows, name = scaling.rows.count, scaling.vectors.layer.path
            if not scaling.called:
                raise UnsupportedLayoutError(
                    f"{name}: was not called in the forward, so a probe does not reach it: it is not used, or "
                    f"its weights are read in another way. Leave it out: attach(model, exclude='{name}.*')."
                )
            if rows % losses:
                raise ShapeError(
                    f"{name}: its input has {rows} rows, expected a multiple of the {losses} losses. The first "
                    "dimension of what goes into a layer has to be the batch."
                )


def ratios(buffer: RowsAndColumnsBuffer, noise: Noise, blocks: Sequence[tuple[int | None, float]]) -> Tensor:
    """Return what each block multiplies rows and columns with: the probed factors over the present ones.

    A block has a seed, None for u and v themselves, and a signed length. float32 `[blocks, n]`, as `buffer.delta` lies.
    """
    source, u = buffer.source_of(noise), buffer.delta
    found = torch.ones(len(blocks), u.numel(), dtype=torch.float32, device=buffer.device)
    probes = [(seed, length, row) for row, (seed, length) in enumerate(blocks) if seed is not None]
    if buffer.kernels is not None and source.kernels is not None:
        buffer.kernels.ratios(source.definition, probes, u, LEAST, found)
        return found
    present = (1 + bounded(u)).reciprocal_()
    for seed, length, row in probes:
        out = source.draw(seed, 0, found[row]).mul_(length).add_(u)
        bounded(out, out=out).add_(1).mul_(present)
    return found


@dataclass
class _Rows:
    """The rows of the batch: as many as the first layer saw, a multiple of the blocks."""

    blocks: int
    count: int = 0
    shared: SharedRows | None = None
    block: Tensor | None = None
    """The block of each place of a packed row, int32 `[rows, length]`."""

    def see(self, x: Tensor) -> bool:
        """Take note of what goes into a layer; return whether its rows can be cut into the blocks."""
        if (shared := _present.get()) is None:
            self.shared = self.block = None
            found = x.shape[0] if x.dim() > 1 else 0
        else:
            if shared is not self.shared:
                block = shared.sequences.clamp(min=0) * self.blocks // shared.count
                self.shared, self.block = shared, block.int()
            shape = shared.sequences.shape
            found = shared.count if x.shape[:-1] in (shape, (shape.numel(),)) else 0
        self.count = self.count or found
        return found == self.count and found > 0 and found % self.blocks == 0

    def block_of(self, x: Tensor) -> Tensor | None:
        """Return the block of each place of x or of the product; None where every row has one of its own."""
        return None if self.block is None else self.block.view(x.shape[:-1]).to(x.device)


class _Scaling:
    """The two hooks of one layer. A native one multiplies by the factors itself, where it reads x and writes y."""

    def __init__(self, vectors: LayerRowsAndColumns, ratios: Tensor, rows: _Rows) -> None:
        self.vectors, self.rows, self.called = vectors, rows, False
        self._ratios = ratios

    def scale_input(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if trying():
            return None
        if not args or not isinstance(args[0], Tensor):
            raise UnsupportedLayoutError(
                f"{self.vectors.layer.path}: called without a tensor as first argument, which is what a probe of "
                "rows and columns scales. Leave the layer out with attach(model, exclude=...)."
            )
        self._check_rows(x := args[0])
        self.called = True
        columns, block = self.vectors.across(self._ratios[:, self.vectors.columns]), self.rows.block_of(x)
        if isinstance(module, QuantLinear):
            factors = Factors(columns, self._rows(), None if block is None else block.view(-1))
            return args, {**kwargs, "factors": factors}
        return (scaled_input(x, columns, block), *args[1:]), kwargs

    def scale_output(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if isinstance(module, QuantLinear) or trying():
            return
        if not isinstance(output, Tensor):
            raise UnsupportedLayoutError(
                f"{self.vectors.layer.path}: returned a {type(output).__name__}, expected a tensor. Leave the layer "
                "out with attach(model, exclude=...)."
            )
        rows, block = self._rows(), self.rows.block_of(output)
        scale_output(output, rows, block)
        if isinstance(bias := getattr(module, "bias", None), Tensor):
            shift_output(output, rows, bias, block)

    def _rows(self) -> Tensor:
        return self.vectors.down(self._ratios[:, self.vectors.rows])

    def _check_rows(self, x: Tensor) -> None:
        if not self.rows.see(x):
            raise ShapeError(
                f"{self.vectors.layer.path}: its input is {list(x.shape)}, expected {self.rows.count or 'some'} rows "
                f"of a batch first, a multiple of {self.rows.blocks}: each block of rows has its own probe. If the "
                "closure repeats its batch as often as it is told, the layer sees tokens that were flattened or "
                "gathered, as an expert does: leave it out with attach(model, exclude=...)."
            )
