"""What every native matrix has in common: rows are decoded a tile at a time, and never kept."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from zoquant.kernels.products.matmul import COLUMNS, Factors, multiplies, multiply_plain, spread
from zoquant.kernels.products.operands import Operands
from zoquant.kernels.workspace import scratch
from zoquant.native.codec import FieldSpec
from zoquant.native.compiled import decoded, multiplied
from zoquant.native.scaling import scale_output, scaled_input
from zoquant.protocol import Grid

TILE = 1 << 20
"""Weights that are decoded at a time on a CPU: 4 MiB of float32, multiplied while they lie in the cache."""

TILE_ELSEWHERE = 1 << 24
"""Weights that are decoded at a time on a GPU, where a launch has to have work for all of it."""

MANY = 64
"""Rows of x from which the compiled product with decoded weights is faster than torch's."""

Rows = slice | Tensor
"""Some rows of a matrix: a slice, or int64 `[n]`."""


class PackedWeight(nn.Module, ABC):
    """One matrix: packed words and continuous fields, as the file has them.

    Attributes:
        layout: the layout's own name, shown by `repr`.
        rows: rows of the matrix, its outputs.
        columns: columns of the matrix, its inputs.
    """

    layout: str
    rows: int
    columns: int

    @property
    @abstractmethod
    def fields(self) -> tuple[FieldSpec, ...]:
        """The continuous fields, in the order of the file."""

    @abstractmethod
    def value(self, name: str) -> Tensor:
        """Return the storage of one continuous field, in the dtype, shape and order of the file."""

    @abstractmethod
    def decode_rows(self, rows: Rows) -> Tensor:
        """Decode some rows of the matrix.

        Args:
            rows: which rows, in the order of the model.

        Returns:
            float32 `[len(rows), columns]` in scratch memory that the next call overwrites.
        """

    def decode_rows_to(self, rows: Rows, dtype: torch.dtype) -> Tensor:
        """Decode some rows of the matrix and round them, once, from float32.

        Args:
            rows: which rows, in the order of the model.
            dtype: dtype of the result.

        Returns:
            `[len(rows), columns]` in scratch memory that the next call overwrites.
        """
        found = decoded(self, rows, dtype)
        return rounded(self.decode_rows(rows), dtype) if found is None else found

    def operands(self, rows: Rows | None = None) -> Operands | None:
        """Return how a kernel reads the matrix; None where torch decodes it.

        Args:
            rows: the rows that are wanted: numbers that have to be decoded first are decoded for these alone. None for
                all of them.
        """
        return None

    def product(self, x: Tensor, dtype: torch.dtype, factors: Factors | None = None) -> Tensor:
        """Return `x Wᵀ`, `[tokens, rows]`, in the dtype of x; W is decoded a tile at a time.

        Args:
            x: `[tokens, columns]`.
            dtype: dtype that x and W are rounded to.
            factors: on the columns of x and on those of the product, or None.
        """
        if factors is not None and not multiplies(x, dtype):
            y = self.product(scaled_input(x, factors.into, factors.block), dtype)
            return scale_output(y, factors.out, factors.block)
        found = multiplied(x, self, dtype)
        if found is not None:
            return found
        if factors is not None:
            factors = replace(factors, out=spread(factors.out, self.rows))
        parts = [product(x, tile, _of_rows(factors, rows)) for rows, tile in self.tiles(dtype)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)

    def grids(self) -> Mapping[str, Grid]:
        """Return the grids of the fields that together scale the weights, see `zoquant.protocol.Gridded`."""
        return {}

    @property
    def device(self) -> torch.device:
        """Where the words lie."""
        return next(self.buffers()).device

    def tiles(self, dtype: torch.dtype = torch.float32) -> Iterator[tuple[slice, Tensor]]:
        """Yield the matrix as `(rows, decoded rows)`, in the order of the model."""
        step = max(1, (TILE if self.device.type == "cpu" else TILE_ELSEWHERE) // self.columns)
        for start in range(0, self.rows, step):
            rows = slice(start, min(start + step, self.rows))
            yield rows, self.decode_rows_to(rows, dtype)

    def dequantize(self) -> Tensor:
        """Return the whole matrix, float32 `[rows, columns]`, in the order of the model."""
        weight = torch.empty(self.rows, self.columns, dtype=torch.float32, device=self.device)
        for rows, tile in self.tiles():
            weight[rows] = tile
        return weight


def product(x: Tensor, tile: Tensor, factors: Factors | None = None) -> Tensor:
    """Return `x tileᵀ`, multiplied in the dtype of the tile, in the dtype of x."""
    plain = tile.is_cpu and tile.is_contiguous() and tile.shape[1] % COLUMNS == 0 and not tile.requires_grad
    if plain and len(x) >= MANY and multiplies(x, tile.dtype):
        return multiply_plain(x, tile, factors)
    if factors is not None:
        y = product(scaled_input(x, factors.into, factors.block), tile)
        return scale_output(y, factors.out, factors.block)
    if torch.is_grad_enabled() and x.requires_grad:
        tile = tile.clone()  # read by backward, when the scratch memory holds rows of other matrices
    return (x.to(tile.dtype) @ tile.t()).to(x.dtype)


def _of_rows(factors: Factors | None, rows: slice) -> Factors | None:
    """Return the factors for some rows of a matrix."""
    return None if factors is None else replace(factors, out=factors.out[:, rows])


def rounded(tile: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a float32 tile in another dtype, in scratch memory."""
    return tile if dtype == torch.float32 else scratch(tuple(tile.shape), dtype, tile.device, "cast").copy_(tile)
