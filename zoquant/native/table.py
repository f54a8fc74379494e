"""`w = table[code] · scale`: a scalar codebook that is part of the format, as NF4, FP4."""

from collections.abc import Mapping

import torch
from torch import Tensor

from zoquant.kernels.products.operands import Operands
from zoquant.kernels.workspace import scratch
from zoquant.native.affine import grid
from zoquant.native.codec import FieldSpec
from zoquant.native.numbers import numbers_of
from zoquant.native.packed import PackedWeight, Rows
from zoquant.native.values import Values
from zoquant.native.words import Codes
from zoquant.protocol import Grid


class TableWeight(PackedWeight):
    """A matrix whose codes index a fixed table.

    Args:
        layout: the layout's own name.
        codes: the codes, below `len(table)`.
        table: float32 `[levels]`.
        scale: what the table's numbers are multiplied with, one after the other.
    """

    table: Tensor

    def __init__(self, layout: str, codes: Codes, table: Tensor, *scale: Values) -> None:
        super().__init__()
        self.layout = layout
        self.codes, self.scales = codes, torch.nn.ModuleList(scale)
        self.register_buffer("table", table)
        self.rows, self.columns = codes.rows, codes.columns

    @property
    def fields(self) -> tuple[FieldSpec, ...]:
        return tuple(values.spec for values in self._values() if values.spec is not None)

    def value(self, name: str) -> Tensor:
        return next(values.data for values in self._values() if values.spec is not None and values.spec.name == name)

    def grids(self) -> Mapping[str, Grid]:
        """Return the grid of the first scale that has one: each of them scales all weights by itself."""
        for values in self._values():
            found = values.grid(self.rows, self.columns)
            if values.spec is not None and found is not None:
                return {values.spec.name: found}
        return {}

    def decode_rows(self, rows: Rows) -> Tensor:
        codes = self.codes.read(rows)
        out = scratch(tuple(codes.shape), torch.float32, codes.device, "decode")
        torch.index_select(self.table, 0, codes.reshape(-1).int(), out=out.view(-1))
        for values in self._values():
            part = values.at(rows)
            grid(out, part).mul_(part)
        return out

    def operands(self, rows: Rows | None = None) -> Operands | None:
        """Return codes, table and scales as a kernel reads them, see `PackedWeight.operands`."""
        codes = self.codes.in_words()
        if codes is None:
            return None
        found = tuple(numbers_of(values, self.rows, self.columns, rows) for values in self._values())
        if not found or None in found:
            return None
        return Operands("table", self.rows, self.columns, codes, found, self.table)

    def _values(self) -> tuple[Values, ...]:
        return tuple(values for values in self.scales if isinstance(values, Values))
