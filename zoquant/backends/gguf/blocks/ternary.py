"""Super-blocks of 256 weights from {-d, 0, d}: TQ1_0, TQ2_0.

Source: ggml-common.h `block_tq1_0`, `block_tq2_0`, gguf-py 0.19 `quants.TQ1_0`, `quants.TQ2_0`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from zoquant.backends.gguf.blocks.base import BlockCodec, D, planes, signed, temporary

_RUNS = ((0, 32, 5), (32, 16, 5), (48, 4, 4))
"""Of TQ1_0: first byte of a run, its length, and how many weights a byte holds."""


def _tq1_0(codes: Tensor, values: Sequence[Tensor], out: Tensor) -> None:
    """`w = d (q - 1)`; a byte holds up to five q, the digits of the ternary fraction `byte / 256`.

    Runs of 32, 16 and 4 bytes; the first digits of all bytes of a run come first.
    """
    (d,) = values
    start = 0
    for first, length, digits in _RUNS:
        rest = temporary("rest", codes, (*codes.shape[:-1], length), torch.int16)
        rest.copy_(codes[..., first : first + length])
        for _ in range(digits):
            rest.mul_(3)
            out[..., start : start + length].copy_(rest >> 8)
            rest.bitwise_and_(0xFF)
            start += length
    out.sub_(1).mul_(d.unsqueeze(-1))


def _tq2_0(codes: Tensor, values: Sequence[Tensor], out: Tensor) -> None:
    """`w = d (q - 1)`; two runs of 32 bytes with four planes of 2 bits."""
    (d,) = values
    out.copy_(signed(planes(codes, 2, 32), 1))
    out.mul_(d.unsqueeze(-1))


CODECS = (
    BlockCodec("TQ1_0", 256, 54, (D,), (52,), _tq1_0),
    BlockCodec("TQ2_0", 256, 66, (D,), (64,), _tq2_0),
)
