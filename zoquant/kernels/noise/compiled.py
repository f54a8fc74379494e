"""The noise of `definition`, compiled: drawn where it is used, and any number of directions in one walk."""

import ctypes
from collections.abc import Sequence

from torch import Tensor

from zoquant.kernels.build import kernel
from zoquant.kernels.checks import CPU
from zoquant.kernels.noise.definition import BLOCK
from zoquant.kernels.noise.tables import NoiseTables, check_accumulate, check_draw

_P, _I, _L, _U, _F = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64, ctypes.c_uint64, ctypes.c_float
_DRAW = (_I, _P, _P, _L, _L, _L, _U, _P, _F, _P)
_ACCUMULATE = (_I, _P, _P, _L, _P, _P, _L, _P)


def draw(
    noise: NoiseTables, seed: int, start: int, out: Tensor, *, delta: Tensor | None = None, eps: float = 0.0
) -> Tensor:
    """Write z, or delta + eps · z, see `zoquant.kernels.choice.NoiseKernels`."""
    check_draw(noise, start, out, delta, CPU)
    source = None if delta is None else delta.data_ptr()
    place = (noise.blocks, start // BLOCK, out.numel() // BLOCK, seed)
    run, state = kernel("noise", *_DRAW), (noise.kind, noise.quantiles.data_ptr(), noise.counters.data_ptr())
    run(*state, *place, source, eps, out.data_ptr())
    return out


def accumulate(noise: NoiseTables, seeds: Sequence[int], amounts: Sequence[float], delta: Tensor) -> Tensor:
    """Add amount · z(seed) to delta for every direction in turn, see `zoquant.kernels.choice.NoiseKernels`."""
    check_accumulate(noise, seeds, amounts, delta, CPU)
    numbers = (ctypes.c_uint64 * len(seeds))(*seeds)
    factors = (ctypes.c_float * len(amounts))(*amounts)
    state = (noise.kind, noise.quantiles.data_ptr(), noise.counters.data_ptr(), noise.blocks)
    run = kernel("accumulate", *_ACCUMULATE)
    run(*state, numbers, factors, len(seeds), delta.data_ptr())
    return delta
