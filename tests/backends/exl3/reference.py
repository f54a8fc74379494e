"""ExLlamaV3's layout in numpy: the writer's packing, and weights from the states that it packed, float64.

Source: turboderp-org/exllamav3, exllamav3_ext/quant/pack.cu (`pack_trellis_kernel`), codebook.cuh, reconstruct.cu
(`reconstruct_kernel`), modules/quant/exl3.py (`get_weight_tensor`).
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Ints = NDArray[np.int64]


def pack(steps: Ints, bits: int) -> NDArray[np.int16]:
    """Pack the low bits of 256 steps: 16 spans of 16 steps, uint16 from the top, then each pair of them exchanged."""
    packed = []
    for span in range(16):
        buffer, free = 0, 32
        for value in steps[16 * span : 16 * span + 16]:
            free -= bits
            buffer |= (int(value) & ((1 << bits) - 1)) << free
            if free <= 16:
                packed.append(buffer >> 16)
                buffer = (buffer << 16) & 0xFFFFFFFF
                free += 16
    words = np.array(packed, np.uint16).reshape(-1, 2)[:, ::-1]
    return np.ascontiguousarray(words).reshape(-1).view(np.int16)


def walk(steps: Ints, bits: int) -> Ints:
    """Return the state of every step: the last 16 bits that were walked, in a circle."""
    states = np.zeros(len(steps), np.int64)
    for back in range(-(-16 // bits), -1, -1):
        states = (states << bits | np.roll(steps, back)) & 0xFFFF
    return states


@cache
def numbers(book: str) -> Array:
    """Decode every state."""
    return np.array([number(state, book) for state in range(1 << 16)])


def number(state: int, book: str) -> float:
    """Decode one state as `decode_3inst` does."""
    if book == "mul1":
        x = state * 0x83DCD12D & 0xFFFFFFFF
        total = 0x6400 + sum(x.to_bytes(4, "little"))
        scale, bias = (float(np.array(word, np.uint16).view(np.float16)) for word in (0x1EEE, 0xC931))
        return float(np.float16(float(np.array(total, np.uint16).view(np.float16)) * scale + bias))
    x = state * 89226354 + 64248484 if book == "3inst" else state * 0xCBAC1FED
    x = ((x & 0xFFFFFFFF) & 0x8FFF8FFF) ^ 0x3B603B60
    low, high = np.array([x & 0xFFFF, x >> 16], np.uint16).view(np.float16)
    return float(low + high)


def tile(numbers: Array) -> Array:
    """Put 256 numbers where a tensor core holds them, `[16 inputs, 16 outputs]`, as `reconstruct_kernel` does."""
    out = np.empty((16, 16))
    for lane in range(32):
        r, c = lane % 4 * 2, lane // 4
        places = [(r + down, c + across) for across in (0, 8) for down in (0, 1, 8, 9)]
        for step, place in enumerate(places):
            out[place] = numbers[lane * 8 + step]
    return out


def hadamard() -> Array:
    """Return the matrix of 128: -1 where the bits that row and column share are odd in number."""
    signs: Array = np.array([[1.0 - 2 * ((i & j).bit_count() % 2) for j in range(128)] for i in range(128)])
    return signs / float(np.sqrt(128))


def weight(inner: Array, suh: Array, svh: Array) -> Array:
    """Return the weight `[outputs, inputs]` of a trellis `[inputs, outputs]`, all blocks at once."""
    left, right = (np.kron(np.eye(n // 128), hadamard()) for n in inner.shape)
    turned: Array = np.asarray((suh[:, None] * (left @ inner)) @ right * svh)
    return np.asarray(turned.T, dtype=np.float64)
