"""How a kernel finds the numbers beside the codes: the strides of what a lookup picks."""

from functools import lru_cache

import torch

from zoquant.kernels.products.operands import Numbers
from zoquant.native.packed import Rows
from zoquant.native.packed_rows import PackedRows
from zoquant.native.values import GroupLookup, Values

READ = (torch.float32, torch.float16, torch.bfloat16, torch.int32, torch.int16, torch.int8, torch.uint8)
"""Dtypes that a kernel reads."""

_MARK = 1 << 40


def numbers_of(values: Values, rows: int, columns: int, wanted: Rows | None = None) -> Numbers | None:
    """Return the numbers of a matrix as a kernel reads them, where they lie if they are factors as they are.

    Numbers that have to be decoded first, such as nested absmax, are decoded at every call, those of `wanted` or all.

    Returns:
        None where each column has numbers of its own that would have to be decoded, or groups do not divide a row.
    """
    plain = type(values).at is Values.at and values.decode is None and values.data.is_contiguous()
    if plain and isinstance(values.lookup, PackedRows) and not values.lookup.transposed:
        return _packed(values, values.lookup, columns)
    strides = _strides(values.lookup, tuple(values.data.shape), rows) if plain and values.data.dtype in READ else None
    if strides is None:
        return _decoded(values, slice(0, rows) if wanted is None else wanted, columns, picked=wanted is not None)
    row, group, groups = strides
    if values.group_of is None and columns % groups:
        return None
    return Numbers(values.data, row, group, max(columns // groups, 1), groups, values.group_of)


def _packed(values: Values, lookup: PackedRows, columns: int) -> Numbers | None:
    groups, words = values.data.shape
    fits = values.data.dtype == torch.int32 and 32 % lookup.bits == 0 and not lookup.signed
    if not fits or (values.group_of is None and columns % groups):
        return None
    size = max(columns // groups, 1)
    return Numbers(values.data, 1, words, size, groups, values.group_of, lookup.bits, lookup.plus, lookup.order)


def _decoded(values: Values, wanted: Rows, columns: int, *, picked: bool) -> Numbers | None:
    if values.group_of is not None:
        return None
    found = values.at(wanted).squeeze(-1).contiguous()
    groups = found.shape[1]
    if columns % groups:
        return None
    return Numbers(found, groups if len(found) > 1 else 0, 1, columns // groups, groups, picked=picked)


@lru_cache(maxsize=4096)
def _strides(lookup: GroupLookup, shape: tuple[int, ...], rows: int) -> tuple[int, int, int] | None:
    """Return elements between rows and between groups, and the number of groups; None where a lookup does more.

    The numbers of the elements are sent through the lookup, too large for what unpacks bits or changes a sign to give
    another of them.
    """
    count = torch.Size(shape).numel()
    picked = lookup(torch.arange(_MARK, _MARK + count).view(shape), slice(0, rows)) - _MARK
    row = int(picked[1, 0] - picked[0, 0]) if len(picked) > 1 else 0
    group = int(picked[0, 1] - picked[0, 0]) if picked.shape[1] > 1 else 0
    expected = torch.arange(len(picked))[:, None] * row + torch.arange(picked.shape[1]) * group
    return (row, group, picked.shape[1]) if torch.equal(picked, expected) else None
