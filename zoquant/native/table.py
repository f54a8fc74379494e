"""`w = table[code] · scale`: a scalar codebook that is part of the format, as NF4, FP4."""

import torch
from torch import Tensor

from zoquant.native.affine import grid
from zoquant.native.codec import FieldSpec
from zoquant.native.packed import PackedWeight, Rows
from zoquant.native.values import Values
from zoquant.native.words import Codes
from zoquant.native.workspace import scratch


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

    def decode_rows(self, rows: Rows) -> Tensor:
        codes = self.codes.read(rows)
        out = scratch(tuple(codes.shape), torch.float32, codes.device, "decode")
        torch.index_select(self.table, 0, codes.reshape(-1).int(), out=out.view(-1))
        for values in self._values():
            part = values.at(rows)
            grid(out, part).mul_(part)
        return out

    def _values(self) -> tuple[Values, ...]:
        return tuple(values for values in self.scales if isinstance(values, Values))
