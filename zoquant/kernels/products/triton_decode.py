"""Packed words to weights on a GPU, the bits of the torch code: what the decoding and the multiplying kernel share.

A tile has `BLOCK_N` rows of the matrix and `BLOCK_K` codes of each, in the order of the words. `unpack_*` reads the
codes, `decode_*` turns them into float32 weights. Every product and every sum is rounded on its own, as torch does it.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from zoquant.kernels.products.operands import Numbers, Operands, Vectors, Words, run_of
from zoquant.kernels.triton_launch import launch

DTYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
"""Dtypes that weights are rounded to."""

ROWS, COLUMNS = 32, 128
"""Tile of the decoding kernel."""


@triton.jit
def column_of(place, ORDER: tl.constexpr):
    """Return the column of a code, see `zoquant.kernels.products.operands.Words`."""
    if ORDER == 32:
        column = place // 32 * 32 + place % 32 // 2 + place % 2 * 16
    else:
        column = place ^ ORDER
    return column


@triton.jit
def numbers_at(
    numbers, row, here, first, columns, FORM: tl.constexpr, ORDER: tl.constexpr, RUN: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Return the numbers of a tile, float32 `[BLOCK_N, BLOCK_K / RUN, 1]`. `FORM` is that of `_form`."""
    column = column_of(first + tl.arange(0, BLOCK_K // RUN) * RUN, ORDER)
    there = here[:, None] & (column < columns)[None, :]
    if FORM[2]:
        group = tl.load(numbers[4] + column, mask=column < columns, other=0)
    else:
        group = column // numbers[3]
    if FORM[0] == 0:
        at = (row - numbers[5])[:, None] * numbers[1] + group[None, :] * numbers[2]
        found = tl.load(numbers[0] + at, mask=there, other=0).to(tl.float32)
    else:
        PER: tl.constexpr = 32 // FORM[0]
        at = (row // PER)[:, None] * numbers[1] + group[None, :] * numbers[2]
        word = tl.load(numbers[0] + at, mask=there, other=0) + FORM[1]
        found = ((word >> (row % PER * FORM[0]).to(tl.int32)[:, None]) & ((1 << FORM[0]) - 1)).to(tl.float32)
    return found[:, :, None]


@triton.jit
def unpack_words(
    codes, row, here, first, columns, FORM: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr
):  # fmt: skip
    """Return codes, int32 `[BLOCK_N, BLOCK_K]`. `FORM` is bits, sign and offset."""
    PER: tl.constexpr = 32 // FORM[0]
    number = first // PER + tl.arange(0, BLOCK_K // PER)
    there = here[:, None] & (number * PER < columns)[None, :]
    word = tl.load(codes[0] + row[:, None] * codes[1] + number[None, :] * codes[2], mask=there, other=0)
    shift = tl.arange(0, PER) * FORM[0]
    found = (word[:, :, None] >> shift[None, None, :]) & ((1 << FORM[0]) - 1)
    if FORM[1]:
        found = (found ^ 128) - 128
    return tl.reshape(found - FORM[2], [BLOCK_N, BLOCK_K])


@triton.jit
def unpack_vectors(
    codes, row, here, first, columns, FORM: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr
):  # fmt: skip
    """Return a tuple of the codes of each codebook, int32 `[BLOCK_N, BLOCK_K / width]`.

    `FORM` is books, entries, height and width.
    """
    BOOKS: tl.constexpr = FORM[0]
    ENTRIES: tl.constexpr = FORM[1]
    HEIGHT: tl.constexpr = FORM[2]
    WIDTH: tl.constexpr = FORM[3]
    vector = first // WIDTH + tl.arange(0, BLOCK_K // WIDTH)
    there = here[:, None] & (vector * WIDTH < columns)[None, :]
    at = ((row // HEIGHT)[:, None] * (columns // WIDTH) + vector[None, :]) * BOOKS
    found = ()
    for book in tl.static_range(BOOKS):
        code = tl.load(codes[0] + at + book, mask=there, other=0).to(tl.int32)
        found = found + (code & (ENTRIES - 1),)  # type: ignore[assignment]
    return found


@triton.jit
def decode_affine(
    codes, numbers, table, row, here, first, columns, FORM: tl.constexpr, FORMS: tl.constexpr, ORDER: tl.constexpr,
    RUN: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Return `(code − zero) · scale − shift + minimum`, float32 `[BLOCK_N, BLOCK_K]`."""
    weight = tl.reshape(codes, [BLOCK_N, BLOCK_K // RUN, RUN]).to(tl.float32)
    if FORMS[1][0] >= 0:
        weight = weight - numbers_at(numbers[1], row, here, first, columns, tl.constexpr(FORMS[1]), ORDER, RUN, BLOCK_K)
    weight = weight * numbers_at(numbers[0], row, here, first, columns, tl.constexpr(FORMS[0]), ORDER, RUN, BLOCK_K)
    if FORMS[2][0] >= 0:
        weight = weight - numbers_at(numbers[2], row, here, first, columns, tl.constexpr(FORMS[2]), ORDER, RUN, BLOCK_K)
    if FORMS[3][0] >= 0:
        weight = weight + numbers_at(numbers[3], row, here, first, columns, tl.constexpr(FORMS[3]), ORDER, RUN, BLOCK_K)
    return tl.reshape(weight, [BLOCK_N, BLOCK_K])


@triton.jit
def scaled(
    weight, numbers, row, here, first, columns, FORMS: tl.constexpr, ORDER: tl.constexpr, RUN: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Return weights times every one of the numbers, one after the other, `[BLOCK_N, BLOCK_K]`."""
    weight = tl.reshape(weight, [BLOCK_N, BLOCK_K // RUN, RUN])
    COUNT: tl.constexpr = len(FORMS)
    for each in tl.static_range(COUNT):
        weight = weight * numbers_at(
            numbers[each], row, here, first, columns, tl.constexpr(FORMS[each]), ORDER, RUN, BLOCK_K
        )
    return tl.reshape(weight, [BLOCK_N, BLOCK_K])


@triton.jit
def decode_table(
    codes, numbers, table, row, here, first, columns, FORM: tl.constexpr, FORMS: tl.constexpr, ORDER: tl.constexpr,
    RUN: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Return `table[code]` times the scales, float32 `[BLOCK_N, BLOCK_K]`."""
    return scaled(tl.load(table + codes), numbers, row, here, first, columns, FORMS, ORDER, RUN, BLOCK_N, BLOCK_K)


@triton.jit
def decode_vector(
    codes, numbers, table, row, here, first, columns, FORM: tl.constexpr, FORMS: tl.constexpr, ORDER: tl.constexpr,
    RUN: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Return the sum of the vectors times the scale, float32 `[BLOCK_N, BLOCK_K]`."""
    BOOKS: tl.constexpr = FORM[0]
    ENTRIES: tl.constexpr = FORM[1]
    HEIGHT: tl.constexpr = FORM[2]
    WIDTH: tl.constexpr = FORM[3]
    weight = tl.zeros([BLOCK_N, BLOCK_K // WIDTH, WIDTH], tl.float32)
    within, element = (row % HEIGHT).to(tl.int32)[:, None], tl.arange(0, WIDTH)
    for book in tl.static_range(BOOKS):
        entry = ((codes[book] + book * ENTRIES) * HEIGHT + within) * WIDTH
        weight = weight + tl.load(table + entry[:, :, None] + element[None, None, :]).to(tl.float32)
    return scaled(weight, numbers, row // HEIGHT, here, first, columns, FORMS, ORDER, RUN, BLOCK_N, BLOCK_K)


@triton.jit
def row_of(number, rows, row_order):
    """Return the rows of codes and numbers that belong to rows of the matrix, int64."""
    if row_order is None:
        row = number.to(tl.int64)
    else:
        row = tl.load(row_order + number, mask=number < rows, other=0)
    return row


@triton.jit(do_not_specialize=["start", "stop"])
def _decode(
    out, codes, numbers, table, row_order, start, stop, columns,
    UNPACK: tl.constexpr, DECODE: tl.constexpr, FORM: tl.constexpr, FORMS: tl.constexpr, ORDER: tl.constexpr,
    RUN: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    number = start + tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    here, first = number < stop, tl.program_id(1) * BLOCK_K
    row = row_of(number, stop, row_order)
    found = UNPACK(codes, row, here, first, columns, FORM, BLOCK_N, BLOCK_K)
    weight = DECODE(
        found, numbers, table, row, here, first, columns, FORM, FORMS, ORDER, RUN, BLOCK_N, BLOCK_K
    )  # fmt: skip
    column = column_of(first + tl.arange(0, BLOCK_K), ORDER)
    place = (number - start).to(tl.int64)[:, None] * columns + column[None, :]
    tl.store(out + place, weight.to(out.dtype.element_ty), mask=here[:, None] & (column < columns)[None, :])


_UNPACKS = {"affine": unpack_words, "table": unpack_words, "vector": unpack_vectors}
_DECODERS = {"affine": decode_affine, "table": decode_table, "vector": decode_vector}


def decode(operands: Operands, start: int, out: Tensor) -> Tensor:
    """Decode neighbouring rows of a matrix and round them, once, from float32.

    Args:
        operands: the matrix.
        start: the first row.
        out: float32, float16 or bfloat16 `[n, columns]`, contiguous, overwritten.

    Returns:
        `out`.
    """
    grid = (triton.cdiv(len(out), ROWS), triton.cdiv(operands.columns, COLUMNS))
    launch(
        _decode, grid, out.device,
        out, *pointers(operands, start), operands.row_order, start, start + len(out), operands.columns,
        **settings(operands, COLUMNS), BLOCK_N=ROWS, BLOCK_K=COLUMNS,
    )  # fmt: skip
    return out


def pointers(operands: Operands, start: int = 0) -> tuple[Any, ...]:
    """Return codes, numbers and table as the kernels take them."""
    codes = operands.codes
    words = (codes.data, codes.row, codes.step) if isinstance(codes, Words) else (codes.data,)
    first = next(filter(None, operands.numbers))
    return words, tuple(_pointer(numbers or first, start) for numbers in operands.numbers), operands.table


def _pointer(numbers: Numbers, start: int) -> tuple[Any, ...]:
    groups = numbers.data if numbers.group_of is None else numbers.group_of
    return numbers.data, numbers.row, numbers.group, numbers.size, groups, start if numbers.picked else 0


def _form(numbers: Numbers | None) -> tuple[int, int, bool]:
    """Return bits of a packed integer, 0 for plain numbers, -1 for none; what is added; whether groups are named."""
    return (-1, 0, False) if numbers is None else (numbers.bits, numbers.plus, numbers.group_of is not None)


def settings(operands: Operands, block: int) -> dict[str, Any]:
    """Return what a launch is compiled for: the layout, and no fused multiply-add."""
    return {
        "UNPACK": _UNPACKS[operands.kind], "DECODE": _DECODERS[operands.kind], "FORM": _form_of_codes(operands.codes),
        "FORMS": tuple(_form(numbers) for numbers in operands.numbers),
        "ORDER": operands.codes.order if isinstance(operands.codes, Words) else 0, "RUN": run_of(operands, block),
        "enable_fp_fusion": False,
    }  # fmt: skip


def _form_of_codes(codes: Words | Vectors) -> tuple[int, ...]:
    """Return what `unpack_words` or `unpack_vectors` is compiled for."""
    if isinstance(codes, Words):
        return codes.bits, codes.signed, codes.offset
    return codes.books, codes.entries, codes.height, codes.width
