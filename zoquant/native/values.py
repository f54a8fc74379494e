"""The numbers beside the codes: how a tensor of the file lies over the rows and columns of its matrix."""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn

from zoquant.native.codec import FieldSpec
from zoquant.native.packed import Rows
from zoquant.protocol import Grid

GroupLookup = Callable[[Tensor, Rows], Tensor]
"""Takes a tensor of the file and some rows of the matrix; picks their part, `[len(rows) or 1, groups]`.

What makes lookups is cached, so that equal ones are one object, whose strides `zoquant.native.numbers` finds once.
"""

Decode = Callable[[Tensor], Tensor]
"""Turns numbers as stored into factors."""


class Values(nn.Module):
    """One tensor of numbers that scale or shift groups of weights.

    Args:
        spec: name, role and dtype of a continuous field; None for integers, such as the zeros of GPTQ.
        data: the tensor, in the shape and order of the file.
        lookup: which of them belong to some rows of the matrix: one of the functions below.
        group_of: for every column of the matrix its group, int64 `[columns]`; None where groups are equal runs of
            columns, as many as `lookup` returns.
        decode: what turns the numbers that `lookup` picked into factors; None where they are factors as they are.
    """

    data: Tensor
    group_of: Tensor | None

    def __init__(
        self,
        spec: FieldSpec | None,
        data: Tensor,
        lookup: GroupLookup,
        *,
        group_of: Tensor | None = None,
        decode: Decode | None = None,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.lookup = lookup
        self.decode = decode
        self.register_buffer("data", data)
        self.register_buffer("group_of", group_of)

    def at(self, rows: Rows) -> Tensor:
        """Return the numbers of some rows, float32 `[len(rows) or 1, groups, 1]`; groups divide the columns."""
        part = self.lookup(self.data, rows)
        if self.decode is not None:
            part = self.decode(part)
        if self.group_of is not None:
            part = part[:, self.group_of]
        return part.to(torch.float32).unsqueeze(-1)

    def grid(self, rows: int, columns: int) -> Grid | None:
        """Return how the numbers lie over a matrix; None if they are no grid, or no factors of its weights."""
        decoded_elsewhere = type(self).at is not Values.at
        if self.spec is None or decoded_elsewhere or not (self.decode is None or _is_linear(self.decode, self.data)):
            return None
        return grid_of(self.data, self.lookup, rows, columns, group_of=self.group_of)


def grid_of(
    data: Tensor, lookup: GroupLookup, rows: int, columns: int, *, group_of: Tensor | None = None
) -> Grid | None:
    """Return the grid that a lookup makes of a tensor, found by sending the numbers of its elements through it.

    Returns:
        None if the elements do not form rows and columns, one each.
    """
    numbers = torch.arange(data.numel(), device=data.device).view(data.shape)
    picked = lookup(numbers, slice(0, rows)).expand(rows, -1)
    r, c = (torch.unique(line, return_inverse=True)[1] for line in (picked[:, 0], picked[0]))
    if group_of is None:
        group_of = torch.arange(picked.shape[1], device=data.device).repeat_interleave(columns // picked.shape[1])
    shape = (int(r.max()) + 1, int(c.max()) + 1)
    if shape[0] * shape[1] != data.numel():
        return None
    for transposed, expected in ((False, r[:, None] * shape[1] + c), (True, c * shape[0] + r[:, None])):
        if torch.equal(picked, expected):
            return Grid(shape, r, c[group_of], transposed)
    return None


def _is_linear(decode: Decode, data: Tensor) -> bool:
    """Whether four times the stored number is four times the factor: so it is not for a reciprocal or an exponent."""
    one, four = decode(torch.tensor([1, 4], device=data.device).to(data.dtype)).float().tolist()
    return bool(four == 4 * one)


def row_groups(data: Tensor, rows: Rows) -> Tensor:
    """`[rows, groups]`: one number for each run of columns of a row."""
    return data[rows]


def column_groups(data: Tensor, rows: Rows) -> Tensor:
    """`[groups, rows]`, as in GPTQ and AWQ."""
    return data[:, rows].t()


def per_row(data: Tensor, rows: Rows) -> Tensor:
    """`[rows]` or `[rows, 1]`: one number a row."""
    return data.reshape(-1)[rows].unsqueeze(-1)


def whole(data: Tensor, rows: Rows) -> Tensor:
    """One number for the whole matrix, of any shape."""
    del rows
    return data.reshape(1, 1)


@cache
def tall_groups(count: int, height: int) -> GroupLookup:
    """`[ceil(count / height), groups]`: one number for each block of `height` of `count` rows and a run of columns."""

    def lookup(data: Tensor, rows: Rows) -> Tensor:
        return data.view(-(-count // height), -1)[indices(rows, count, data.device) // height]

    return lookup


@cache
def flat_groups(columns: int, size: int) -> GroupLookup:
    """`[blocks]` or `[blocks, 1]`: one number for `size` weights of the flattened matrix, as in bitsandbytes.

    Blocks may straddle rows; then a number comes back for every column.
    """

    def lookup(data: Tensor, rows: Rows) -> Tensor:
        flat = data.reshape(-1)
        if columns % size == 0:
            return flat.view(-1, columns // size)[rows]
        return flat[flat_blocks(indices(rows, flat.numel() * size // columns, data.device), columns, size)]

    return lookup


def flat_blocks(rows: Tensor, columns: int, size: int) -> Tensor:
    """Return the blocks of `size` weights of the flattened matrix that some rows have, as `flat_groups` counts them."""
    if columns % size == 0:
        return rows[:, None] * (columns // size) + torch.arange(columns // size, device=rows.device)
    return (rows[:, None] * columns + torch.arange(columns, device=rows.device)) // size


def indices(rows: Rows, count: int, device: torch.device) -> Tensor:
    """Return rows as int64 `[n]`, in a time that does not depend on `count`, the rows of the matrix."""
    if isinstance(rows, Tensor):
        return rows
    wanted = range(count)[rows]
    return torch.arange(wanted.start, max(wanted.start, wanted.stop), wanted.step, device=device)
