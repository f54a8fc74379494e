"""Noise that is a pure function of (seed, key, element): the same on every device, in any order, for any subset.

A stream of 32-bit words belongs to every (seed, key, number): word `4c + j` is output `j` of Philox4x32-10 with counter
`(c, number, key hash)` and the seed as its key. Half `h` is the low or high 16 bits of word `h // 2`.

- Rademacher, stream 0: element `i` is bit `i % 32` of word `i // 32`, a set bit meaning +1.
- Gaussian, stream 1: element `i` is half `i`, looked up in `gaussian_table`.
- Sphere, stream 2: Gaussian, times the `sphere_factor` of its key: its norm is the square root of its length.
- Sparse noise multiplies any of these by 0 or 1. By element: half `i` of stream 256 lies below the threshold. By view
  or by layer: half 0 of stream 257 does, drawn for the key, or for the path of its layer.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011 (Philox4x32-10).
"""

import hashlib
import math
from dataclasses import asdict, dataclass
from functools import cache
from statistics import NormalDist
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

Kind = Literal["rademacher", "gaussian", "sphere"]
Unit = Literal["element", "view", "layer"]
KINDS: tuple[Kind, ...] = get_args(Kind)
UNITS: tuple[Unit, ...] = get_args(Unit)

NOISE_VERSION = 1
"""Number of this definition: a trajectory names it, and another one does not replay."""

BLOCK = 128
"""Elements that share one row of counters: what one call of Philox gives as Rademacher noise."""

BITS: dict[Kind, int] = {"rademacher": 1, "gaussian": 16, "sphere": 16}
ELEMENT_STREAM, UNIT_STREAM = 256, 257
MASK = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10

Words = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Noise:
    """A distribution of directions.

    Attributes:
        kind: distribution of an element: mean 0, variance 1 (the Gaussian's is 0.99998: its tails end at 4.3).
        density: share of the units that move, the others are 0 in this direction; 1 moves all. Values are not rescaled.
        unit: what is in or out as a whole: an element, a view (coupled views are one), or a layer.

    Raises:
        ValueError: a field is out of its range.
    """

    kind: Kind = "rademacher"
    density: float = 1.0
    unit: Unit = "element"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"noise is {self.kind!r}, expected one of {', '.join(KINDS)}.")
        if self.unit not in UNITS:
            raise ValueError(f"unit of the noise is {self.unit!r}, expected one of {', '.join(UNITS)}.")
        if not (0 < self.density <= 1 and self.threshold):
            raise ValueError(f"density of the noise is {self.density!r}, expected from 1/65536 to 1.")

    @property
    def threshold(self) -> int:
        """Halves below this number move their unit."""
        return round(self.density * 65536)

    @property
    def bits(self) -> int:
        """Random bits an element."""
        return BITS[self.kind]

    def unit_key(self, key: str) -> str:
        """Return what is in or out together with the view of this key."""
        return key.rpartition(".")[0] if self.unit == "layer" else key

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain data."""
        return asdict(self)


def as_noise(noise: "Kind | Noise") -> Noise:
    """Return the noise that a name stands for.

    Raises:
        ValueError: there is no such noise.
    """
    return noise if isinstance(noise, Noise) else Noise(noise)


def key_hash(key: str) -> int:
    """Return the 64 bits that stand for a key: BLAKE2b of its UTF-8 bytes, little endian."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")


def step_seed(seed: int, step: int, probe: int = 0) -> int:
    """Return the 63-bit seed of one direction of a run, so that any step can be drawn without those before it."""
    text = f"{seed}/{step}/{probe}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def child_seed(seed: int, number: int) -> int:
    """Return the 63-bit seed of one of the directions of a step that has one seed for all of them."""
    text = f"{seed}/{number}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


@cache
def gaussian_table() -> npt.NDArray[np.float32]:
    """Return 65,536 quantiles of the standard normal, float32, rounded to multiples of 2⁻²⁰: portable."""
    normal = NormalDist()
    upper = [round(normal.inv_cdf((k + 0.5) / 65536) * 2**20) / 2**20 for k in range(32768, 65536)]
    return np.array([-z for z in reversed(upper)] + upper, dtype=np.float32)


@cache
def square_table() -> npt.NDArray[np.int64]:
    """Return the squares of `gaussian_table` in units of 2⁻³², rounded to integers: their sums are exact."""
    numerators = np.round(gaussian_table().astype(np.float64) * 2**20).astype(np.int64)
    return (numerators * numerators + 128) >> 8


def sphere_factor(squares: int, count: int) -> float:
    """Return what makes the norm of `count` numbers √count; `squares` is their sum over `square_table`."""
    return float(np.float32(math.sqrt(count * 2**32 / squares))) if count else 1.0


def reference(seed: int, key: str, count: int, noise: Kind | Noise = "rademacher") -> npt.NDArray[np.float32]:
    """Return the first `count` elements of the noise of one key, float32: slow, and the definition. 0 ≤ seed < 2⁶⁴."""
    chosen = as_noise(noise)
    z = _dense(seed, key, count, chosen.kind)
    if chosen.density == 1:
        return z
    if chosen.unit == "element":
        kept = (_halves(seed, key, count, ELEMENT_STREAM) < chosen.threshold).astype(np.float32)
    else:
        kept = np.full(count, unit_moves(seed, key, chosen), dtype=np.float32)
    sparse: npt.NDArray[np.float32] = z * kept
    return sparse


def unit_moves(seed: int, key: str, noise: Noise) -> bool:
    """Whether sparse noise by view or layer moves the view of a key in one direction."""
    return bool(_halves(seed, noise.unit_key(key), 1, UNIT_STREAM)[0] < noise.threshold)


def _dense(seed: int, key: str, count: int, kind: Kind) -> npt.NDArray[np.float32]:
    if kind == "rademacher":
        words = _words(seed, key, -(-count // 32), KINDS.index(kind))
        bits = (words[:, None] >> np.arange(32, dtype=np.uint64)) & np.uint64(1)
        ones: npt.NDArray[np.float32] = bits.reshape(-1)[:count].astype(np.float32)
        return ones * 2 - 1
    halves = _halves(seed, key, count, KINDS.index(kind))
    z = gaussian_table()[halves]
    return z if kind == "gaussian" else z * np.float32(sphere_factor(int(square_table()[halves].sum()), count))


def _halves(seed: int, key: str, count: int, stream: int) -> npt.NDArray[np.int64]:
    words = _words(seed, key, -(-count // 2), stream)
    return np.stack([words & np.uint64(0xFFFF), words >> np.uint64(16)], axis=1).reshape(-1)[:count].astype(np.int64)


def _words(seed: int, key: str, count: int, stream: int) -> Words:
    calls, hashed = -(-count // 4), key_hash(key)
    state = np.zeros((4, calls), dtype=np.uint64)
    state[0] = np.arange(calls, dtype=np.uint64)
    state[1] = stream
    state[2], state[3] = hashed & MASK, hashed >> 32
    mask, high = np.uint64(MASK), np.uint64(32)
    k0, k1 = seed & MASK, seed >> 32
    for _ in range(ROUNDS):
        p0, p1 = state[0] * np.uint64(MULTIPLIERS[0]), state[2] * np.uint64(MULTIPLIERS[1])
        state = np.stack([
            (p1 >> high) ^ state[1] ^ np.uint64(k0), p1 & mask, (p0 >> high) ^ state[3] ^ np.uint64(k1), p0 & mask
        ])  # fmt: skip
        k0, k1 = (k0 + WEYL[0]) & MASK, (k1 + WEYL[1]) & MASK
    words: Words = state.T.reshape(-1)[:count]
    return words
