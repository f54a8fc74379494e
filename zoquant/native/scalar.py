"""One code a weight: on a grid of equal steps, or looked up in a table."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence

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
    def applied(self) -> tuple[Values, ...]:
        """The numbers that weights are made with, one for each group."""

    @property
    def numbers(self) -> tuple[Values, ...]:
        """The numbers that the file has beside the codes, continuous ones and integers."""
        return self.applied

    @property
    def fields(self) -> tuple[FieldSpec, ...]:
        return tuple(values.spec for values in self.numbers if values.spec is not None)

    def value(self, name: str) -> Tensor:
        return next(values.data for values in self.numbers if values.spec is not None and values.spec.name == name)

    def add_field_gradients(self, rows: Rows, gradient: Tensor, into: Mapping[str, Tensor]) -> None:
        # Autograd goes from the numbers of the groups to the fields alone, and never sees a number a weight.
        leaves = {name: self.value(name).detach().float().requires_grad_() for name in into}
        with torch.enable_grad(), self._instead(leaves):
            parts = [values.at(rows) for values in self.applied]
        moving = [number for number, part in enumerate(parts) if part.requires_grad]
        plain = [part.detach() for part in parts]
        by_parts = [self._by_number(number, rows, gradient, plain) for number in moving]
        found = torch.autograd.grad([parts[number] for number in moving], list(leaves.values()), by_parts)
        for sums, part in zip(into.values(), found, strict=True):
            sums.add_(part)

    @abstractmethod
    def _by_number(self, number: int, rows: Rows, gradient: Tensor, parts: Sequence[Tensor]) -> Tensor:
        """Return the gradient by one of `applied`, in the shape of its part.

        Args:
            number: which of them.
            rows: which rows of the matrix.
            gradient: the gradient by those rows, float32 `[len(rows), columns]`.
            parts: what `Values.at` gives of the numbers of those rows.
        """


class AffineWeight(ScalarWeight):
    """`w = (code − zero) · scale − shift + offset`: GPTQ, AWQ, HQQ, plain int8, and with float8 codes the FP8 formats.

    Args:
        layout: the layout's own name.
        codes: the codes.
        scale: what `code − zero` is multiplied with.
        zero: what is subtracted before, integers or continuous; None for nothing.
        shift: what is subtracted after, as in quanto; None for nothing.
        offset: what is added after, as in MLX; None for nothing.
    """

    def __init__(
        self, layout: str, codes: Codes, scale: Values, *,
        zero: Values | None = None, shift: Values | None = None, offset: Values | None = None,
    ) -> None:  # fmt: skip
        super().__init__(layout, codes)
        self.scale, self.zero, self.shift, self.offset = scale, zero, shift, offset

    @property
    def applied(self) -> tuple[Values, ...]:
        found = (self.scale, self.zero, self.shift, self.offset)
        return tuple(values for values in found if values is not None)

    def grids(self) -> Mapping[str, Grid]:
        """Return the grids of scale, shift and offset: a zero point lies within what is scaled."""
        found = {
            values.spec.name if values.spec else "": values.grid(self.rows, self.columns)
            for values in (self.scale, self.shift, self.offset)
            if values is not None
        }
        return {name: grid for name, grid in found.items() if grid is not None} if all(found.values()) else {}

    def _by_number(self, number: int, rows: Rows, gradient: Tensor, parts: Sequence[Tensor]) -> Tensor:
        part, values = parts[number], self.applied[number]
        if values is self.scale:
            out = self._steps(rows).mul_(gradient)
        elif values is self.zero:
            out = scratch(tuple(gradient.shape), torch.float32, gradient.device, "decode").copy_(gradient)
            _groups(out, parts[0]).mul_(parts[0]).neg_()
        else:
            out = gradient if values is self.offset else -gradient
        return _group_sums(out, part)

    def _steps(self, rows: Rows) -> Tensor:
        """Return `code − zero` of some rows, float32 `[len(rows), columns]` in scratch memory."""
        codes = self.codes.read(rows)
        out = scratch(tuple(codes.shape), torch.float32, codes.device, "decode").copy_(codes)
        if self.zero is not None:
            zero = self.zero.at(rows)
            _groups(out, zero).sub_(zero)
        return out

    def decode_rows(self, rows: Rows) -> Tensor:
        out = self._steps(rows)
        scale = self.scale.at(rows)
        _groups(out, scale).mul_(scale)
        if self.shift is not None:
            shift = self.shift.at(rows)
            _groups(out, shift).sub_(shift)
        if self.offset is not None:
            offset = self.offset.at(rows)
            _groups(out, offset).add_(offset)
        return out

    def operands(self, rows: Rows | None = None) -> Operands | None:
        codes = self.codes.in_words()
        if codes is None:
            return None
        given = (self.scale, self.zero, self.shift, self.offset)
        found = [None if each is None else numbers_of(each, self.rows, self.columns, rows) for each in given]
        if any(each is not None and numbers is None for each, numbers in zip(given, found, strict=True)):
            return None
        return Operands("affine", self.rows, self.columns, codes, tuple(found))


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
    def applied(self) -> tuple[Values, ...]:
        return tuple(values for values in self.scales if isinstance(values, Values))

    def grids(self) -> Mapping[str, Grid]:
        """Return the grid of the first scale that has one: each of them scales all weights by itself."""
        for values in self.applied:
            found = values.grid(self.rows, self.columns)
            if values.spec is not None and found is not None:
                return {values.spec.name: found}
        return {}

    def _by_number(self, number: int, rows: Rows, gradient: Tensor, parts: Sequence[Tensor]) -> Tensor:
        out = self._levels(rows).mul_(gradient)
        for other, part in enumerate(parts):
            if other != number:
                _groups(out, part).mul_(part)
        return _group_sums(out, parts[number])

    def _levels(self, rows: Rows) -> Tensor:
        """Return the table's numbers of some rows, float32 `[len(rows), columns]` in scratch memory."""
        codes = self.codes.read(rows)
        out = scratch(tuple(codes.shape), torch.float32, codes.device, "decode")
        return torch.index_select(self.table, 0, codes.reshape(-1).int(), out=out.view(-1)).view(out.shape)

    def decode_rows(self, rows: Rows) -> Tensor:
        out = self._levels(rows)
        for values in self.applied:
            part = values.at(rows)
            _groups(out, part).mul_(part)
        return out

    def operands(self, rows: Rows | None = None) -> Operands | None:
        codes = self.codes.in_words()
        if codes is None:
            return None
        found = tuple(numbers_of(values, self.rows, self.columns, rows) for values in self.applied)
        if not found or None in found:
            return None
        return Operands("table", self.rows, self.columns, codes, found, self.table)


def _groups(out: Tensor, values: Tensor) -> Tensor:
    """View `[n, columns]` as the groups `[n, groups, columns // groups]` that `values` has."""
    return out.view(out.shape[0], values.shape[1], -1)


def _group_sums(out: Tensor, values: Tensor) -> Tensor:
    """Return the sums of `[n, columns]` over the weights that each of `values` belongs to, in its shape."""
    return _groups(out, values).sum(-1, keepdim=True).sum_to_size(values.shape)
