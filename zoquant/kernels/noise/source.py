"""Noise for many keys at once, equal to its definition bit for bit: the portable path, in integer arithmetic."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from zoquant.kernels.choice import noise_kernels
from zoquant.kernels.noise.definition import (
    BLOCK,
    ELEMENT_STREAM,
    KINDS,
    MASK,
    MULTIPLIERS,
    ROUNDS,
    WEYL,
    Kind,
    Noise,
    as_noise,
    gaussian_table,
    key_hash,
    sphere_factor,
    square_table,
    unit_moves,
)
from zoquant.kernels.noise.tables import NoiseTables

_CALLS_AT_A_TIME = 1 << 14
_COMPILED = ("rademacher", "gaussian")


class NoiseSource:
    """Draws the noise of many keys, laid out one after the other, each on a multiple of `BLOCK` elements.

    Args:
        keys: the keys, in the order of the layout.
        counts: elements of each.
        noise: distribution.
        device: where the noise is needed.

    Attributes:
        noise: distribution.
        exact: whether a product with the noise is never rounded: each element is −1, 0 or +1.
        kernels: compiled code that draws this noise on this device with the same bits; None where torch draws it.
    """

    def __init__(self, keys: Sequence[str], counts: Sequence[int], noise: Kind | Noise, device: torch.device) -> None:
        self.noise = as_noise(noise)
        self.exact = self.noise.kind == "rademacher"
        blocks = torch.tensor([-(-count // BLOCK) for count in counts])
        hashes = [key_hash(key) for key in keys]
        owner = torch.arange(len(keys)).repeat_interleave(blocks)
        index = torch.arange(int(blocks.sum())) - (blocks.cumsum(0) - blocks)[owner]
        low, high = (torch.tensor([h >> shift & MASK for h in hashes])[owner] for shift in (0, 32))
        self._keys, self._counts = list(keys), list(counts)
        self._owner = owner.to(device)
        self._counters = torch.stack([index, low, high]).to(device)
        self._table = _table(self.noise.kind).to(device)
        self._sparse = self.noise.density < 1 and self.noise.unit == "element"
        self._streams = [(KINDS.index(self.noise.kind), self.noise.bits), *[(ELEMENT_STREAM, 16)] * self._sparse]
        size = len(index) * BLOCK // 8
        self._packed = [torch.empty(1, size * bits, dtype=torch.uint8, device=device) for _, bits in self._streams]
        self._seed: int | None = None
        self._factors: dict[int, Tensor] = {}
        plain = self.noise.kind in _COMPILED and self.noise.density == 1
        self.kernels = noise_kernels(device) if plain else None

    def draw(self, seed: int, start: int, out: Tensor) -> Tensor:
        """Fill `out` with the noise of a stretch of the layout, and return it. The bits of the last seed are kept.

        Args:
            seed: seed of the direction, 0 ≤ seed < 2⁶⁴.
            start: first element, a multiple of `BLOCK`.
            out: float32 `[n]`, n a multiple of `BLOCK`.
        """
        if self.kernels is not None:
            return self.kernels.draw(self.definition, seed, start, out)
        if seed != self._seed:
            self._seed = None
            for packed, (stream, bits) in zip(self._packed, self._streams, strict=True):
                self._fill([seed], 0, stream, bits, packed)
            self.prepare([seed])
            self._seed = seed
        rows = [
            packed[0, start * bits // 8 : (start + out.numel()) * bits // 8]
            for packed, (_, bits) in zip(self._packed, self._streams, strict=True)
        ]
        return self._expand(seed, start, rows, out)

    def probe(self, seed: int, start: int, delta: Tensor, eps: float, out: Tensor) -> Tensor:
        """Fill `out`, which is not `delta`, with delta + eps · z; product and sum are each rounded to float32."""
        if self.kernels is not None:
            return self.kernels.draw(self.definition, seed, start, out, delta=delta, eps=eps)
        return self.draw(seed, start, out).mul_(eps).add_(delta)  # never fused: see accumulate

    def accumulate(self, out: Tensor, start: int, seeds: Sequence[int], amounts: Sequence[float]) -> None:
        """Add multiples of directions to a stretch of delta: `out ← out + amounts[k] · z(seeds[k])`, in their order.

        Each product and each sum is rounded to float32, and so is each amount before. Call `prepare` with the seeds.

        Args:
            out: float32 `[n]`, n a multiple of `BLOCK`, small enough for the cache.
            start: where `out` begins in the layout, a multiple of `BLOCK`.
            seeds: seed of each direction.
            amounts: factor of each direction.
        """
        if self.kernels is not None:
            blocks = self._counters[:, start // BLOCK : (start + out.numel()) // BLOCK].contiguous()
            self.kernels.accumulate(self.definition._replace(counters=blocks), seeds, amounts, out)
            return
        for z, amount in zip(self.directions(seeds, start, out.numel()), amounts, strict=True):
            if self.exact:
                out.add_(z, alpha=amount)  # fused or not: the product is exact
            else:
                out.add_(z.mul_(amount))  # not alpha=, which is fused where it can be

    @property
    def definition(self) -> NoiseTables:
        """What compiled code draws from."""
        return NoiseTables(KINDS.index(self.noise.kind), self._table.view(torch.float32), self._counters)

    def directions(self, seeds: Sequence[int], start: int, count: int) -> Iterator[Tensor]:
        """Yield one stretch of the layout for many seeds: float32 `[count]`, in memory that the next one overwrites.

        Call `prepare` with these seeds first. Threads may draw different stretches at the same time.
        """
        out = torch.empty(count, dtype=torch.float32, device=self._table.device)
        if self.kernels is not None:
            yield from (self.draw(seed, start, out) for seed in seeds)
            return
        if tuple(seeds) == (self._seed,):
            yield self.draw(seeds[0], start, out)
            return
        at_once = max(1, _CALLS_AT_A_TIME * 128 // (count * max(bits for _, bits in self._streams)))
        for first in range(0, len(seeds), at_once):
            some = seeds[first : first + at_once]
            drawn = [
                self._fill(
                    some, start // BLOCK, stream, bits,
                    torch.empty(len(some), count * bits // 8, dtype=torch.uint8, device=out.device),
                )
                for stream, bits in self._streams
            ]  # fmt: skip
            for number, seed in enumerate(some):
                yield self._expand(seed, start, [packed[number] for packed in drawn], out)

    def prepare(self, seeds: Sequence[int]) -> None:
        """Find the factor of every key in these directions, where the noise has any; others but the kept one go."""
        if self.noise.kind == "sphere" or (self.noise.density < 1 and not self._sparse):
            wanted = {*seeds, *(() if self._seed is None else (self._seed,))}
            known = self._factors
            self._factors = {seed: known[seed] if seed in known else self._factor(seed) for seed in wanted}

    def _factor(self, seed: int) -> Tensor:
        """Return what multiplies each key's noise: the factor of the sphere, and 0 for a unit that does not move."""
        factors = [1.0] * len(self._keys)
        if self.noise.kind == "sphere":
            factors = [sphere_factor(s, n) for s, n in zip(self._squares(seed), self._counts, strict=True)]
        if self.noise.density < 1 and not self._sparse:
            moves = (unit_moves(seed, key, self.noise) for key in self._keys)
            factors = [factor * moving for factor, moving in zip(factors, moves, strict=True)]
        return torch.tensor(factors, dtype=torch.float32, device=self._owner.device)

    def _squares(self, seed: int) -> list[int]:
        """Return the sum over `square_table` for each key."""
        stream, bits = self._streams[0]
        packed = torch.empty(1, self._owner.numel() * BLOCK * bits // 8, dtype=torch.uint8, device=self._owner.device)
        halves = _halves(self._fill([seed], 0, stream, bits, packed)[0]).view(-1, BLOCK)
        squares = torch.from_numpy(square_table()).to(halves.device)[halves]
        room = torch.tensor(self._counts, device=halves.device)[self._owner] - self._counters[0] * BLOCK
        squares *= torch.arange(BLOCK, device=halves.device) < room[:, None]
        total = torch.zeros(len(self._keys), dtype=torch.int64, device=halves.device)
        return [int(each) for each in total.index_add_(0, self._owner, squares.sum(1))]

    def _expand(self, seed: int, start: int, rows: Sequence[Tensor], out: Tensor) -> Tensor:
        """Turn packed bits into noise."""
        if self.exact:
            out.copy_(self._table.index_select(0, rows[0].int()).view(torch.int8))
        else:
            torch.index_select(self._table, 0, _halves(rows[0]), out=out)
        if self._sparse:
            out.mul_(_halves(rows[1]) < self.noise.threshold)
        if seed in self._factors:
            owner = self._owner[start // BLOCK : (start + out.numel()) // BLOCK]
            out.view(-1, BLOCK).mul_(self._factors[seed][owner][:, None])
        return out

    def _fill(self, seeds: Sequence[int], first: int, stream: int, bits: int, out: Tensor) -> Tensor:
        """Draw the words of some blocks for some seeds into `out`, uint8 `[seeds, bytes]`."""
        words = out.view(torch.int32).view(len(seeds), -1, 4)
        lanes = torch.arange(bits * BLOCK // 128, device=out.device)
        k0, k1 = (torch.tensor([[s >> shift & MASK] for s in seeds], device=out.device) for shift in (0, 32))
        step = max(1, _CALLS_AT_A_TIME // (len(lanes) * len(seeds)))
        for begin in range(0, words.shape[1] // len(lanes), step):
            end = min(begin + step, words.shape[1] // len(lanes))
            index, low, high = self._counters[:, first + begin : first + end]
            calls = (index[:, None] * len(lanes) + lanes).view(-1)
            drawn = philox(calls, stream, low.repeat_interleave(len(lanes)), high.repeat_interleave(len(lanes)), k0, k1)
            for lane, word in enumerate(drawn):
                words[:, begin * len(lanes) : end * len(lanes), lane] = word
        return out


def philox(
    c0: Tensor, c1: int, c2: Tensor, c3: Tensor, k0: Tensor, k1: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10 on int64 tensors that hold unsigned 32-bit numbers: a product's bits survive the wrap-around.

    c0 to c3 are words of the counters, `[n]`, of which the second is the same for all; k0 and k1 the low and high words
    of the keys, `[seeds, 1]`. Returns the four output words, `[seeds, n]`.
    """
    x0, x2, x3 = (c.repeat(len(k0), 1) for c in (c0, c2, c3))
    x1, p0, p1 = torch.full_like(x0, c1), torch.empty_like(x0), torch.empty_like(x0)
    for _ in range(ROUNDS):  # x1 and x3 keep what overflowed their 32 bits: it is cut off with the next mask
        torch.mul(x0, MULTIPLIERS[0], out=p0)
        torch.mul(x2, MULTIPLIERS[1], out=p1)
        torch.bitwise_right_shift(p1, 32, out=x0).bitwise_xor_(x1).bitwise_xor_(k0).bitwise_and_(MASK)
        torch.bitwise_right_shift(p0, 32, out=x2).bitwise_xor_(x3).bitwise_xor_(k1).bitwise_and_(MASK)
        x1, p1, x3, p0 = p1, x1, p0, x3
        k0, k1 = (k0 + WEYL[0]) & MASK, (k1 + WEYL[1]) & MASK
    return x0, x1 & MASK, x2, x3 & MASK


def _table(kind: Kind) -> Tensor:
    """Return the elements that each 16 random bits stand for, or each 8 for Rademacher noise: 8 bytes of ±1."""
    if kind == "rademacher":
        bits = (torch.arange(256, dtype=torch.int32)[:, None] >> torch.arange(8, dtype=torch.int32)) & 1
        return (bits * 2 - 1).to(torch.int8).view(torch.int64).view(-1)
    return torch.from_numpy(gaussian_table())


def _halves(packed: Tensor) -> Tensor:
    """Return the 16-bit halves of packed words, int32."""
    return packed.view(torch.int16).int() & 0xFFFF
