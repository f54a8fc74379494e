"""The noise of `definition` on a GPU: drawn where it is used, and any number of directions in one launch.

The functions are those of `zoquant.kernels.choice.NoiseKernels`. A row of a tile is a block of 128 elements. Every
product and every sum is rounded on its own: fusion is switched off at each launch. Triton is imported with this module,
so `zoquant.kernels.gpu` alone imports it, where a GPU asks for it.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011 (Philox4x32-10), as
triton.language.philox has it.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from zoquant.kernels.noise.definition import BITS, BLOCK, KINDS
from zoquant.kernels.noise.tables import NoiseTables, check_accumulate, check_draw
from zoquant.kernels.triton_launch import launch

ROWS = 16
"""Blocks that one program handles: 2,048 elements."""


@triton.jit
def random_bits(counters, blocks, row, here, seed, STREAM: tl.constexpr, BITS: tl.constexpr, ROWS: tl.constexpr):
    """Return the random bits of each element, uint32 `[ROWS, 128]`: BITS of them. One call of Philox gives 128 bits."""
    index = tl.load(counters + row, mask=here, other=0)
    low = tl.load(counters + blocks + row, mask=here, other=0)
    high = tl.load(counters + 2 * blocks + row, mask=here, other=0)
    call = (index[:, None] * BITS + tl.arange(0, BITS)[None, :]).to(tl.uint32)
    none = call * 0
    w0, w1, w2, w3 = tl.philox(
        seed, call, none + STREAM, none + low[:, None].to(tl.uint32), none + high[:, None].to(tl.uint32)
    )
    words = tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), [ROWS, 4 * BITS])
    shifts = (tl.arange(0, 32 // BITS) * BITS).to(tl.uint32)
    return tl.reshape((words[:, :, None] >> shifts[None, None, :]) & ((1 << BITS) - 1), [ROWS, 128])


@triton.jit
def noise_of(table, counters, blocks, row, here, seed, KIND: tl.constexpr, BITS: tl.constexpr, ROWS: tl.constexpr):
    """Return z, float32 `[ROWS, 128]`: a set bit is +1, and 16 bits are looked up in the table."""
    bits = random_bits(counters, blocks, row, here, seed, KIND, BITS, ROWS)
    if BITS == 1:
        z = bits.to(tl.float32) * 2 - 1
    else:
        z = tl.load(table + bits)
    return z


@triton.jit(do_not_specialize=["blocks", "first", "count", "seed"])
def _draw(
    table, counters, blocks, first, count, seed, delta, eps, out,
    KIND: tl.constexpr, BITS: tl.constexpr, PROBE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    here = row < count
    z = noise_of(table, counters, blocks, first + row, here, seed, KIND, BITS, ROWS)
    place, kept = row[:, None] * 128 + tl.arange(0, 128)[None, :], here[:, None]
    if PROBE:
        z = tl.load(delta + place, mask=kept) + z * eps
    tl.store(out + place, z, mask=kept)


@triton.jit(do_not_specialize=["blocks", "directions"])
def _accumulate(
    table, counters, blocks, seeds, amounts, directions, delta,
    KIND: tl.constexpr, BITS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    here = row < blocks
    place, kept = row[:, None] * 128 + tl.arange(0, 128)[None, :], here[:, None]
    total = tl.load(delta + place, mask=kept)
    for number in range(directions):
        z = noise_of(table, counters, blocks, row, here, tl.load(seeds + number), KIND, BITS, ROWS)
        total += z * tl.load(amounts + number)
    tl.store(delta + place, total, mask=kept)


def draw(
    noise: NoiseTables, seed: int, start: int, out: Tensor, *, delta: Tensor | None = None, eps: float = 0.0
) -> Tensor:
    """Write z, or delta + eps · z, see `zoquant.kernels.choice.NoiseKernels`."""
    check_draw(noise, start, out, delta, out.device)
    count, source = out.numel() // BLOCK, out if delta is None else delta
    launch(
        _draw, grid(count), out.device,
        noise.quantiles, noise.counters, noise.blocks, start // BLOCK, count, signed(seed), source, float(eps), out,
        **settings(noise.kind), PROBE=delta is not None,
    )  # fmt: skip
    return out


def accumulate(noise: NoiseTables, seeds: Sequence[int], amounts: Sequence[float], delta: Tensor) -> Tensor:
    """Add amount · z(seed) to delta for every direction in turn, see `zoquant.kernels.choice.NoiseKernels`."""
    check_accumulate(noise, seeds, amounts, delta, delta.device)
    if len(seeds) == 1:
        return draw(noise, seeds[0], 0, delta, delta=delta, eps=amounts[0])
    numbers = torch.tensor([signed(seed) for seed in seeds], device=delta.device, dtype=torch.int64)
    factors = torch.tensor(amounts, device=delta.device, dtype=torch.float32)
    launch(
        _accumulate, grid(noise.blocks), delta.device,
        noise.quantiles, noise.counters, noise.blocks, numbers, factors, len(seeds), delta, **settings(noise.kind),
    )  # fmt: skip
    return delta


def settings(kind: int) -> dict[str, int | bool]:
    """Return what a launch is compiled for: the distribution, and no fused multiply-add."""
    return {"KIND": kind, "BITS": BITS[KINDS[kind]], "ROWS": ROWS, "enable_fp_fusion": False}


def grid(blocks: int) -> tuple[int]:
    """Return how many programs handle so many blocks."""
    return (-(-blocks // ROWS),)


def signed(seed: int) -> int:
    """Return a seed as the int64 of the same bits."""
    return seed - 2**64 if seed >= 2**63 else seed
