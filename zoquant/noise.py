"""Noise that is a pure function of (seed, key, element): the same on every device, in any order, for any subset.

A stream of 32-bit words belongs to every (seed, key, kind): word `4c + j` is output `j` of Philox4x32-10 with counter
`(c, kind, key hash)` and the seed as its key. Element `i` of Rademacher noise is bit `i % 32` of word `i // 32`, a set
bit meaning +1; element `i` of Gaussian noise is half `i % 2` of word `i // 2`, looked up in `gaussian_table`.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011 (Philox4x32-10).
"""

import hashlib
from collections.abc import Sequence
from functools import cache
from statistics import NormalDist
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from zoquant.kernels.noise import accumulate, compiled_for, draw

Kind = Literal["rademacher", "gaussian"]
KINDS: tuple[Kind, ...] = ("rademacher", "gaussian")

BLOCK = 128
"""Elements that share one row of counters: what one call of Philox gives as Rademacher noise."""

_BITS: dict[Kind, int] = {"rademacher": 1, "gaussian": 16}
_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_CALLS_AT_A_TIME = 1 << 14
_STRETCH = 1 << 17


def key_hash(key: str) -> int:
    """Return the 64 bits that stand for a key: BLAKE2b of its UTF-8 bytes, little endian."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")


def step_seed(seed: int, step: int, probe: int = 0) -> int:
    """Return the 63-bit seed of one direction of a run, so that any step can be drawn without those before it."""
    text = f"{seed}/{step}/{probe}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


@cache
def gaussian_table() -> npt.NDArray[np.float32]:
    """Return 65,536 quantiles of the standard normal, float32, rounded to multiples of 2⁻²⁰: portable."""
    normal = NormalDist()
    upper = [round(normal.inv_cdf((k + 0.5) / 65536) * 2**20) / 2**20 for k in range(32768, 65536)]
    return np.array([-z for z in reversed(upper)] + upper, dtype=np.float32)


def reference(seed: int, key: str, count: int, kind: Kind = "rademacher") -> npt.NDArray[np.float32]:
    """Return the first `count` elements of the noise of one key, float32: slow, and the definition.

    Args:
        seed: seed of the direction, 0 ≤ seed < 2⁶⁴.
        key: key of the view.
        count: number of elements.
        kind: distribution; both have mean 0 and variance 1 (the Gaussian's is 0.99998: its tails end at 4.3).
    """
    per_word = 32 // _BITS[kind]
    calls = -(-count // (4 * per_word))
    hashed = key_hash(key)
    state = np.zeros((4, calls), dtype=np.uint64)
    state[0] = np.arange(calls, dtype=np.uint64)
    state[1] = KINDS.index(kind)
    state[2], state[3] = hashed & _MASK, hashed >> 32
    mask, high = np.uint64(_MASK), np.uint64(32)
    k0, k1 = seed & _MASK, seed >> 32
    for _ in range(_ROUNDS):
        p0, p1 = state[0] * np.uint64(_MULTIPLIERS[0]), state[2] * np.uint64(_MULTIPLIERS[1])
        state = np.stack([
            (p1 >> high) ^ state[1] ^ np.uint64(k0), p1 & mask, (p0 >> high) ^ state[3] ^ np.uint64(k1), p0 & mask
        ])  # fmt: skip
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    words = state.T.reshape(-1)
    if kind == "rademacher":
        bits = (words[:, None] >> np.arange(32, dtype=np.uint64)) & np.uint64(1)
        ones: npt.NDArray[np.float32] = bits.reshape(-1)[:count].astype(np.float32)
        return ones * 2 - 1
    halves = np.stack([words & np.uint64(0xFFFF), words >> np.uint64(16)], axis=1).reshape(-1)[:count]
    return gaussian_table()[halves.astype(np.int64)]


class NoiseSource:
    """Draws the noise of many keys at once, laid out one after the other, each on a multiple of `BLOCK` elements.

    Args:
        keys: the keys, in the order of the layout.
        counts: elements of each.
        kind: distribution.
        device: where the noise is needed.
    """

    def __init__(self, keys: list[str], counts: list[int], kind: Kind, device: torch.device) -> None:
        blocks = torch.tensor([-(-count // BLOCK) for count in counts])
        hashes = [key_hash(key) for key in keys]
        starts = blocks.cumsum(0) - blocks
        index = torch.arange(int(blocks.sum())) - starts.repeat_interleave(blocks)
        low = torch.tensor([h & _MASK for h in hashes]).repeat_interleave(blocks)
        high = torch.tensor([h >> 32 for h in hashes]).repeat_interleave(blocks)
        self.kind = kind
        self._counters = torch.stack([index, low, high]).to(device)
        self._calls_per_block = _BITS[kind] * BLOCK // 128
        self._packed: Tensor | None = None
        self._seed: int | None = None
        if kind == "rademacher":
            bits = (torch.arange(256)[:, None] >> torch.arange(8)) & 1
            self._table = (bits.float() * 2 - 1).to(device)
        else:
            self._table = torch.from_numpy(gaussian_table()).to(device)

    def draw(self, seed: int, start: int, out: Tensor) -> Tensor:
        """Fill `out` with the noise of a stretch of the layout.

        Args:
            seed: seed of the direction, 0 ≤ seed < 2⁶⁴.
            start: first element, a multiple of `BLOCK`.
            out: float32 `[n]`, n a multiple of `BLOCK`.

        Returns:
            `out`.
        """
        if compiled_for(self._counters):
            return draw(KINDS.index(self.kind), self._table, self._counters, seed, start, out)
        return self._look_up(self._words(seed), start, out)

    def probe(self, seed: int, start: int, delta: Tensor, eps: float, out: Tensor) -> Tensor:
        """Fill `out` with delta + eps · z of a stretch of the layout.

        Args:
            seed: seed of the direction.
            start: first element, a multiple of `BLOCK`.
            delta: float32 `[n]`.
            eps: signed length of the probe.
            out: float32 `[n]`, n a multiple of `BLOCK`; not `delta`.

        Returns:
            `out`, the bits of `torch.add(delta, z, alpha=eps)`.
        """
        if self.kind == "rademacher" and compiled_for(self._counters):  # ±eps is exact: no rounding to fuse
            return draw(KINDS.index(self.kind), self._table, self._counters, seed, start, out, delta=delta, eps=eps)
        return torch.add(delta, self.draw(seed, start, out), alpha=eps, out=out)

    def accumulate(self, seeds: Sequence[int], amounts: Sequence[float], delta: Tensor) -> Tensor:
        """Add amount · z to delta for every direction in turn, each product and each sum rounded to float32.

        Args:
            seeds: seeds of the directions.
            amounts: what each is multiplied with.
            delta: float32 over the whole layout, changed in place.

        Returns:
            `delta`.
        """
        if compiled_for(self._counters):
            return accumulate(KINDS.index(self.kind), self._table, self._counters, seeds, amounts, delta)
        for seed, amount in zip(seeds, amounts, strict=True):
            for start in range(0, delta.numel(), _STRETCH):
                part = delta[start : start + _STRETCH]
                part.add_(self.draw(seed, start, torch.empty_like(part)).mul_(amount))  # not alpha=, which may be fused
        return delta

    def _look_up(self, packed: Tensor, start: int, out: Tensor) -> Tensor:
        bits = _BITS[self.kind]
        packed = packed[start * bits // 8 : (start + out.numel()) * bits // 8]
        if self.kind == "rademacher":
            torch.index_select(self._table, 0, packed.int(), out=out.view(-1, 8))
        else:
            torch.index_select(self._table, 0, packed.view(torch.int16).int() & 0xFFFF, out=out)
        return out

    def _words(self, seed: int) -> Tensor:
        """Return the packed words of the whole layout, drawn once for each seed in a row."""
        if self._packed is None:
            size = self._counters.shape[1] * BLOCK * _BITS[self.kind] // 8
            with torch.inference_mode(False):
                self._packed = torch.empty(size, dtype=torch.uint8, device=self._counters.device)
        if seed != self._seed:
            self._fill(seed, self._packed)
            self._seed = seed
        return self._packed

    def _fill(self, seed: int, packed: Tensor) -> None:
        """Draw the packed words of the whole layout."""
        per_block = self._calls_per_block
        lanes = torch.arange(per_block, device=packed.device)
        words = packed.view(torch.int32).view(-1, 4)
        step = max(1, _CALLS_AT_A_TIME // per_block)
        for first in range(0, self._counters.shape[1], step):
            index, low, high = self._counters[:, first : first + step]
            calls = (index[:, None] * per_block + lanes).view(-1)
            drawn = _philox(
                calls, KINDS.index(self.kind), low.repeat_interleave(per_block), high.repeat_interleave(per_block), seed
            )
            target = words[first * per_block : first * per_block + len(calls)]
            for lane, word in enumerate(drawn):
                target[:, lane] = word


def _philox(c0: Tensor, kind: int, c2: Tensor, c3: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10 on int64 tensors that hold unsigned 32-bit numbers: a product's bits survive the wrap-around."""
    c1: Tensor = torch.full_like(c0, kind)
    k0, k1 = seed & _MASK, seed >> 32
    for _ in range(_ROUNDS):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0 = ((p1 >> 32) & _MASK).bitwise_xor_(c1).bitwise_xor_(k0)
        c2 = ((p0 >> 32) & _MASK).bitwise_xor_(c3).bitwise_xor_(k1)
        c1, c3 = p1.bitwise_and_(_MASK), p0.bitwise_and_(_MASK)
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3
