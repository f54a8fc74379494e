"""Products and lookups that autograd can go back through: what is kept for it is the input, never a weight.

The gradient by the matrix exists a tile at a time, as the matrix itself does, and goes straight on to the fields: to
those that `PackedWeight.moving` names. Rounding to the dtype of the file is gone through as if it were not there.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from zoquant.kernels.workspace import scratch
from zoquant.native.packed import TILE, PackedWeight, Rows
from zoquant.native.packed import product as multiply


def tracked(packed: PackedWeight, x: Tensor | None = None) -> bool:
    """Whether autograd asks for a backward, by what goes in or by a field that moves."""
    if not torch.is_grad_enabled() or getattr(forward_ad, "_current_level", -1) >= 0:
        return False
    given = [*packed.moving.values(), *([] if x is None else [x])]
    return any(each.requires_grad and not torch._C._functorch.is_functorch_wrapped_tensor(each) for each in given)


def product(x: Tensor, packed: PackedWeight, dtype: torch.dtype, rows: Rows | None = None) -> Tensor:
    """Return `x Wᵀ` or some of its columns, for autograd.

    Args:
        x: `[tokens, columns]`.
        packed: the matrix W.
        dtype: dtype that x and W are rounded to, forward and backward.
        rows: the wanted rows of W; None for all.
    """
    y: Tensor = _Product.apply(x, packed, dtype, rows, *packed.moving.values())  # type: ignore[no-untyped-call]
    return y


def lookup(ids: Tensor, packed: PackedWeight) -> Tensor:
    """Return the rows of `ids`, float32 `[n, columns]`, for autograd.

    Args:
        ids: int64 `[n]`.
        packed: the matrix.
    """
    rows: Tensor = _Lookup.apply(ids, packed, *packed.moving.values())  # type: ignore[no-untyped-call]
    return rows


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, packed: PackedWeight, dtype: torch.dtype, rows: Rows | None, *by: Tensor
    ) -> Tensor:
        ctx.packed, ctx.dtype, ctx.rows = packed, dtype, rows
        ctx.tokens, ctx.x_dtype, ctx.names = len(x), x.dtype, list(packed.moving)
        ctx.save_for_backward(*([x] if any(ctx.needs_input_grad[4:]) else []))
        return packed.product(x, dtype) if rows is None else multiply(x, packed.decode_rows_to(rows, dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (dy,), packed, dtype = gradients, ctx.packed, ctx.dtype
        by_fields = _zeros(packed, ctx.names, ctx.needs_input_grad[4:])
        x = ctx.saved_tensors[0].to(dtype) if by_fields else None
        dy, used = _used(dy.to(dtype))
        x = x if x is None or used is None else x[used]
        by_x = torch.zeros(len(dy), packed.columns, device=dy.device) if ctx.needs_input_grad[0] else None
        for rows, columns in _tiles(packed, ctx.rows):
            part = dy[:, columns]
            if by_x is not None:
                _add_product(by_x, part, packed.decode_rows_to(rows, dtype))
            if x is not None:
                by_tile = scratch((part.shape[1], packed.columns), dtype, x.device, "gradient")
                packed.add_field_gradients(rows, torch.mm(part.t(), x, out=by_tile).float(), by_fields)
        if by_x is not None and used is not None:
            by_x = by_x.new_zeros(ctx.tokens, packed.columns).index_copy_(0, used, by_x)
        return None if by_x is None else by_x.to(ctx.x_dtype), None, None, None, *map(by_fields.get, ctx.names)


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ids: Tensor, packed: PackedWeight, *by: Tensor) -> Tensor:
        ctx.packed, ctx.names = packed, list(packed.moving)
        ctx.save_for_backward(ids)
        return packed.decode_rows_to(ids, torch.float32).clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (dy,), (ids,), packed = gradients, ctx.saved_tensors, ctx.packed
        by_fields = _zeros(packed, ctx.names, ctx.needs_input_grad[2:])
        step = max(1, TILE // packed.columns)
        for start in range(0, len(ids), step):
            part = dy[start : start + step].float().contiguous()
            packed.add_field_gradients(ids[start : start + step], part, by_fields)
        return None, None, *map(by_fields.get, ctx.names)


def _used(dy: Tensor) -> tuple[Tensor, Tensor | None]:
    """Leave out the rows of a gradient that are zero, if they are most of them: tokens of no account to the loss.

    In the last layer of a classifier that is all of a text but its end.
    """
    rows = dy.any(1).nonzero().squeeze(1)
    return (dy[rows], rows) if 2 * len(rows) <= len(dy) else (dy, None)


def _add_product(sums: Tensor, left: Tensor, right: Tensor) -> None:
    """Add `left right` to float32 sums, whatever the dtype of the factors."""
    if right.dtype == torch.float32:
        sums.addmm_(left, right)
    else:
        sums += left @ right


def _zeros(packed: PackedWeight, names: Sequence[str], wanted: Sequence[bool]) -> dict[str, Tensor]:
    """Return zeros for each field whose gradient is asked for, float32 in its shape."""
    return {
        name: torch.zeros(packed.value(name).shape, dtype=torch.float32, device=packed.device)
        for name, asked in zip(names, wanted, strict=True)
        if asked
    }


def _tiles(packed: PackedWeight, rows: Rows | None) -> Iterator[tuple[Rows, slice]]:
    """Yield some rows of the matrix at a time, and the columns of the product that are theirs."""
    if rows is None:
        for tile in packed.row_tiles():
            yield tile, tile
    else:
        yield rows, slice(None)
