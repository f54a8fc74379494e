"""Quark's layouts, written in numpy alone, float64: what is stored, and the weight that it stands for.

Source: amd-quark 0.13, torch/utils/pack.py (`Pack_4_bits`, `Pack_8_bits`, `Pack_fp4`, `Pack_fp6`) and
torch/kernel/hw_emulation/hw_emulation_interface.py (`dequantize_int_per_group_affine` and its neighbours).
"""

import numpy as np
from numpy.typing import NDArray

from tests.backends.compressed_tensors import reference as ref

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
PLACES = {"reorder": (0, 2, 4, 6, 1, 3, 5, 7), "order": (0, 1, 2, 3, 4, 5, 6, 7)}
E3M2_POSITIVE = [0, 0.0625, 0.125, 0.1875, 0.25, 0.3125, 0.375, 0.4375, 0.5, 0.625, 0.75, 0.875, 1, 1.25, 1.5, 1.75,
                 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28]  # fmt: skip
TABLES = {
    "fp4": ref.E2M1,
    "fp6_e2m3": ref.E2M3,
    "fp6_e3m2": np.array([*E3M2_POSITIVE, *(-number for number in E3M2_POSITIVE)]),
}


def words(codes: Ints, order: str) -> NDArray[np.int32]:
    """Put eight numbers of 4 bits into an int32, nibble i from place `PLACES[i]`."""
    eights = (codes & 15).reshape(*codes.shape[:-1], -1, 8).astype(np.uint32)
    packed = np.zeros(eights.shape[:-1], np.uint32)
    for nibble, place in enumerate(PLACES[order]):
        packed |= eights[..., place] << np.uint32(4 * nibble)
    return packed.view(np.int32)


def sixes(codes: Ints) -> NDArray[np.uint8]:
    """Put four codes of 6 bits into three bytes, bit by bit as Quark draws them."""
    v = codes.reshape(len(codes), -1, 4)
    first = (v[..., 1] & 3) << 6 | v[..., 0]
    second = (v[..., 2] & 15) << 4 | v[..., 1] >> 2
    third = v[..., 3] << 2 | v[..., 2] >> 4
    return np.stack([first, second, third], -1).reshape(len(codes), -1).astype(np.uint8)


def fours(codes: Ints) -> NDArray[np.uint8]:
    """Put two codes of 4 bits into a byte, the second in its high half."""
    return (codes[:, 1::2] << 4 | codes[:, ::2]).astype(np.uint8)
