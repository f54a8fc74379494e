"""Matrices of packed words to weights on a CPU, compiled: affine codes and tables, numbers beside them in any groups.

`zoquant.native` describes a matrix by `Operands`, in the order of its file, so nothing is repacked and nothing kept.
"""

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from zoquant.errors import UnsupportedLayoutError
from zoquant.kernels.build import kernel, library
from zoquant.kernels.products.decode import FIELDS
from zoquant.kernels.products.operands import HALVES, Numbers, Operands, Shared, Words

READ = (*FIELDS, torch.int32, torch.int16, torch.int8, torch.uint8)
"""Dtypes of numbers, as words.h counts them."""

SUBTRACT, MULTIPLY, ADD = range(3)
_wrapped = torch._C._functorch.is_functorch_wrapped_tensor
_P, _L = ctypes.c_void_p, ctypes.c_int64
_ARGUMENTS = (_P, _P, _L, _L, _P, _L)
_Integers = _L * 32
_IN_ORDER = _Integers(*range(32))


def _integers(names: str) -> list[tuple[str, Any]]:
    return [(name, _L) for name in names.split()]


class _Numbers(ctypes.Structure):
    _fields_ = [
        ("data", _P), ("group_of", _P),
        *_integers("dtype row group groups size bits plus picked operation"), ("order", _Integers),
    ]  # fmt: skip


class _Codes(ctypes.Structure):
    _fields_ = [
        ("words", _P), *_integers("size row step rows bits is_signed offset high_first lanes inner"),
        ("shifts", _Integers),
    ]  # fmt: skip


class _Matrix(ctypes.Structure):
    _fields_ = [
        ("codes", _Codes), ("numbers", _Numbers * 4), ("count", _L), ("table", _P), *_integers("levels columns")
    ]  # fmt: skip


def decodes(operands: Operands) -> bool:
    """Whether compiled code reads a matrix: plain memory on the CPU, no derivative asked for, all in bounds."""
    codes, table = operands.codes, operands.table
    if library() is None or not isinstance(codes, Words) or codes.order == HALVES or operands.row_order is not None:
        return False
    if table is not None and (len(table) < 1 << codes.bits or table.dtype != torch.float32):
        return False
    numbers = [each for each in operands.numbers if each is not None]
    groups = [each.group_of for each in numbers if each.group_of is not None]
    tensors = [codes.data, *(each.data for each in numbers), *groups, *([] if table is None else [table])]
    size = operands.rows, operands.columns
    return _plain(tensors) and _codes_fit(codes, *size) and all(_numbers_fit(each, *size) for each in numbers)


def decode(operands: Operands, rows: slice | Tensor, out: Tensor) -> None:
    """Decode rows of a matrix and round them, once, from float32.

    Args:
        operands: the matrix, for which `decodes` holds.
        rows: neighbouring rows from `start` to `stop`, or int64 `[n]`, each at least 0 and below those of the matrix.
        out: float32 or bfloat16 `[n, columns]` on the CPU, contiguous, overwritten.
    """
    words = operands.codes
    if not isinstance(words, Words):
        raise UnsupportedLayoutError("no compiled decoder here: ask `decodes` first, or decode with torch.")
    matrix = _matrix(operands, words)
    order, start = (rows.contiguous(), 0) if isinstance(rows, Tensor) else (None, rows.start)
    wanted = None if order is None else order.data_ptr()
    half = out.dtype == torch.bfloat16
    run = kernel("decode_words", *_ARGUMENTS)
    run(ctypes.byref(matrix), wanted, start, len(out), out.data_ptr(), half)


def _plain(tensors: Sequence[Tensor]) -> bool:
    if getattr(forward_ad, "_current_level", -1) >= 0 or any(map(_wrapped, tensors)):
        return False
    return all(each.is_cpu and each.is_contiguous() and not each.requires_grad for each in tensors)


def _codes_fit(words: Words, rows: int, columns: int) -> bool:
    """Whether a kernel that reads all codes stays in their memory."""
    lanes, length = (1, -(-columns * words.bits // 32)) if words.shared is None else (len(words.shared.shifts), columns)
    return rows % lanes == 0 and (rows // lanes - 1) * words.row + (length - 1) * words.step < words.data.numel()


def _numbers_fit(numbers: Numbers, rows: int, columns: int) -> bool:
    """Whether a kernel that reads the numbers of all rows and columns knows their dtype and stays in their memory."""
    last = 0 if numbers.picked else (rows - 1) // (32 // numbers.bits if numbers.bits else 1)
    end, groups = last * numbers.row + (numbers.groups - 1) * numbers.group, numbers.group_of
    if numbers.data.dtype not in READ or end >= numbers.data.numel():
        return False
    if groups is None:
        return columns == numbers.groups * numbers.size
    return groups.dtype == torch.int64 and int(groups.min()) >= 0 and int(groups.max()) < numbers.groups


def _matrix(operands: Operands, words: Words) -> _Matrix:
    """Return the matrix as words.h has it: its numbers in the order in which they are applied."""
    scale, zero, shift, minimum = operands.numbers if operands.kind == "affine" else (None, None, None, None)
    applied = [(zero, SUBTRACT), (scale, MULTIPLY), (shift, SUBTRACT), (minimum, ADD)]
    if operands.kind == "table":
        applied = [(each, MULTIPLY) for each in operands.numbers]
    numbers = [_numbers(each, operation) for each, operation in applied if each is not None]
    table = operands.table
    levels = (None, 0) if table is None else (table.data_ptr(), len(table))
    return _Matrix(_codes(words, operands.rows), (_Numbers * 4)(*numbers), len(numbers), *levels, operands.columns)


def _codes(words: Words, rows: int) -> _Codes:
    shared = Shared((), 1) if words.shared is None else words.shared
    lanes = len(shared.shifts)
    places = (words.data.element_size(), words.row, words.step, rows // max(lanes, 1))
    form = (words.bits, words.signed, words.offset, words.order != 0)
    return _Codes(words.data.data_ptr(), *places, *form, lanes, shared.inner, _Integers(*shared.shifts))


def _numbers(numbers: Numbers, operation: int) -> _Numbers:
    group_of = None if numbers.group_of is None else numbers.group_of.data_ptr()
    places = (numbers.row, numbers.group, numbers.groups, numbers.size, numbers.bits, numbers.plus, numbers.picked)
    order = _Integers(*numbers.order) if numbers.order else _IN_ORDER
    return _Numbers(numbers.data.data_ptr(), group_of, READ.index(numbers.data.dtype), *places, operation, order)
