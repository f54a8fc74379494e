"""Codebook blocks: every code picks 4 or 8 weights from a grid that llama.cpp fixed once and for all.

The grids are constants of the format, not of the file: they hold nothing to train. They are taken from the installed
`gguf` package at the first decode.

Source: ggml-common.h `block_iq2_xxs` ... `block_iq1_m`, gguf-py 0.19 `quants.IQ2_XXS` ... `quants.IQ1_M`.
"""

from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from zoquant.backends.gguf.blocks.base import BlockCodec, D, steps, subs, temporary
from zoquant.backends.gguf.blocks.tables import index_select, indices, of_gguf_py, shifts, table


def _iq2_xxs(codes: Tensor, values: Sequence[Tensor], out: Tensor) -> None:
    """`w = d (sc + 1/2) / 4 · ±grid` for 8 sub-blocks of 32.

    A sub-block has 4 bytes of codes for 8 weights each, then a word of four 7-bit sign codes and 4 bits of sc.
    """
    (d,) = values
    parts = codes.view(*codes.shape[:-1], 8, 2, 4)
    last = parts[..., 1, :].view(torch.int32).squeeze(-1)
    _widen_signed(out, _grid("IQ2_XXS", indices("index", parts[..., 0, :])), _seven_bit_signs(last))
    subs(out, 32).mul_(steps(d, (last >> 28 & 15).add(0.5)).mul_(0.25))


def _iq2_xs(codes: Tensor, values: Sequence[Tensor], out: Tensor) -> None:
    """`w = d (sc + 1/2) / 4 · ±grid` for 16 sub-blocks of 16.

    32 words of 16 bits: 9 bits of code for 8 weights, 7 of signs; then 8 bytes with the nibbles sc.
    """
    (d,) = values
    pairs = indices("pairs", codes[..., :64].view(torch.int16), 0xFFFF)
    signs = index_select(table(_signs_of_seven_bits, codes.device), pairs >> 9, "signs")
    _widen_signed(out, _grid("IQ2_XS", pairs & 511), signs)
    subs(out, 16).mul_(steps(d, _nibbles(codes[..., 64:]).add(0.5)).mul_(0.25))


def _iq2_s(codes: Tensor, values: Sequence[Tensor], out: Tensor) -> None:
    """`w = d (sc + 1/2) / 4 · ±grid` for 16 sub-blocks of 16.

    32 bytes of codes for 8 weights, 32 of signs, 8 with two more bits of each code, 8 with the nibbles sc.
    """
    (d,) = values
    index = _longer(codes[..., :32], _pieces(codes[..., 64:72], 2))
    _widen_signed(out, _grid("IQ2_S", index), _eight_bit_signs(codes[..., 32:64]))
    subs(out, 16).mul_(steps(d, _nibbles(codes[..., 72:]).add(0.5)).mul_(0.25))


def _iq3_xxs(codes: Tensor, values: Sequence[Tensor], out: Tensor) -> None:
    """`w = d (sc + 1/2) / 2 · ±grid` for 8 sub-blocks of 32.

    64 bytes of codes for 4 weights, then a word a sub-block of four 7-bit sign codes and 4 bits of sc.
    """
    (d,) = values
    last = codes[..., 64:].view(torch.int32)
    _widen_signed(out, _grid("IQ3_XXS", indices("index", codes[..., :64])), _seven_bit_signs(last))
    subs(out, 32).mul_(steps(d, (last >> 28 & 15).add(0.5)).mul_(0.5))


def _iq3_s(codes: Tensor, values: Sequence[Tensor], out: Tensor) -> None:
    """`w = d (2 sc + 1) · ±grid` for 8 sub-blocks of 32.

    64 bytes of codes for 4 weights, 8 with a ninth bit of each, 32 of signs, 4 with the nibbles sc.
    """
    (d,) = values
    index = _longer(codes[..., :64], _pieces(codes[..., 64:72], 1))
    _widen_signed(out, _grid("IQ3_S", index), _eight_bit_signs(codes[..., 72:104]))
    subs(out, 32).mul_(steps(d, _nibbles(codes[..., 104:]).mul_(2).add_(1)))


def _iq1_s(codes: Tensor, values: Sequence[Tensor], out: Tensor) -> None:
    """`w = d (2 sc + 1) (grid ± 1/8)` for 8 sub-blocks of 32.

    32 bytes of codes for 8 weights; then a 16-bit word a sub-block: three more bits of its four codes, sc, the sign.
    """
    (d,) = values
    last = indices("pairs", codes[..., 32:].view(torch.int16), 0xFFFF)
    upper = last.unsqueeze(-1) >> shifts(codes.device, 0, 3, 6, 9) & 7
    out.copy_(_grid("IQ1_S", _longer(codes[..., :32], upper)).view(torch.int8).view(out.shape))
    subs(out, 32).add_(_eighths(last >> 15)).mul_(steps(d, (last >> 12 & 7).mul_(2).add_(1)))


def _iq1_m(codes: Tensor, values: Sequence[Tensor], out: Tensor) -> None:
    """`w = d (2 sc + 1) (grid ± 1/8)` for 16 sub-blocks of 16.

    32 bytes of codes for 8 weights, 16 bytes whose nibbles hold three more bits of each and the sign, then four 16-bit
    words of four sc of 3 bits each, and in their top nibbles the fp16 d.
    """
    last = indices("pairs", codes[..., 48:].view(torch.int16), 0xFFFF)
    nibbles = _nibbles(codes[..., 32:48])
    out.copy_(_grid("IQ1_M", _longer(codes[..., :32], nibbles & 7)).view(torch.int8).view(out.shape))
    subs(out, 8).add_(_eighths(nibbles >> 3))
    bits = (last >> 12 << shifts(codes.device, 0, 4, 8, 12)).sum(-1, dtype=torch.int32)
    d = bits.to(torch.int16).view(torch.float16).float()
    sc = last.unsqueeze(-1) >> shifts(codes.device, 0, 3, 6, 9) & 7
    subs(out, 16).mul_(steps(d, sc.flatten(-2).mul_(2).add_(1)))


def _grid(name: str, index: Tensor) -> Tensor:
    """Return the grid's weights for every code, 4 (int32) or 8 (int64) bytes a code, in scratch memory."""
    return index_select(table(_grid_of(name), index.device), index, "grid")


@cache
def _grid_of(name: str) -> Callable[[], Tensor]:
    def build() -> Tensor:
        codec = of_gguf_py(name, "grids")
        codec.init_grid()
        grid = torch.from_numpy(codec.grid).to(torch.int8).reshape(codec.grid_shape)
        return grid.view(torch.int64 if grid.shape[1] == 8 else torch.int32).flatten()

    return build


def _signs_of_eight_bits() -> Tensor:
    """Byte -> 0xFF for each of its bits that is set, one a byte of an int64."""
    bits = torch.arange(256).unsqueeze(1) >> torch.arange(8) & 1
    return bits.neg().to(torch.int8).view(torch.int64).flatten()


def _signs_of_seven_bits() -> Tensor:
    """Seven bits -> the same, with an eighth bit that makes the number of set bits even."""
    codes = torch.arange(128)
    parity = (codes.unsqueeze(1) >> torch.arange(7) & 1).sum(-1) & 1
    return _signs_of_eight_bits()[codes | parity << 7]


def _seven_bit_signs(last: Tensor) -> Tensor:
    index = last.unsqueeze(-1) >> shifts(last.device, 0, 7, 14, 21) & 127
    return index_select(table(_signs_of_seven_bits, last.device), index, "signs")


def _eight_bit_signs(signs: Tensor) -> Tensor:
    return index_select(table(_signs_of_eight_bits, signs.device), indices("signs of", signs), "signs")


def _widen_signed(out: Tensor, grid: Tensor, signs: Tensor) -> None:
    """Write the grid's bytes to `out`, negated where the bytes of `signs` are 0xFF: `(g ^ s) - s`."""
    minus = signs.view(torch.int8).view(-1)
    weights = grid.view(torch.int8).view(-1).bitwise_xor_(minus).sub_(minus)
    out.copy_(weights.view(out.shape))


def _pieces(packed: Tensor, bits: int) -> Tensor:
    """Unpack small integers that lie side by side in a byte, lowest first: int32 `[..., bytes * 8 // bits]`."""
    amounts = shifts(packed.device, *range(0, 8, bits))
    return (indices("pieces", packed).unsqueeze(-1) >> amounts & (1 << bits) - 1).flatten(-2)


def _nibbles(packed: Tensor) -> Tensor:
    return _pieces(packed, 4)


def _longer(codes: Tensor, upper: Tensor) -> Tensor:
    """Return codes of 8 bits with more bits above, int32 in scratch memory."""
    index = indices("index", codes)
    return index.bitwise_or_(upper.view(index.shape) << 8)


def _eighths(sign: Tensor) -> Tensor:
    """Return 1/8 where `sign` is 0 and -1/8 where it is 1, `[..., 1]`."""
    eighths = temporary("eighths", sign, tuple(sign.shape), torch.float32).copy_(sign)
    return eighths.mul_(-0.25).add_(0.125).unsqueeze(-1)


_SCATTERED = "its d is scattered over the top nibbles of four words, so no run of bytes holds it"
CODECS = (
    BlockCodec("IQ2_XXS", 256, 66, (D,), (0,), _iq2_xxs),
    BlockCodec("IQ2_XS", 256, 74, (D,), (0,), _iq2_xs),
    BlockCodec("IQ2_S", 256, 82, (D,), (0,), _iq2_s),
    BlockCodec("IQ3_XXS", 256, 98, (D,), (0,), _iq3_xxs),
    BlockCodec("IQ3_S", 256, 110, (D,), (0,), _iq3_s),
    BlockCodec("IQ1_S", 256, 50, (D,), (0,), _iq1_s),
    BlockCodec("IQ1_M", 256, 56, (), (), _iq1_m, _SCATTERED),
)
