"""Rows and columns on a CPU, compiled: what probes multiply them with, and the deltas that they make, in one walk each.

`probed_layers.ratios` and `LayerRowsAndColumns.compose`, in `optim` and `record`, are the same in torch, bit for
bit.
"""

import ctypes
from collections.abc import Sequence

from torch import Tensor

from zoquant.errors import ShapeError
from zoquant.kernels.build import kernel
from zoquant.kernels.checks import check_tensor
from zoquant.kernels.noise.definition import BLOCK
from zoquant.kernels.noise.tables import NoiseTables

_P, _I, _L, _F = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64, ctypes.c_float
_RATIOS = (_I, _P, _P, _L, _P, _P, _P, _L, _P, _F, _P)
_COMPOSE = (_P, _L, _P, _F, _P)


def ratios(
    noise: NoiseTables, evaluations: Sequence[tuple[int, float, int]], vectors: Tensor, least: float, out: Tensor
) -> Tensor:
    """Write (1 + u + ε z) / (1 + u), with u and u + ε z at least `least`, to one row of `out` for each evaluation.

    Args:
        noise: what the directions are drawn from.
        evaluations: seed of the direction, 0 ≤ seed < 2⁶⁴, its signed length ε, and the row of `out`.
        vectors: u, float32 `[n]`, n a multiple of 128.
        least: bound of u.
        out: float32 `[rows, n]`; rows that no evaluation names are left alone.

    Returns:
        `out`.

    Raises:
        ShapeError: a tensor is not contiguous float32 on the CPU, or they do not fit together.
    """
    count = noise.blocks * BLOCK
    check_tensor("vectors", vectors, shape=(count,))
    check_tensor("out", out, shape=(len(out), count))
    if any(not 0 <= row < len(out) for _, _, row in evaluations):
        raise ShapeError(f"evaluations: expected rows of {len(out)}, got {[row for _, _, row in evaluations]}.")
    by_seed = sorted(evaluations)  # a direction is drawn once for all that share it
    seeds = (ctypes.c_uint64 * len(by_seed))(*(seed for seed, _, _ in by_seed))
    lengths = (ctypes.c_float * len(by_seed))(*(length for _, length, _ in by_seed))
    rows = (ctypes.c_int64 * len(by_seed))(*(row for _, _, row in by_seed))
    place = noise.kind, noise.quantiles.data_ptr(), noise.counters.data_ptr(), noise.blocks
    each = seeds, lengths, rows, len(by_seed)
    run = kernel("ratios", *_RATIOS)
    run(*place, *each, vectors.data_ptr(), least, out.data_ptr())
    return out


def compose(places: Tensor, vectors: Tensor, least: float, delta: Tensor) -> None:
    """Write (1 + u)(1 + v) − 1, with u and v at least `least`, to all places of delta.

    Args:
        places: int64 `[places, 6]`: where u begins, where v begins, how many of each, where the deltas begin, and 1
            where those of a column are neighbours, 0 where those of a row are.
        vectors: u and v, float32 `[n]`.
        least: bound of u and v.
        delta: float32 `[m]`.

    Raises:
        ShapeError: a tensor is not contiguous float32 on the CPU, or a place lies outside.
    """
    check_tensor("vectors", vectors, shape=(vectors.numel(),))
    check_tensor("delta", delta, shape=(delta.numel(),))
    rows, columns, height, width, first, _ = places.unbind(1)
    ends = ((rows + height, vectors), (columns + width, vectors), (first + height * width, delta))
    if places.numel() and (int(places.min()) < 0 or any(int(end.max()) > len(tensor) for end, tensor in ends)):
        raise ShapeError(f"places: expected such within {len(vectors)} numbers and {len(delta)} deltas, got {places}.")
    table, run = places.contiguous(), kernel("compose", *_COMPOSE)
    run(table.data_ptr(), len(table), vectors.data_ptr(), least, delta.data_ptr())
