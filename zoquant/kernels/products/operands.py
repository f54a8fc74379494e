"""A packed matrix as a kernel reads it: where its codes lie, and the numbers that turn them into weights.

`zoquant.native` says this of its matrices; `zoquant.kernels.products.triton_decode` and
`zoquant.kernels.products.triton_matmul` read it.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

HALVES = 32
"""The order of blocks of 32 whose bytes hold weights i and i + 16, as ggml's Q4_0 and Q4_1."""


@dataclass(frozen=True)
class Shared:
    """Rows that share their words: a word holds one code of each of some rows, and stands for one column of them.

    Row r has row `r // (inner · lanes) · inner + r % inner` of the words, and of each word the bits from
    `shifts[r // inner % lanes]` on, with as many lanes as shifts.

    Attributes:
        shifts: the lowest bit of each code of a word.
        inner: how far apart the rows of a word are.
    """

    shifts: tuple[int, ...]
    inner: int


@dataclass(frozen=True)
class Words:
    """Codes of 1, 2, 4 or 8 bits in int32 words along the columns, the lowest bits of a word first.

    Attributes:
        data: the words; where they are shared int32 or uint8.
        row: elements of `data` between two rows of words.
        step: elements of `data` between two words of a row.
        bits: bits of a code.
        signed: whether codes of 8 bits have a sign.
        offset: what is taken off every code.
        order: a code at place p of the words belongs to column p XOR `order`, or for `HALVES` to that of ggml's blocks.
        shared: how rows share words; None where each has words of its own.
    """

    data: Tensor
    row: int
    step: int
    bits: int
    signed: bool = False
    offset: int = 0
    order: int = 0
    shared: Shared | None = None


BLOCKS: dict[str, tuple[int, bool, int, int]] = {
    "Q4_0": (4, False, 8, HALVES), "Q4_1": (4, False, 0, HALVES), "Q8_0": (8, True, 0, 0),
}  # fmt: skip
"""ggml's name of a layout of 32 weights -> bits, sign, offset and order of its codes."""


def words_of_blocks(layout: str, codes: Tensor) -> Words | None:
    """Return the codes of blocks as words.

    Args:
        layout: ggml's name of the block type.
        codes: uint8 `[rows, groups, bytes]`.

    Returns:
        None for a layout that has no plain codes.
    """
    if layout not in BLOCKS or not codes.is_contiguous() or codes.data_ptr() % 4:
        return None
    words = codes.flatten(1).view(torch.int32)
    return Words(words, words.shape[1], 1, *BLOCKS[layout])


@dataclass(frozen=True)
class Vectors:
    """Codes that number the vectors of codebooks.

    Attributes:
        data: `[rows / height, columns / width, books]`, contiguous, of any integer dtype; negative codes wrap around.
        books: number of codebooks.
        entries: vectors of a codebook, a power of two.
        height: rows that a vector covers.
        width: columns that a vector covers, a power of two.
    """

    data: Tensor
    books: int
    entries: int
    height: int
    width: int


@dataclass(frozen=True)
class Numbers:
    """Numbers that lie over the rows and columns of a matrix: that of row r and group g is `data[r · row + g · group]`.

    Attributes:
        data: the numbers; with `bits` int32 words, whose integers are packed along the rows.
        row: elements between two rows, or two words of rows.
        group: elements between two groups of columns.
        size: columns of a group, where groups are runs.
        groups: number of groups.
        group_of: group of each column, int64 `[columns]`; None where groups are runs.
        bits: bits of an integer, 0 where nothing is packed.
        plus: what is added to a whole word before it is unpacked.
        order: which integer of a word belongs to each of its rows, lowest bits first; empty where they agree.
        picked: whether the rows are those that were asked for, in their order, and not those of the matrix.
    """

    data: Tensor
    row: int
    group: int
    size: int
    groups: int
    group_of: Tensor | None = None
    bits: int = 0
    plus: int = 0
    order: tuple[int, ...] = ()
    picked: bool = False


@dataclass(frozen=True)
class Operands:
    """One matrix.

    Attributes:
        kind: `"affine"`: `(code − zero) · scale − shift + minimum`; `"table"`: `table[code] · scale · scale`;
            `"vector"`: `scale · Σ table[book, code]`.
        rows: rows of the matrix.
        columns: columns of the matrix.
        codes: its codes.
        numbers: for `"affine"` scale, zero, shift and minimum, else the scales; None for what is not there.
        table: float32 `[levels]`, or the codebooks `[books, entries, height, width]`; None for `"affine"`.
        row_order: for every row of the matrix that of codes and numbers, int64 `[rows]`; None where they agree.
    """

    kind: Literal["affine", "table", "vector"]
    rows: int
    columns: int
    codes: Words | Vectors
    numbers: tuple[Numbers | None, ...]
    table: Tensor | None = None
    row_order: Tensor | None = None


def run_of(operands: Operands, longest: int) -> int:
    """Return how many neighbouring codes share all numbers: a power of two, at most `longest`."""
    run = longest
    for numbers in filter(None, operands.numbers):
        run = min(run, numbers.size & -numbers.size) if numbers.group_of is None else 1
    order = operands.codes.order if isinstance(operands.codes, Words) else 0
    block = HALVES if order == HALVES else order + 1
    return run if run >= block else 1
