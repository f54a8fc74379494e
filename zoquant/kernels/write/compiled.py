"""Theta from base and delta on a CPU, compiled: noise, perturbation, cast and the write into every view in one walk."""

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zoquant.errors import ShapeError
from zoquant.kernels.build import kernel, library
from zoquant.kernels.noise.definition import BLOCK
from zoquant.kernels.noise.tables import NoiseTables
from zoquant.kernels.write.stretch import Stretch, rows_of

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
"""Dtypes of values, in the order of write.cpp."""

_TOGETHER = 16
"""Blocks whose noise is drawn at a time."""

_P, _I, _L, _U, _F = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64, ctypes.c_uint64, ctypes.c_float
_ARGUMENTS = (_P, _P, _L, _P, _I, _P, _I, _I, _P, _P, _L, _U, _F)
_LIMITS = (ctypes.c_float * 3)(*(torch.finfo(dtype).max for dtype in DTYPES))


@dataclass(frozen=True)
class WriteTable:
    """Values that are written in one walk. The tensors themselves must be kept alive by the caller.

    Attributes:
        rows: int64 `[rows, 4]` by block: addresses of base and target, block of delta, and what the row holds.
        runs: int64 `[n + 1]`: where runs of neighbouring blocks begin in the table, and its end.
        reach: how many elements of delta are read.
    """

    rows: Tensor
    runs: Tensor
    reach: int


def ready() -> bool:
    """Whether the compiled kernels are there and know all dtypes."""
    compiled = library()
    return compiled is not None and bool(compiled.zoquant_write_ready())


def tables_of(groups: Mapping[tuple[torch.dtype, bool], Sequence[Stretch]], device: torch.device) -> list[WriteTable]:
    """See `zoquant.kernels.choice.WriteKernels`: one table for all."""
    parts = [torch.empty(4, 0, dtype=torch.int64)]
    for (dtype, keep_sign), stretches in groups.items():
        rows = rows_of(stretches)
        rows[3] |= DTYPES.index(dtype) << 8 | int(keep_sign) << 16
        parts.append(rows)
    found = torch.cat(parts, 1).t()
    table = found[found[:, 2].argsort(stable=True)].contiguous()
    return [WriteTable(table, _runs(table[:, 2]), int(table[-1, 2] + 1) * BLOCK)] if len(table) else []


def _runs(blocks: Tensor) -> Tensor:
    """Return where runs begin among sorted blocks, and their number: a run has no gap and few blocks."""
    jump = blocks.diff(prepend=blocks[:1] - 2) > 1
    first = blocks[jump][jump.cumsum(0) - 1]
    run = torch.stack([jump.cumsum(0), (blocks - first) // _TOGETHER])
    begins = torch.cat([torch.ones(1, dtype=torch.bool), (run.diff() != 0).any(0)])
    return torch.cat([begins.nonzero()[:, 0], torch.tensor([len(blocks)])])


def write(
    table: WriteTable, delta: Tensor, *, relative: bool, noise: NoiseTables | None = None, seed: int = 0,
    eps: float = 0.0,
) -> None:  # fmt: skip
    """Write theta, or a probe of it, see `zoquant.kernels.choice.WriteKernels`.

    Raises:
        ShapeError: delta is no contiguous float32 tensor on the CPU, or does not reach as far as the table.
    """
    needed = table.reach
    if delta.dtype != torch.float32 or not (delta.is_cpu and delta.is_contiguous()) or delta.numel() < needed:
        raise ShapeError(
            f"delta: expected contiguous float32 on the CPU, {needed} elements or more, got {delta.dtype} "
            f"{tuple(delta.shape)} on {delta.device}."
        )
    if noise is not None and noise.blocks * BLOCK < needed:
        raise ShapeError(f"counters: expected those of {needed // BLOCK} blocks, got {noise.blocks}.")
    kind, quantiles, counters = noise or (0, delta, table.runs)
    kernel("write", *_ARGUMENTS)(
        table.rows.data_ptr(), table.runs.data_ptr(), len(table.runs) - 1, delta.data_ptr(), relative, _LIMITS,
        noise is not None, kind, quantiles.data_ptr(), counters.data_ptr(), counters.shape[-1], seed, eps,
    )  # fmt: skip
