"""Packed blocks to weights, compiled: rows are looked up and numbers rounded on the way, and nothing is copied."""

import ctypes
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor
from torch.autograd import forward_ad

from zoquant.errors import ShapeError
from zoquant.kernels.build import kernel, library

RowDecoder = Callable[[Tensor, Sequence[Tensor], "Tensor | None", Tensor], None]
"""`decode_rows(codes, values, rows, out)`, see `row_decoder`."""

OUTPUTS = (torch.float32, torch.bfloat16)
"""Dtypes that weights are decoded to."""

LAYOUTS = {
    "Q4_0": (32, 16, 1), "Q4_1": (32, 16, 2), "Q5_0": (32, 20, 1), "Q5_1": (32, 20, 2), "Q8_0": (32, 32, 1),
    "Q4_K": (256, 140, 2), "Q5_K": (256, 172, 2), "Q6_K": (256, 208, 1), "IQ4_NL": (32, 16, 1),
}  # fmt: skip
"""ggml's name of a layout -> weights, bytes of packed words and fields of a group, in the order of decode.cpp."""

FIELDS = (torch.float16, torch.bfloat16, torch.float32)
"""Dtypes that continuous fields are read in."""

_P, _I, _L = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64
_ARGUMENTS = (_I, _P, _P, _I, _P, _I, _P, _L, _L, _P, _I)


@cache
def row_decoder(layout: str) -> RowDecoder | None:
    """Return the compiled decoder of a layout of ggml.

    Args:
        layout: ggml's name of the block type.

    Returns:
        A function of the packed words, uint8 `[rows, groups, bytes]`; one tensor a field, `[rows, groups]` in float16,
        bfloat16 or float32; the wanted rows, int64 `[n]`, or None for the first n; and `out`, float32 or bfloat16
        `[n, groups, block]`, which is overwritten. All lie on the CPU and are contiguous. It raises IndexError for a
        row that does not exist. None where the layout has no compiled decoder or nothing is compiled.
    """
    if layout not in LAYOUTS or library() is None:
        return None
    run = kernel("decode", *_ARGUMENTS)

    def decode(codes: Tensor, values: Sequence[Tensor], rows: Tensor | None, out: Tensor) -> None:
        _check_shapes(layout, codes, values, rows, out)
        matrix, order = block_matrix(layout, codes, values, rows)
        run(*matrix, out.data_ptr(), out.dtype == torch.bfloat16)
        del order

    return decode


def decodable(codes: Tensor, values: Sequence[Tensor]) -> bool:
    """Whether compiled code may read packed words and fields: plain memory on the CPU, no derivative asked for."""
    if not (codes.is_cpu and codes.is_contiguous()) or getattr(forward_ad, "_current_level", -1) >= 0:
        return False
    return all(
        value.is_cpu and value.is_contiguous() and value.dtype in FIELDS and not value.requires_grad for value in values
    )


def block_matrix(
    layout: str, codes: Tensor, values: Sequence[Tensor], rows: Tensor | None
) -> tuple[tuple[int | None, ...], Tensor | None]:
    """Return rows of a matrix as kernels take it: layout, words, two fields and their dtypes, order, rows and groups.

    Beside it stands what has to be kept alive until the kernel is done.
    """
    order = None if rows is None else checked_rows(rows, len(codes))
    fields = [part for value in (*values, *values)[:2] for part in (value.data_ptr(), FIELDS.index(value.dtype))]
    wanted = (None, len(codes)) if order is None else (order.data_ptr(), len(order))
    return (list(LAYOUTS).index(layout), codes.data_ptr(), *fields, *wanted, codes.shape[1]), order


def blocks_fit(layout: str, codes: Tensor, values: Sequence[Tensor]) -> bool:
    """Whether packed words and fields are those of a layout: `[rows, groups, bytes]` and `[rows, groups]`."""
    _, size, fields = LAYOUTS[layout]
    return (
        codes.shape[2:] == (size,) and len(values) == fields and all(value.shape == codes.shape[:2] for value in values)
    )


def _check_shapes(layout: str, codes: Tensor, values: Sequence[Tensor], rows: Tensor | None, out: Tensor) -> None:
    block, size, fields = LAYOUTS[layout]
    count = len(codes) if rows is None else len(rows)
    if not blocks_fit(layout, codes, values) or out.shape != (count, codes.shape[1], block):
        raise ShapeError(
            f"{layout}: expected packed words [rows, groups, {size}], {fields} fields [rows, groups] and an output "
            f"[{count}, groups, {block}], got {tuple(codes.shape)}, {[tuple(value.shape) for value in values]} and "
            f"{tuple(out.shape)}. Split words and fields from the same blocks."
        )


def checked_rows(rows: Tensor, count: int) -> Tensor:
    """Return int64 `rows` with negative ones counted from the end, contiguous.

    Raises:
        IndexError: one of them is not below `count`.
    """
    if rows.numel() and not (-count <= int(rows.min()) and int(rows.max()) < count):
        raise IndexError(f"expected rows from {-count} to {count - 1}, got {int(rows.min())} to {int(rows.max())}")
    return rows.remainder(count).contiguous() if rows.numel() else rows
