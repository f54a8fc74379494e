"""The numbers beside the codes: how a tensor of the file lies over the rows and columns of its matrix."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from zoquant.native.codec import FieldSpec
from zoquant.native.packed import Rows

Place = Callable[[Tensor, Rows], Tensor]
"""Takes a tensor of the file and some rows of the matrix; returns their part, `[len(rows) or 1, groups]`."""


class Values(nn.Module):
    """One tensor of numbers that scale or shift groups of weights.

    Args:
        spec: name, role and dtype of a continuous field; None for integers, such as the zeros of GPTQ.
        data: the tensor, in the shape and order of the file.
        place: which of them belong to some rows of the matrix: one of the functions below.
        group_of: for every column of the matrix its group, int64 `[columns]`; None where groups are equal runs of
            columns, as many as `place` returns.
    """

    data: Tensor
    group_of: Tensor | None

    def __init__(self, spec: FieldSpec | None, data: Tensor, place: Place, *, group_of: Tensor | None = None) -> None:
        super().__init__()
        self.spec = spec
        self.place = place
        self.register_buffer("data", data)
        self.register_buffer("group_of", group_of)

    def at(self, rows: Rows) -> Tensor:
        """Return the numbers of some rows, float32 `[len(rows) or 1, groups, 1]`; groups divide the columns."""
        part = self.place(self.data, rows)
        if self.group_of is not None:
            part = part[:, self.group_of]
        return part.to(torch.float32).unsqueeze(-1)


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


def tall_groups(height: int) -> Place:
    """`[ceil(rows / height), groups]`: one number for each block of `height` rows and a run of columns."""

    def place(data: Tensor, rows: Rows) -> Tensor:
        return data[indices(rows, data.shape[0] * height, data.device) // height]

    return place


def flat_groups(columns: int, size: int) -> Place:
    """`[blocks]` or `[blocks, 1]`: one number for `size` weights of the flattened matrix, as in bitsandbytes.

    Blocks may straddle rows; then a number comes back for every column.
    """

    def place(data: Tensor, rows: Rows) -> Tensor:
        flat = data.reshape(-1)
        if columns % size == 0:
            return flat.view(-1, columns // size)[rows]
        first = indices(rows, flat.numel() * size // columns, data.device) * columns
        return flat[(first[:, None] + torch.arange(columns, device=data.device)) // size]

    return place


def indices(rows: Rows, count: int, device: torch.device) -> Tensor:
    """Return rows as int64 `[n]`."""
    return torch.arange(count, device=device)[rows] if isinstance(rows, slice) else rows
