"""The noise of `definition`, compiled: drawn where it is used, and any number of directions in one walk."""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from zoquant.kernels.build import kernel
from zoquant.kernels.checks import CPU, Drawn, check_directions, check_noise, check_stretch, check_tensor
from zoquant.kernels.noise.definition import BLOCK

_P, _I, _L, _U, _F = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64, ctypes.c_uint64, ctypes.c_float
_DRAW = (_I, _P, _P, _L, _L, _L, _U, _P, _F, _P, _I)
_ACCUMULATE = (_I, _P, _P, _L, _P, _P, _L, _P, _I)


def draw(
    noise: Drawn, seed: int, start: int, out: Tensor, *, delta: Tensor | None = None, eps: float = 0.0
) -> Tensor:  # fmt: skip
    """Write z, or delta + eps · z with the product and the sum rounded each.

    Args:
        noise: what is drawn from.
        seed: seed of the direction, 0 ≤ seed < 2⁶⁴.
        start: first element, a multiple of 128.
        out: float32 `[n]`, n a multiple of 128, overwritten and returned.
        delta: float32 `[n]`; None writes z alone.
        eps: signed length of the probe.
    """
    kind, table, counters = noise
    blocks = counters.shape[1]
    check_noise(noise, CPU)
    check_tensor("out", out)
    if delta is not None:
        check_tensor("delta", delta)
    check_stretch(blocks, start, out, delta)
    source = None if delta is None else delta.data_ptr()
    place = (blocks, start // BLOCK, out.numel() // BLOCK, seed)
    run = kernel("noise", *_DRAW)
    run(kind, table.data_ptr(), counters.data_ptr(), *place, source, eps, out.data_ptr(), torch.get_num_threads())
    return out


def accumulate(noise: Drawn, seeds: Sequence[int], amounts: Sequence[float], delta: Tensor) -> Tensor:
    """Add amount · z(seed) to delta for every direction in turn, each product and each sum rounded to float32.

    Args:
        noise: what is drawn from.
        seeds: seeds of the directions, 0 ≤ seed < 2⁶⁴.
        amounts: what each direction is multiplied with, rounded to float32 first.
        delta: float32 `[128 · blocks]`, changed in place and returned.
    """
    kind, table, counters = noise
    check_noise(noise, CPU)
    check_tensor("delta", delta)
    check_directions(counters.shape[1], seeds, amounts, delta)
    numbers = (ctypes.c_uint64 * len(seeds))(*seeds)
    factors = (ctypes.c_float * len(amounts))(*amounts)
    state = (table.data_ptr(), counters.data_ptr(), counters.shape[1])
    run = kernel("accumulate", *_ACCUMULATE)
    run(kind, *state, numbers, factors, len(seeds), delta.data_ptr(), torch.get_num_threads())
    return delta
