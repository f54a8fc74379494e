"""The gradient by the fields of packed blocks from that by their weights, compiled: nothing is decoded to memory."""

import ctypes
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from zoquant.errors import ShapeError
from zoquant.kernels.build import kernel, library
from zoquant.kernels.products.decode import LAYOUTS, checked_rows

RowContractor = Callable[[Tensor, "Tensor | None", Tensor], Tensor]
"""`contract_rows(codes, rows, gradient)`, see `row_contractor`."""

_P, _I, _L = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64


@cache
def row_contractor(layout: str) -> RowContractor | None:
    """Return what contracts the gradient by weights to that by fields, for a layout of ggml.

    Args:
        layout: ggml's name of the block type.

    Returns:
        A function of the packed words, uint8 `[rows, groups, bytes]`; the wanted rows, int64 `[n]`, or None for the
        first n; and the gradient by their weights, float32 `[n, groups, block]`. All lie on the CPU and are contiguous.
        It returns the gradient by each field, float32 `[fields, n, groups]`, and raises IndexError for a row that does
        not exist. None where the layout has no compiled code or nothing is compiled.
    """
    if layout not in LAYOUTS or library() is None:
        return None
    run, number = kernel("contract", _I, _P, _P, _L, _L, _P, _P), list(LAYOUTS).index(layout)
    block, size, fields = LAYOUTS[layout]

    def contract(codes: Tensor, rows: Tensor | None, gradient: Tensor) -> Tensor:
        count = len(codes) if rows is None else len(rows)
        if codes.shape[2:] != (size,) or gradient.shape != (count, codes.shape[1], block):
            raise ShapeError(
                f"{layout}: expected packed words [rows, groups, {size}] and a gradient [{count}, groups, {block}], "
                f"got {tuple(codes.shape)} and {tuple(gradient.shape)}. Split words and fields from the same blocks."
            )
        order = None if rows is None else checked_rows(rows, len(codes))
        sums = torch.empty(fields, count, codes.shape[1])
        wanted = None if order is None else order.data_ptr()
        places = (wanted, count, codes.shape[1], gradient.data_ptr(), sums.data_ptr())
        run(number, codes.data_ptr(), *places)
        return sums

    return contract


def contractible(codes: Tensor, gradient: Tensor) -> bool:
    """Whether compiled code may read packed words and a gradient: plain memory on the CPU."""
    return codes.is_cpu and codes.is_contiguous() and gradient.is_contiguous() and gradient.dtype == torch.float32
