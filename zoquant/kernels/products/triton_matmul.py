"""`x Wᵀ` on a GPU from packed words: W is decoded where it is multiplied.

Weights are decoded in float32 and rounded to the dtype of the product, as in torch; sums are float32 and rounded to
nothing but the dtype of x. No sum is shared between programs, so the same input gives the same bits. A program holds
`rows` rows of W and `tokens` rows of x: with many tokens W is decoded again for each of them, so from `MANY` tokens
on decoding once and multiplying in torch moves less.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from zoquant.errors import ShapeError
from zoquant.kernels.products.operands import Operands
from zoquant.kernels.products.triton_decode import DTYPES, column_of, decode, pointers, row_of, settings
from zoquant.kernels.triton_launch import launch

__all__ = ["DTYPES", "MANY", "Tile", "decode", "multiply", "tile_of"]

MANY = 256
"""Tokens from which a matrix is decoded once and multiplied in torch."""


@dataclass(frozen=True)
class Tile:
    """What one program holds.

    Attributes:
        tokens: rows of x, 16 or more; powers of two all.
        rows: rows of W, 16 or more.
        columns: columns of both at a time, 32 or more.
        warps: warps of a program.
        stages: tiles that are loaded ahead.
    """

    tokens: int
    rows: int
    columns: int
    warps: int = 4
    stages: int = 3


def tile_of(tokens: int, rows: int, dtype: torch.dtype) -> Tile:
    """Return the tile of a product: fewer rows where a matrix has few, so that all of a GPU has work.

    It was not tuned on any GPU. What is loaded ahead in float32 fits the shared memory of consumer cards.
    """
    width = min(64, max(16, triton.next_power_of_2(tokens)))
    programs = -(-tokens // width) * rows // 64
    columns = 32 if dtype == torch.float32 else 64
    return Tile(width, 64 if programs >= 256 else 32, columns)


@triton.jit
def _inputs(x, token, tokens, stride, column, columns, DTYPE: tl.constexpr):
    """Return a tile of x, transposed, `[BLOCK_K, BLOCK_M]`."""
    at = token.to(tl.int64)[None, :] * stride + column[:, None]
    there = (token < tokens)[None, :] & (column < columns)[:, None]
    return tl.load(x + at, mask=there, other=0.0).to(DTYPE)


@triton.jit(do_not_specialize=["tokens"])
def _multiply(
    x, y, codes, numbers, table, row_order, tokens, rows, columns, stride,
    UNPACK: tl.constexpr, DECODE: tl.constexpr, FORM: tl.constexpr, FORMS: tl.constexpr, ORDER: tl.constexpr,
    RUN: tl.constexpr, DTYPE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(tokens, BLOCK_M)
    token = tl.program_id(0) % tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    number = tl.program_id(0) // tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    here = number < rows
    row = row_of(number, rows, row_order)
    sums = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for first in range(0, columns, BLOCK_K):
        column = column_of(first + tl.arange(0, BLOCK_K), ORDER)
        found = UNPACK(codes, row, here, first, columns, FORM, BLOCK_N, BLOCK_K)
        weight = DECODE(
            found, numbers, table, row, here, first, columns, FORM, FORMS, ORDER, RUN, BLOCK_N, BLOCK_K
        ).to(DTYPE)  # fmt: skip
        inputs = _inputs(x, token, tokens, stride, column, columns, DTYPE)
        sums = tl.dot(weight, inputs, sums, input_precision="ieee")
    place = token.to(tl.int64)[None, :] * rows + number[:, None]
    kept = (token < tokens)[None, :] & here[:, None]
    tl.store(y + place, sums.to(y.dtype.element_ty), mask=kept)


def multiply(x: Tensor, operands: Operands, dtype: torch.dtype, *, tile: Tile | None = None) -> Tensor:
    """Return `x Wᵀ`, `[tokens, rows]`, in the dtype of x.

    Args:
        x: float32, float16 or bfloat16 `[tokens, columns]` on the device of the matrix.
        operands: the matrix W.
        dtype: dtype that x and W are rounded to.
        tile: what one program holds; None for `tile_of`.

    Raises:
        ShapeError: x does not fit the matrix.
    """
    if x.dim() != 2 or x.shape[1] != operands.columns or x.dtype not in DTYPES:
        raise ShapeError(
            f"expected x [tokens, {operands.columns}] in float32, float16 or bfloat16, got {tuple(x.shape)} {x.dtype}."
        )
    tokens = len(x)
    x = x if x.stride(-1) == 1 else x.contiguous()
    y = torch.empty(tokens, operands.rows, dtype=x.dtype, device=x.device)
    if not tokens:
        return y
    tile = tile_of(tokens, operands.rows, dtype) if tile is None else tile
    grid = (triton.cdiv(tokens, tile.tokens) * triton.cdiv(operands.rows, tile.rows),)
    launch(
        _multiply, grid, x.device,
        x, y, *pointers(operands), operands.row_order, tokens, operands.rows, operands.columns, x.stride(0),
        **settings(operands, tile.columns), DTYPE=DTYPES[dtype], BLOCK_M=tile.tokens, BLOCK_N=tile.rows,
        BLOCK_K=tile.columns, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return y
