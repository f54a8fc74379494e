"""Blocks of 32 weights with one or two fp16 fields: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0.

Source: ggml-common.h `block_q4_0` ... `block_q8_0`, gguf-py 0.19 `quants.Q4_0` ... `quants.Q8_0`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from zoquant.backends.gguf.blocks.base import BlockCodec, D, M, planes, signed, temporary
from zoquant.backends.gguf.blocks.tables import index_select, indices, spread_fifth_bits, table


def _q4_0(codes: Tensor, values: Sequence[Tensor], out: Tensor) -> None:
    """`w = d (q - 8)`; 16 bytes hold weights 0-15 in their low and 16-31 in their high nibbles."""
    (d,) = values
    _halves(codes, out, offset=8)
    out.mul_(d.unsqueeze(-1))


def _q4_1(codes: Tensor, values: Sequence[Tensor], out: Tensor) -> None:
    """`w = d q + m`; packed as Q4_0."""
    d, m = values
    _halves(codes, out)
    out.mul_(d.unsqueeze(-1)).add_(m.unsqueeze(-1))


def _q5_0(codes: Tensor, values: Sequence[Tensor], out: Tensor) -> None:
    """`w = d (q - 16)`; 4 bytes of fifth bits, weight i at bit i, then 16 bytes as Q4_0."""
    (d,) = values
    out.copy_(signed(_five_bits(codes), 16))
    out.mul_(d.unsqueeze(-1))


def _q5_1(codes: Tensor, values: Sequence[Tensor], out: Tensor) -> None:
    """`w = d q + m`; packed as Q5_0."""
    d, m = values
    out.copy_(_five_bits(codes))
    out.mul_(d.unsqueeze(-1)).add_(m.unsqueeze(-1))


def _q8_0(codes: Tensor, values: Sequence[Tensor], out: Tensor) -> None:
    """`w = d q`, q int8."""
    (d,) = values
    out.copy_(codes.view(torch.int8))
    out.mul_(d.unsqueeze(-1))


def _halves(codes: Tensor, out: Tensor, *, offset: int = 0) -> None:
    """Write the low nibbles of 16 bytes to the first 16 numbers of `out`, the high ones to the last.

    Where nothing else happens to the codes, this takes three quarters of the time of `planes` and a copy.
    """
    low = temporary("low", codes, tuple(codes.shape), torch.uint8)
    high = temporary("high", codes, tuple(codes.shape), torch.uint8)
    torch.bitwise_and(codes, 15, out=low)
    torch.bitwise_right_shift(codes, 4, out=high)
    out[..., :16].copy_(signed(low, offset) if offset else low)
    out[..., 16:].copy_(signed(high, offset) if offset else high)


def _five_bits(codes: Tensor) -> Tensor:
    """Return the 5-bit codes, uint8 `[..., 32]`, in scratch memory."""
    low = planes(codes[..., 4:], 4, 16)
    fifth = index_select(table(spread_fifth_bits, codes.device), indices("index", codes[..., :4]), "fifth")
    return low.bitwise_or_(fifth.view(torch.uint8))


CODECS = (
    BlockCodec("Q4_0", 32, 18, (D,), (0,), _q4_0),
    BlockCodec("Q4_1", 32, 20, (D, M), (0, 2), _q4_1),
    BlockCodec("Q5_0", 32, 22, (D,), (0,), _q5_0),
    BlockCodec("Q5_1", 32, 24, (D, M), (0, 2), _q5_1),
    BlockCodec("Q8_0", 32, 34, (D,), (0,), _q8_0),
)
