"""The layouts of compressed-tensors, written and read in numpy alone, float64.

Source: compressed-tensors 0.20.0, docs and compressors/*; vLLM's `compressed_tensors` readers agree.
"""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
E2M3_POSITIVE = [0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1, 1.125, 1.25, 1.375, 1.5, 1.625, 1.75, 1.875,
                 2, 2.25, 2.5, 2.75, 3, 3.25, 3.5, 3.75, 4, 4.5, 5, 5.5, 6, 6.5, 7, 7.5]  # fmt: skip
E2M3 = np.array([*E2M3_POSITIVE, *(-value for value in E2M3_POSITIVE)])


def pack(codes: Ints, bits: int, word: int) -> NDArray[np.unsignedinteger]:
    """Pack codes `[rows, n]` into words of `word` bits, one bit after the other, the lowest first."""
    rows, count = codes.shape
    stream = (codes[:, :, None] >> np.arange(bits)) & 1
    stream = stream.reshape(rows, count * bits)
    missing = -stream.shape[1] % word
    stream = np.pad(stream, ((0, 0), (0, missing))).reshape(rows, -1, word)
    words: NDArray[np.unsignedinteger] = (stream.astype(np.uint64) << np.arange(word, dtype=np.uint64)).sum(-1)
    return words.astype(f"u{word // 8}")


def unpack(words: NDArray[np.unsignedinteger], bits: int, count: int) -> Ints:
    """Undo `pack`, one bit after the other."""
    size = words.dtype.itemsize * 8
    stream = (words.astype(np.uint64)[:, :, None] >> np.arange(size, dtype=np.uint64)) & np.uint64(1)
    stream = stream.reshape(len(words), -1)[:, : count * bits].reshape(len(words), count, bits)
    codes: Ints = (stream.astype(np.int64) << np.arange(bits)).sum(-1)
    return codes


def spread(values: Array, rows: int, columns: int, height: int, width: int) -> Array:
    """Repeat one number a block over its rows and columns, and cut the ragged edges."""
    values = values.reshape(-(-rows // height), -(-columns // width))
    return np.repeat(np.repeat(values, height, 0), width, 1)[:rows, :columns]


def float8_e4m3(codes: NDArray[np.uint8]) -> Array:
    """Decode float8_e4m3fn bit by bit: bias 7, no infinity."""
    sign, exponent, mantissa = codes >> 7, (codes >> 3) & 15, codes & 7
    normal = (1 + mantissa / 8) * 2.0 ** (exponent.astype(int) - 7)
    return np.where(sign == 1, -1.0, 1.0) * np.where(exponent == 0, mantissa / 8 * 2.0**-6, normal)
