"""How a small tensor of scales lies over its matrix: each of its numbers belongs to a block of rows and columns."""

from dataclasses import dataclass

import torch
from torch import Tensor

from zoquant.native import FieldSpec, Values
from zoquant.native.packed import Rows
from zoquant.native.values import Decode, indices


@dataclass(frozen=True)
class ScaleGrid:
    """Blocks of `height` rows and `width` columns, ragged at the right and lower edge.

    One number for the whole tensor, a row, a run of columns of a row, or a tile: all are such a grid.

    Attributes:
        rows: rows of the matrix.
        columns: columns of the matrix.
        height: rows of a block.
        width: columns of a block.
    """

    rows: int
    columns: int
    height: int
    width: int

    @property
    def shape(self) -> tuple[int, int]:
        """Blocks along the rows and along the columns."""
        return -(-self.rows // self.height), -(-self.columns // self.width)

    def holds(self, shape: tuple[int, ...]) -> bool:
        """Tell whether a tensor of this shape has a number for every block; trailing ones may be left out."""
        down, across = self.shape
        short = ((down,), *([()] if down == 1 else [])) if across == 1 else ()
        return shape in (self.shape, *short)

    def values(
        self, spec: FieldSpec | None, data: Tensor, decode: Decode = Tensor.float, *, group_of: Tensor | None = None
    ) -> Values:
        """Return the numbers as `Values` of a native weight.

        Args:
            spec: name, role and dtype of a continuous field; None for what is not trained.
            data: the tensor of the file, of a shape that `holds` knows.
            decode: turns the stored numbers into factors.
            group_of: for every column its block, int64 `[columns]`, where blocks are no runs of columns.
        """
        if group_of is None and self.shape[1] > 1 and self.columns % self.width:
            group_of = torch.arange(self.columns, device=data.device) // self.width

        def place(stored: Tensor, rows: Rows) -> Tensor:
            grid = stored.reshape(self.shape)
            if self.shape[0] == 1:
                return grid
            if self.height == 1:
                return grid[rows]
            return grid[indices(rows, self.rows, stored.device) // self.height]

        return Values(spec, data, place, group_of=group_of, decode=decode)


def reciprocal(stored: Tensor) -> Tensor:
    """Return the factors of scales that the format divides by."""
    return stored.float().reciprocal()


def power_of_two(stored: Tensor) -> Tensor:
    """Return the factors of E8M0 scales, 2 ** (byte - 127), stored as uint8 or float8_e8m0fnu.

    Source: OCP Microscaling Formats (MX) v1.0, section 5.4.1.
    """
    return stored.float() if stored.dtype.is_floating_point else (stored.float() - 127).exp2()
