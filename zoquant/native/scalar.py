"""One code a weight: on a grid of equal steps, or looked up in a table."""

from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from zoquant.kernels.products.operands import Operands
from zoquant.kernels.workspace import scratch
from zoquant.native.codec import FieldSpec
from zoquant.native.numbers import numbers_of
from zoquant.native.packed import PackedWeight, Rows
from zoquant.native.values import Values
from zoquant.native.words import Codes
from zoquant.protocol import Grid


class ScalarWeight(PackedWeight):
    """A matrix of codes with numbers beside them.

    Args:
        layout: the layout's own name.
        codes: the codes.
    """

    def __init__(self, layout: str, codes: Codes) -> None:
        super().__init__()
        self.layout = layout
        self.codes = codes
        self.rows, self.columns = codes.rows, codes.columns

    @property
    @abstractmethod
    def numbers(self) -> tuple[Values, ...]:
        """The numbers beside the codes, continuous ones and integers."""

    @property
    def fields(self) -> tuple[FieldSpec, ...]:
        return tuple(values.spec for values in self.numbers if values.spec is not None)

    def value(self, name: str) -> Tensor:
        return next(values.data for values in self.numbers if values.spec is not None and values.spec.name == name)


class AffineWeight(ScalarWeight):
    """`w = (code − zero) · scale − shift`: GPTQ, AWQ, HQQ, plain int8, and with float8 codes the FP8 formats.

    Args:
        layout: the layout's own name.
        codes: the codes.
        scale: what `code − zero` is multiplied with.
        zero: what is subtracted before, integers or continuous; None for nothing.
        shift: what is subtracted after, as in quanto; None for nothing.
    """

    def __init__(
        self, layout: str, codes: Codes, scale: Values, *, zero: Values | None = None, shift: Values | None = None
    ) -> None:
        super().__init__(layout, codes)
        self.scale, self.zero, self.shift = scale, zero, shift

    @property
    def numbers(self) -> tuple[Values, ...]:
        return tuple(values for values in (self.scale, self.zero, self.shift) if values is not None)

    def grids(self) -> Mapping[str, Grid]:
        """Return the grid of the scale, and that of the shift: a zero point lies within what is scaled."""
        found = {
            values.spec.name if values.spec else "": values.grid(self.rows, self.columns)
            for values in (self.scale, self.shift)
            if values is not None
        }
        return {name: grid for name, grid in found.items() if grid is not None} if all(found.values()) else {}

    def decode_rows(self, rows: Rows) -> Tensor:
        codes = self.codes.read(rows)
        out = scratch(tuple(codes.shape), torch.float32, codes.device, "decode").copy_(codes)
        if self.zero is not None:
            zero = self.zero.at(rows)
            _groups(out, zero).sub_(zero)
        scale = self.scale.at(rows)
        _groups(out, scale).mul_(scale)
        if self.shift is not None:
            shift = self.shift.at(rows)
            _groups(out, shift).sub_(shift)
        return out

    def operands(self, rows: Rows | None = None) -> Operands | None:
        """Return codes, scale, zero and shift as a kernel reads them, see `PackedWeight.operands`."""
        codes = self.codes.in_words()
        if codes is None:
            return None
        given = (self.scale, self.zero, self.shift)
        found = [None if each is None else numbers_of(each, self.rows, self.columns, rows) for each in given]
        if any(each is not None and numbers is None for each, numbers in zip(given, found, strict=True)):
            return None
        return Operands("affine", self.rows, self.columns, codes, (*found, None))


class TableWeight(ScalarWeight):
    """`w = table[code] · scale`: a scalar codebook that is part of the format, as NF4, FP4.

    Args:
        layout: the layout's own name.
        codes: the codes, below `len(table)`.
        table: float32 `[levels]`.
        scale: what the table's numbers are multiplied with, one after the other.
    """

    table: Tensor

    def __init__(self, layout: str, codes: Codes, table: Tensor, *scale: Values) -> None:
        super().__init__(layout, codes)
        self.scales = torch.nn.ModuleList(scale)
        self.register_buffer("table", table)

    @property
    def numbers(self) -> tuple[Values, ...]:
        return tuple(values for values in self.scales if isinstance(values, Values))

    def grids(self) -> Mapping[str, Grid]:
        """Return the grid of the first scale that has one: each of them scales all weights by itself."""
        for values in self.numbers:
            found = values.grid(self.rows, self.columns)
            if values.spec is not None and found is not None:
                return {values.spec.name: found}
        return {}

    def decode_rows(self, rows: Rows) -> Tensor:
        codes = self.codes.read(rows)
        out = scratch(tuple(codes.shape), torch.float32, codes.device, "decode")
        torch.index_select(self.table, 0, codes.reshape(-1).int(), out=out.view(-1))
        for values in self.numbers:
            part = values.at(rows)
            _groups(out, part).mul_(part)
        return out

    def operands(self, rows: Rows | None = None) -> Operands | None:
        """Return codes, table and scales as a kernel reads them, see `PackedWeight.operands`."""
        codes = self.codes.in_words()
        if codes is None:
            return None
        found = tuple(numbers_of(values, self.rows, self.columns, rows) for values in self.numbers)
        if not found or None in found:
            return None
        return Operands("table", self.rows, self.columns, codes, found, self.table)


def _groups(out: Tensor, values: Tensor) -> Tensor:
    """View `[n, columns]` as the groups `[n, groups, columns // groups]` that `values` has."""
    return out.view(out.shape[0], values.shape[1], -1)
