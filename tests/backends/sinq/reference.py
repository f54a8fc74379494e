"""SINQ's layout, written in numpy alone, float64: what is stored, and the weight that it stands for.

Source: sinq 0.2.0, bitpack.py, quantizer.py (`Quantizer.dequantize`, `dq8`).
"""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
PER_WORD = {8: 1, 6: 5, 5: 6, 4: 2, 3: 10, 2: 4, 1: 8}
NAMES = {bits: f"{bits}bit_{'32' if bits in (3, 5, 6) else 'u8'}" for bits in PER_WORD}


def words(codes: Ints, bits: int) -> NDArray[np.integer]:
    """Pack codes `[groups, size]`: the first of as many equal runs of groups as a word holds codes lies highest."""
    count = PER_WORD[bits]
    padded = np.pad(codes, ((0, -len(codes) % count), (0, 0)))
    runs = padded.reshape(count, -1, codes.shape[1])
    packed = sum(run << bits * (count - 1 - place) for place, run in enumerate(runs))
    return np.asarray(packed).astype(np.int32 if bits in (3, 5, 6) else np.uint8)


def eight_bit(x: Ints, s: Array, m: Array) -> Array:
    """Undo `rtn8`: `x` as rows of as many numbers as `s` and `m` have."""
    return (x.reshape(-1, s.size) * s.reshape(-1) + m.reshape(-1)).reshape(-1)


def flat(codes: Ints, scale: Array, zero: Array, columns_scale: Array, shape: tuple[int, int]) -> Array:
    """Dequantize groups of columns."""
    return ((codes - zero[:, None]) * scale[:, None]).reshape(shape) * columns_scale.reshape(1, -1)


def tiled(codes: Ints, scale: Array, zero: Array, columns_scale: Array, shape: tuple[int, int]) -> Array:
    """Dequantize square tiles one by one."""
    rows, columns = shape
    size = codes.shape[1]
    matrix, weight = codes.reshape(rows, columns), np.empty(shape)
    for tile in range(rows * columns // size**2):
        down, across = divmod(tile, columns // size)
        at = np.s_[down * size : (down + 1) * size, across * size : (across + 1) * size]
        numbers = np.s_[tile * size : (tile + 1) * size]
        part = (matrix[at] - zero[numbers][:, None]) * scale[numbers][:, None]
        weight[at] = part * columns_scale.reshape(-1, size)[tile]
    return weight
