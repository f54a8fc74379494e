"""Theta from base and delta on a GPU: noise, perturbation, cast and the write into every view, in one launch.

A row is a block of 128 elements of a view. A table says where its base lies, where its values go, which block of delta
it belongs to, and how many of its elements exist: the number of launches does not depend on the number of views. The
arithmetic is that of `zoquant.views.flat_buffer.compose`, each operation rounded on its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from zoquant.kernels.noise.tables import NoiseTables
from zoquant.kernels.noise.triton import grid, noise_of, settings, signed
from zoquant.kernels.triton_launch import launch
from zoquant.kernels.write.stretch import Stretch, rows_of

DTYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.uint16}
"""Dtypes of values -> what a kernel reads them as: bfloat16 is widened and rounded by its bits."""


@dataclass(frozen=True)
class WriteTable:
    """Values of one dtype that are written in one launch. The tensors themselves must be kept alive by the caller.

    Attributes:
        rows: int64 `[4, rows]`: address of the base, address of the target, block of delta, elements.
        dtype: dtype of the values.
        keep_sign: whether they stop at zero.
        aligned: whether all addresses are multiples of 16, and all rows of 8 elements: then 16 bytes move at a time.
    """

    rows: Tensor
    dtype: torch.dtype
    keep_sign: bool
    aligned: bool


def tables_of(groups: Mapping[tuple[torch.dtype, bool], Sequence[Stretch]], device: torch.device) -> list[WriteTable]:
    """See `zoquant.kernels.choice.WriteKernels`: a table for each dtype and kind of sign."""
    return [_table(rows_of(stretches), *group, device) for group, stretches in groups.items()]


def _table(rows: Tensor, dtype: torch.dtype, keep_sign: bool, device: torch.device) -> WriteTable:
    aligned = not bool((rows[:2] % 16).any() or (rows[3] % 8).any())
    return WriteTable(rows.to(device), dtype, keep_sign, aligned)


@triton.jit
def _widened(values, DTYPE: tl.constexpr):
    """Return values as float32."""
    if DTYPE == tl.uint16:
        wide = (values.to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        wide = values.to(tl.float32)
    return wide


@triton.jit
def _rounded(theta, DTYPE: tl.constexpr):
    """Return float32 in the dtype that stores it, rounded to nearest even."""
    if DTYPE == tl.uint16:
        bits = theta.to(tl.uint32, bitcast=True)
        near = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).to(tl.uint16)
        stored = tl.where(theta == theta, near, 0x7FC0).to(tl.uint16)
    else:
        stored = theta.to(DTYPE)
    return stored


@triton.jit
def _signed_as(value, sign):
    """Return |value| with the sign of another number."""
    bits = value.to(tl.uint32, bitcast=True) & 0x7FFFFFFF
    return (bits | (sign.to(tl.uint32, bitcast=True) & 0x80000000)).to(tl.float32, bitcast=True)


@triton.jit
def _negated(value):
    """Return −value, of zero too: in this language −x is 0 − x."""
    return (value.to(tl.uint32, bitcast=True) ^ 0x80000000).to(tl.float32, bitcast=True)


@triton.jit
def _composed(delta, base, limit, RELATIVE: tl.constexpr, KEEP_SIGN: tl.constexpr):
    """Return theta, see `zoquant.views.flat_buffer.compose`. Comparisons keep NaN as it is."""
    if RELATIVE:
        if KEEP_SIGN:
            delta = tl.where(delta < -1.0, -1.0, delta)
        theta = delta * base + base
    else:
        theta = _negated(_negated(delta) - base)
        if KEEP_SIGN:
            along = tl.where(base > 0, theta, tl.where(base < 0, _negated(theta), 0.0))
            theta = _signed_as(tl.where(along < 0, 0.0, along), base)
    theta = tl.where(theta > limit, limit, theta)
    return tl.where(theta < -limit, -limit, theta)


@triton.jit(do_not_specialize=["rows", "blocks", "seed"])
def _write(
    table, counters, blocks, places, rows, seed, delta, eps, limit,
    KIND: tl.constexpr, BITS: tl.constexpr, PROBE: tl.constexpr, RELATIVE: tl.constexpr, KEEP_SIGN: tl.constexpr,
    DTYPE: tl.constexpr, ALIGNED: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    here = row < rows
    base_at = tl.load(places + row, mask=here, other=0)
    target_at = tl.load(places + rows + row, mask=here, other=0)
    block = tl.load(places + 2 * rows.to(tl.int64) + row, mask=here, other=0)
    held = tl.load(places + 3 * rows.to(tl.int64) + row, mask=here, other=0)
    element, whole = tl.arange(0, 128), here[:, None]
    bases = base_at.to(tl.pointer_type(DTYPE))[:, None] + element[None, :]
    targets = target_at.to(tl.pointer_type(DTYPE))[:, None] + element[None, :]
    if ALIGNED:
        bases = tl.max_contiguous(tl.multiple_of(bases, [1, 16]), [1, 128])
        targets = tl.max_contiguous(tl.multiple_of(targets, [1, 16]), [1, 128])
        held = tl.multiple_of(held, 8)
    moved = tl.load(delta + block[:, None] * 128 + element[None, :], mask=whole, other=0.0)
    if PROBE:
        moved = moved + noise_of(table, counters, blocks, block, here, seed, KIND, BITS, ROWS) * eps
    base = _widened(tl.load(bases, mask=whole, other=0), DTYPE)
    theta = _rounded(_composed(moved, base, limit, RELATIVE, KEEP_SIGN), DTYPE)
    tl.store(targets, theta, mask=element[None, :] < held[:, None])


def write(
    table: WriteTable, delta: Tensor, *, relative: bool, noise: NoiseTables | None = None, seed: int = 0,
    eps: float = 0.0,
) -> None:  # fmt: skip
    """Write theta, or a probe of it, in one launch, see `zoquant.kernels.choice.WriteKernels`."""
    kind, quantiles, counters = noise or (0, delta, table.rows)
    rows = table.rows.shape[1]
    if rows:
        launch(
            _write, grid(rows), delta.device,
            quantiles, counters, counters.shape[1], table.rows, rows, signed(seed), delta, float(eps),
            torch.finfo(table.dtype).max, **settings(kind), PROBE=noise is not None, RELATIVE=relative,
            KEEP_SIGN=table.keep_sign, DTYPE=DTYPES[table.dtype], ALIGNED=table.aligned,
        )  # fmt: skip
