"""Super-blocks of 256 weights whose sub-blocks have integer scales of their own: Q2_K, Q3_K, Q4_K, Q5_K, Q6_K.

The sub-blocks' integer scales are codes; only the super-block's fp16 factors are continuous.

Source: ggml-common.h `block_q2_K` ... `block_q6_K`, gguf-py 0.19 `quants.Q2_K` ... `quants.Q6_K`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from zoquant.backends.gguf.blocks.base import DMIN, BlockCodec, D, planes, signed, steps, subs, temporary
from zoquant.backends.gguf.blocks.tables import shifts


def _q2_k(codes: Tensor, values: Sequence[Tensor], out: Tensor) -> None:
    """`w = d sc q - dmin mn` for 16 sub-blocks of 16.

    16 bytes of scales (sc in the low, mn in the high nibble), then two runs of 32 bytes with four planes of 2 bits.
    """
    d, dmin = values
    out.copy_(planes(codes[..., 16:], 2, 32))
    scales = codes[..., :16]
    subs(out, 16).mul_(steps(d, scales & 15)).sub_(steps(dmin, scales >> 4, "minima"))


def _q3_k(codes: Tensor, values: Sequence[Tensor], out: Tensor) -> None:
    """`w = d (sc - 32) (q - 4)` for 16 sub-blocks of 16.

    32 bytes hold the third bits in eight planes, two runs of 32 bytes the other two bits in four planes, and 12 bytes
    the 6-bit scales: low nibbles of 0-7 and of 8-15 in 8 bytes, their upper 2 bits in four planes of 4 bytes.
    """
    (d,) = values
    third = planes(codes[..., :32], 1, 32, lift=2, slot="third")
    out.copy_(signed(planes(codes[..., 32:96], 2, 32).bitwise_or_(third), 4))
    subs(out, 16).mul_(steps(d, signed(_q3_k_scales(codes[..., 96:]), 32)))


def _q3_k_scales(packed: Tensor) -> Tensor:
    first, second, upper = packed.view(torch.int32).unbind(-1)
    scales = temporary("scales", packed, (*first.shape, 4), torch.int32)
    for index, word in enumerate((first, second, first >> 4, second >> 4)):
        top = (upper >> 2 * index) & 0x03030303
        torch.bitwise_or(word & 0x0F0F0F0F, top << 4, out=scales[..., index])
    return scales.view(torch.uint8)


def _q4_k(codes: Tensor, values: Sequence[Tensor], out: Tensor) -> None:
    """`w = d sc q - dmin mn` for 8 sub-blocks of 32.

    12 bytes hold eight 6-bit sc and mn, then four runs of 32 bytes two planes of 4 bits.
    """
    out.copy_(planes(codes[..., 12:], 4, 32))
    _scale_and_shift(codes[..., :12], values, out)


def _q5_k(codes: Tensor, values: Sequence[Tensor], out: Tensor) -> None:
    """`w = d sc q - dmin mn` for 8 sub-blocks of 32.

    As Q4_K, with 32 bytes of fifth bits in eight planes before the nibbles.
    """
    fifth = planes(codes[..., 12:44], 1, 32, lift=4, slot="fifth")
    out.copy_(planes(codes[..., 44:], 4, 32).bitwise_or_(fifth))
    _scale_and_shift(codes[..., :12], values, out)


def _q6_k(codes: Tensor, values: Sequence[Tensor], out: Tensor) -> None:
    """`w = d sc (q - 32)` for 16 sub-blocks of 16, sc int8.

    Two runs of 64 bytes hold the low nibbles, two of 32 bytes the upper 2 bits in four planes, 16 bytes the scales.
    """
    (d,) = values
    upper = planes(codes[..., 128:192], 2, 32, lift=4, slot="upper")
    out.copy_(signed(planes(codes[..., :128], 4, 64).bitwise_or_(upper), 32))
    subs(out, 16).mul_(steps(d, codes[..., 192:].view(torch.int8)))


def _scale_and_shift(packed: Tensor, values: Sequence[Tensor], out: Tensor) -> None:
    """Replace the codes in `out` by `d sc q - dmin mn`, with sc and mn packed as Q4_K has them.

    Three words: of each byte of the first, the low 6 bits are sc of sub-blocks 0-3; of the second, mn. The upper 2
    bits of either are those of sub-blocks 4-7, whose lower 4 bits are in the third: sc in the low, mn in the high
    nibbles.
    """
    d, dmin = values
    words = packed.view(torch.int32)
    both, third = words[..., :2], words[..., 2:]
    integers = temporary("scales", packed, (*both.shape, 2), torch.int32)
    torch.bitwise_and(both, 0x3F3F3F3F, out=integers[..., 0])
    lower = third >> shifts(packed.device, 0, 4)
    torch.bitwise_or(lower & 0x0F0F0F0F, (both >> 2) & 0x30303030, out=integers[..., 1])
    sc, mn = integers.view(torch.uint8).unbind(-2)
    subs(out, 32).mul_(steps(d, sc)).sub_(steps(dmin, mn, "minima"))


CODECS = (
    BlockCodec("Q2_K", 256, 84, (D, DMIN), (80, 82), _q2_k),
    BlockCodec("Q3_K", 256, 110, (D,), (108,), _q3_k),
    BlockCodec("Q4_K", 256, 144, (D, DMIN), (0, 2), _q4_k),
    BlockCodec("Q5_K", 256, 176, (D, DMIN), (0, 2), _q5_k),
    BlockCodec("Q6_K", 256, 210, (D,), (208,), _q6_k),
)
