"""Weights of ExLlamaV3: a walk through a trellis whose states are numbers of a computed codebook.

Tiles of 16 x 16 weights are 256 steps of K bits in a circle; the state of a step is the 16 bits that end with its own.
The bits lie in uint32 words, the highest first, and the steps in the order of a tensor core.

Source: turboderp-org/exllamav3, exllamav3_ext/quant/codebook.cuh (`decode_3inst`), exl3_dq.cuh (`dq`), pack.cu,
modules/quant/exl3_lib/quantize.py (`tensor_core_perm`).
"""

import torch
from torch import Tensor

SIDE = 16
_STATES = 1 << 16
_WORD = 32
_MULTIPLIERS = {"3inst": 89226354, "mcg": 0xCBAC1FED, "mul1": 0x83DCD12D}
_ADDEND = {"3inst": 64248484}
_HALF_BITS = (0x8FFF8FFF, 0x3B603B60)
_BYTES_OFFSET = 0x6400
_BYTES_SCALE, _BYTES_BIAS = 0x1EEE, 0xC931


def codebook(name: str) -> Tensor:
    """Return the number of every state of `3inst`, `mcg` or `mul1`, float32 `[65536]`."""
    x = (torch.arange(_STATES) * _MULTIPLIERS[name] + _ADDEND.get(name, 0)) & 0xFFFFFFFF
    if name == "mul1":
        total = sum((x >> shift) & 255 for shift in (0, 8, 16, 24)) + _BYTES_OFFSET
        scale, bias = (_halves(torch.tensor(bits)).double() for bits in (_BYTES_SCALE, _BYTES_BIAS))
        return (_halves(torch.as_tensor(total)).double() * scale + bias).half().float()
    x = (x & _HALF_BITS[0]) ^ _HALF_BITS[1]
    return (_halves(x & 0xFFFF) + _halves(x >> 16)).float()


def step_of() -> Tensor:
    """Return which step gives each weight of a tile, int64 `[16, 16]`: inputs along the rows, outputs along columns."""
    step = torch.arange(SIDE * SIDE)
    lane, place = step // 8, step % 8
    row = lane % 4 * 2 + place % 2 + place % 4 // 2 * 8
    return (row * SIDE + lane // 4 + place // 4 * 8).argsort().view(SIDE, SIDE)


def states(words: Tensor, steps: Tensor) -> Tensor:
    """Return the states of some steps, int64 `[..., *steps.shape]`.

    Args:
        words: int16 `[..., 16 K]`, contiguous: the words of the file.
        steps: numbers of the steps, int64.
    """
    bits = words.shape[-1] // SIDE
    circle = words.view(torch.int32).long() & 0xFFFFFFFF
    start = ((steps + 1) * bits - SIDE) % (SIDE * SIDE * bits)
    first = start // _WORD
    pair = circle[..., first] << _WORD | circle[..., (first + 1) % circle.shape[-1]]
    return pair >> (2 * _WORD - SIDE - start % _WORD) & (_STATES - 1)


def _halves(bits: Tensor) -> Tensor:
    """Return the float16 numbers of 16 bits each."""
    return bits.to(torch.int32).to(torch.int16).view(torch.float16)
