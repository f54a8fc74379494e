"""`x Wᵀ` on the matrix unit of a CPU, compiled: W is decoded where it is multiplied, in bfloat16, and sums are float32.

`zoquant.native.packed.product` is the same in torch. Both round x and W to bfloat16; this one adds in an order of its
own and rounds the sum no more than the dtype of x asks for. A row of the product depends on its row of x alone: neither
the rows beside it nor the number of threads change a bit.
"""

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from zoquant.errors import ShapeError, UnsupportedLayoutError
from zoquant.kernels.build import kernel, library
from zoquant.kernels.products.decode import LAYOUTS, block_matrix, blocks_fit


@dataclass(frozen=True)
class Factors:
    """Factors on the columns of x and on those of the product, for each of the blocks that the rows of x belong to.

    Attributes:
        into: on the columns of x, float32 `[blocks, columns / n]`, where n neighbours share one.
        out: on the columns of the product, float32 `[blocks, rows / m]`, likewise.
        block: the block of each row of x, int32 `[rows of x]`; None where the rows are cut into equal blocks of
            neighbours.
    """

    into: Tensor
    out: Tensor
    block: Tensor | None = None


RowMultiplier = Callable[[Tensor, Tensor, Sequence[Tensor], "Tensor | None", "Factors | None"], Tensor]
"""`multiply_rows(x, codes, values, rows, factors)`, see `row_multiplier`."""

COLUMNS = 32
"""A matrix has a multiple of so many columns."""

INPUTS = (torch.float32, torch.bfloat16)
"""Dtypes of x."""

_P, _I, _L = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64
_ARGUMENTS = (_I, _P, _P, _I, _P, _I, _P, _L, _L, _P, _I, _L, _L, _P, _I, _P, _L, _L, _P, _L, _P, _L)
_PLAIN = len(LAYOUTS)


def multiplies(x: Tensor, compute_dtype: torch.dtype) -> bool:
    """Whether compiled code may multiply x: in bfloat16, plain memory on the CPU, no derivative asked for."""
    if compute_dtype != torch.bfloat16 or not x.is_cpu or x.dtype not in INPUTS or not _ready():
        return False
    return not differentiated(x)


def differentiated(x: Tensor) -> bool:
    """Whether a derivative by x is asked for, backward, forward or by a transform of torch.func."""
    if torch.is_grad_enabled() and x.requires_grad:
        return True
    return getattr(forward_ad, "_current_level", -1) >= 0 or torch._C._functorch.is_functorch_wrapped_tensor(x)


@cache
def row_multiplier(layout: str) -> RowMultiplier | None:
    """Return the compiled product with matrices of a layout of ggml.

    Args:
        layout: ggml's name of the block type.

    Returns:
        A function of x, `[tokens, columns]`, for which `multiplies` holds; the packed words and fields as
        `zoquant.kernels.products.decode.row_decoder` takes them; the wanted rows, int64 `[n]`, or None for all; and
        factors, or None. It returns `[tokens, n]` in the dtype of x. It raises IndexError for a row that does not
        exist, and ShapeError where factors do not fit. None where the layout has no compiled product, or nothing is
        compiled, or the processor has no matrix unit.
    """
    if layout not in LAYOUTS or not _ready():
        return None
    block, size, fields = LAYOUTS[layout]

    def multiply(
        x: Tensor, codes: Tensor, values: Sequence[Tensor], rows: Tensor | None, factors: Factors | None
    ) -> Tensor:
        if not blocks_fit(layout, codes, values) or x.dim() != 2 or x.shape[-1] != codes.shape[1] * block:
            raise ShapeError(
                f"{layout}: expected packed words [rows, groups, {size}], {fields} fields [rows, groups] and x "
                f"[tokens, {block} * groups], got {tuple(codes.shape)}, {[tuple(value.shape) for value in values]} and "
                f"{tuple(x.shape)}. Split words and fields from the same blocks."
            )
        matrix, order = block_matrix(layout, codes, values, rows)
        return _run(x, len(codes) if order is None else len(order), factors, *matrix)

    return multiply


def multiply_plain(x: Tensor, weight: Tensor, factors: Factors | None = None) -> Tensor:
    """Return `x Wᵀ`, `[tokens, rows]`, in the dtype of x.

    Args:
        x: `[tokens, columns]`, for which `multiplies` holds.
        weight: bfloat16 `[rows, columns]` on the CPU, contiguous, columns a multiple of 32.
        factors: on the columns of x and on those of the product, or None.

    Raises:
        ShapeError: they do not fit together.
    """
    rows, columns = weight.shape
    plain = weight.dtype == torch.bfloat16 and weight.is_cpu and weight.is_contiguous()
    if not plain or columns % COLUMNS or x.dim() != 2 or x.shape[-1] != columns:
        raise ShapeError(
            f"expected a contiguous bfloat16 matrix on the CPU of a multiple of {COLUMNS} columns and x "
            f"[tokens, columns], got {weight.dtype} {tuple(weight.shape)} on {weight.device} and {tuple(x.shape)}."
        )
    return _run(x, rows, factors, _PLAIN, weight.data_ptr(), None, 0, None, 0, None, rows, columns // COLUMNS)


def _run(x: Tensor, rows: int, factors: Factors | None, *weights: Any) -> Tensor:
    if not _ready():
        raise UnsupportedLayoutError("no compiled product here: ask `multiplies` first, or multiply with torch.")
    x = x if x.stride(-1) == 1 else x.contiguous()
    y = torch.empty(len(x), rows, dtype=x.dtype)
    if not (y.numel() and x.shape[1]):
        return y.zero_()
    half = x.dtype == torch.bfloat16
    scaling, kept = _scaling(x, rows, factors)
    run, place = kernel("matmul", *_ARGUMENTS), (x.data_ptr(), half, len(x), x.stride(0), y.data_ptr(), half)
    run(*weights, *place, *scaling)
    del kept
    return y


def spread(factors: Tensor, count: int) -> Tensor:
    """Return factors that neighbours share for each of them: `[blocks, count / n]` as `[blocks, count]`."""
    width = count // factors.shape[1]
    return factors if width == 1 else factors.repeat_interleave(width, 1)


def _scaling(x: Tensor, rows: int, factors: Factors | None) -> tuple[tuple[int | None, ...], Factors | None]:
    """Return the addresses of factors, their strides, and which block has which rows; and what keeps them alive."""
    if factors is None:
        return (None, 0, 1, None, 0, None, 0), None
    _check_factors(x, rows, factors)
    into, width = factors.into, x.shape[1] // factors.into.shape[1]
    into, width = (into, width) if width % 16 == 0 else (spread(into, x.shape[1]), 1)
    out, block = spread(factors.out, rows), None if factors.block is None else factors.block.data_ptr()
    addresses = into.data_ptr(), into.stride(0), width, out.data_ptr(), out.stride(0), block, len(x) // len(into)
    return addresses, replace(factors, into=into, out=out)


def _check_factors(x: Tensor, rows: int, factors: Factors) -> None:
    pair, block = (factors.into, factors.out), factors.block
    fits = all(
        each.dim() == 2 and min(each.shape) > 0 and count % each.shape[1] == 0 and len(each) == len(factors.into)
        for each, count in zip(pair, (x.shape[1], rows), strict=True)
    )
    plain = all(each.is_cpu and each.stride(-1) == 1 and each.dtype == torch.float32 for each in pair)
    if not fits or not plain or not _assigns(block, len(x), len(factors.into)):
        found = [(each.dtype, tuple(each.shape)) for each in (*pair, *(() if block is None else (block,)))]
        raise ShapeError(
            f"factors: expected float32 [blocks, n] and [blocks, m] on the CPU, n a divisor of {x.shape[1]}, m of "
            f"{rows}, with blocks that divide {len(x)} rows or an int32 block below their number for each, got {found}."
        )


def _assigns(block: Tensor | None, rows: int, blocks: int) -> bool:
    """Whether every row has a block."""
    if block is None:
        return rows % blocks == 0
    fits = block.is_cpu and block.dtype == torch.int32 and block.shape == (rows,) and block.is_contiguous()
    return fits and int(block.min()) >= 0 and int(block.max()) < blocks


@cache
def _ready() -> bool:
    """Whether the product is compiled and Linux lends this process the matrix unit."""
    compiled = library()
    return compiled is not None and bool(compiled.zoquant_matmul_ready())
