"""The order of EETQ's bytes, written step by step as its C++ does it, in numpy.

Source: NetEase-FuXi/EETQ, csrc/cutlass_kernels/cutlass_preprocessors.cc.
"""

import numpy as np
from numpy.typing import NDArray


def preprocess(codes: NDArray[np.int8]) -> NDArray[np.int8]:
    """Return codes `[columns, rows]` in the order of the kernels, as a matrix of the same shape."""
    columns, rows = codes.shape
    permuted = np.empty_like(codes)
    for base in range(0, columns, 16):
        for place in range(16):
            permuted[base + place] = codes[base + 8 * (place % 4 // 2) + place % 2 + 2 * (place // 4)]
    vectors = np.ascontiguousarray(permuted.T).view(np.int32)
    height = columns // 4
    interleaved = np.empty(rows * height, np.int32)
    for column in range(rows):
        for base in range(0, height, 16):
            for vector in range(base, base + 16):
                at = column // 2 * height * 2 + 2 * base + 16 * (column % 2) + vector % 16
                interleaved[at] = vectors[column, vector]
    biased = (interleaved.view(np.int8).astype(np.int16) + 128).astype(np.uint8)
    swapped = biased.reshape(-1, 4)[:, [0, 2, 1, 3]]
    return np.ascontiguousarray(swapped).view(np.int8).reshape(columns, rows)
