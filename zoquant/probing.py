"""Probes without a write: hooks scale what goes into a layer and what comes out, row by row of the batch.

The rows of a batch are cut into equal blocks of neighbours, one for each evaluation. At u and v, the block of the
evaluation u + ε a, v + ε b is multiplied by

    x ← x ⊙ (1 + v + ε b) / (1 + v)
    y ← (y − bias) ⊙ (1 + u + ε a) / (1 + u) + bias,

which is what the written values would give before they are rounded to their dtype. Kernel and model stay as they are.

Source: many perturbations in one batch are P-RGE's and EGGROLL's, of low rank there; here they are rows plus columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from zoquant.errors import ShapeError, UnsupportedLayoutError
from zoquant.factors import FactorBuffer, LayerFactors, bounded
from zoquant.noise import Noise

Block = tuple[int | None, float]
"""The evaluation of a block of rows: seed of the direction and signed length; without a seed theta itself."""


class Probing:
    """A context manager: within it, every block of rows sees the probe of its evaluation.

    Args:
        buffers: u and v of all layers.
        noise: distribution of the directions.
        blocks: the evaluation of each block, in the order of the rows.
    """

    def __init__(self, buffers: Sequence[FactorBuffer], noise: Noise, blocks: Sequence[Block]) -> None:
        rows = _Rows(len(blocks))
        self._scalings = []
        for buffer in buffers:
            probes = _Probes.draw(buffer, noise, blocks)
            self._scalings += [_Scaling(layer, probes, rows) for layer in buffer.layers]
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> "Probing":
        try:
            for scaling in self._scalings:
                module = scaling.factors.layer.module
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
        """Refuse a forward whose rows are not those of the losses, or that went past a layer.

        Args:
            losses: how many losses the forward gave; each may stand for several neighbouring rows.

        Raises:
            ShapeError: the layers saw a number of rows that is no multiple of it.
            UnsupportedLayoutError: a layer was not called, so its probe had no effect.
        """
        for scaling in self._scalings:
            rows, name = scaling.rows.count, scaling.factors.layer.path
            if not scaling.called:
                raise UnsupportedLayoutError(
                    f"{name}: was not called in the forward, so a batched probe does not reach it: it is not used, or "
                    f"its weights are read in another way. Leave it out: attach(model, exclude='{name}.*')."
                )
            if rows % losses:
                raise ShapeError(
                    f"{name}: its input has {rows} rows, expected a multiple of the {losses} losses. The first "
                    "dimension of what goes into a layer has to be the batch."
                )


@dataclass(frozen=True, eq=False)
class _Probes:
    """u and v of a device as every block sees them.

    Attributes:
        values: u and v, float32 `[n]`.
        directions: float32 `[directions, n]`.
        which: the direction of each block, int64 `[blocks]`.
        lengths: its signed length, float32 `[blocks, 1]`; 0 for theta itself.
    """

    values: Tensor
    directions: Tensor
    which: Tensor
    lengths: Tensor

    @classmethod
    def draw(cls, buffer: FactorBuffer, noise: Noise, blocks: Sequence[Block]) -> "_Probes":
        seeds = list(dict.fromkeys(seed or 0 for seed, _ in blocks))
        which = torch.tensor([seeds.index(seed or 0) for seed, _ in blocks], device=buffer.device)
        lengths = torch.tensor([[0.0 if seed is None else length] for seed, length in blocks], device=buffer.device)
        return cls(buffer.delta, buffer.directions(seeds, noise), which, lengths)

    def ratio(self, place: slice) -> Tensor:
        """Return the probed factors over the present ones, float32 `[blocks, numbers]`."""
        values = self.values[place]
        probed = values + self.lengths * self.directions[self.which, place]
        return (1 + bounded(probed)) / (1 + bounded(values))


@dataclass
class _Rows:
    """How many rows the batch has: as many as the first layer saw, a multiple of the blocks."""

    blocks: int
    count: int = 0


class _Scaling:
    """The two hooks of one layer."""

    def __init__(self, factors: LayerFactors, probes: _Probes, rows: _Rows) -> None:
        self.factors, self.rows, self.called = factors, rows, False
        self._probes = probes

    def scale_input(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if not args or not isinstance(args[0], Tensor):
            raise UnsupportedLayoutError(
                f"{self.factors.layer.path}: called without a tensor as first argument, which is what a batched probe "
                "scales. Leave the layer out with attach(model, exclude=...)."
            )
        self._check_rows(args[0])
        self.called = True
        columns = self._probes.ratio(self.factors.columns)[:, self.factors.grid.columns]
        return (self._scaled(args[0], columns), *args[1:]), kwargs

    def scale_output(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Tensor:
        if not isinstance(output, Tensor):
            raise UnsupportedLayoutError(
                f"{self.factors.layer.path}: returned a {type(output).__name__}, expected a tensor. Leave the layer "
                "out with attach(model, exclude=...)."
            )
        rows = self._probes.ratio(self.factors.rows)[:, self.factors.grid.rows]
        bias = getattr(module, "bias", None)
        return self._scaled(output, rows, bias if isinstance(bias, Tensor) else None)

    def _scaled(self, x: Tensor, factors: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return x, less its bias, times the factors of each block of rows."""
        blocks = x.view(self.rows.blocks, -1, *x.shape[1:])
        factors = factors.view(self.rows.blocks, *[1] * (x.dim() - 1), -1)
        scaled: Tensor = blocks * factors
        if bias is not None:
            scaled += bias * (1 - factors)
        return scaled.flatten(0, 1).to(x.dtype)

    def _check_rows(self, x: Tensor) -> None:
        found = x.shape[0] if x.dim() > 1 else 0
        self.rows.count = self.rows.count or found
        if found != self.rows.count or not found or found % self.rows.blocks:
            raise ShapeError(
                f"{self.factors.layer.path}: its input is {list(x.shape)}, expected {self.rows.count or 'some'} rows "
                f"of a batch first, a multiple of {self.rows.blocks}: each block of rows has its own probe. If the "
                "closure repeats its batch as often as it is told, the layer sees tokens that were flattened or "
                "gathered, as an expert does: leave it out with attach(model, exclude=...)."
            )
