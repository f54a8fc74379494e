"""Blocks whose 4-bit codes index a fixed table of 16 numbers: IQ4_NL, IQ4_XS, MXFP4, NVFP4.

Source: ggml-common.h `block_iq4_nl`, `block_iq4_xs`, `block_mxfp4`, `block_nvfp4`, gguf-py 0.19 `quants.IQ4_NL` ...
`quants.NVFP4`; OCP Microscaling Formats 1.0 for E2M1 and E8M0.
"""

from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from zoquant.backends.gguf.blocks.base import BlockCodec, D, steps, subs, temporary, words
from zoquant.backends.gguf.blocks.tables import byte_pairs, index_select, indices, of_gguf_py, shifts, table

_E2M1_DOUBLED = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)


def _iq4_nl(codes: Tensor, values: Sequence[Tensor], out: Tensor) -> None:
    """`w = d table[q]`; packed as Q4_0."""
    (d,) = values
    out.copy_(_look_up(codes, "IQ4_NL", 16))
    out.mul_(d.unsqueeze(-1))


def _iq4_xs(codes: Tensor, values: Sequence[Tensor], out: Tensor) -> None:
    """`w = d (sc - 32) table[q]` for 8 sub-blocks of 32.

    A 16-bit word of the upper 2 bits of sc, 4 bytes of their low nibbles, then eight runs of 16 bytes as IQ4_NL.
    """
    (d,) = values
    upper = indices("upper", codes[..., :2].view(torch.int16), 0xFFFF) >> shifts(codes.device, *range(0, 16, 2)) & 3
    lower = indices("lower", codes[..., 2:6]).unsqueeze(-1) >> shifts(codes.device, 0, 4) & 15
    out.copy_(_look_up(codes[..., 6:], "IQ4_NL", 16))
    subs(out, 32).mul_(steps(d, (lower.flatten(-2) | upper << 4).sub_(32)))


def _mxfp4(codes: Tensor, values: Sequence[Tensor], out: Tensor) -> None:
    """`w = 2^(e - 128) table[q]`; a byte e, then 16 bytes as Q4_0. The table holds E2M1, doubled."""
    packed = temporary("aligned", codes, (*codes.shape[:-1], 16), torch.uint8).copy_(codes[..., 1:])
    out.copy_(_look_up(packed, "E2M1", 16))
    out.mul_(index_select(table(_e8m0, codes.device), indices("exponent", codes[..., :1]), "d"))


def _nvfp4(codes: Tensor, values: Sequence[Tensor], out: Tensor) -> None:
    """`w = s table[q]` for 4 sub-blocks of 16; 4 bytes s (unsigned E4M3, halved), then four runs of 8 bytes."""
    out.copy_(_look_up(codes[..., 4:], "E2M1", 8))
    scales = index_select(table(_e4m3_halved, codes.device), indices("exponent", codes[..., :4]), "d")
    subs(out, 16).mul_(scales.unsqueeze(-1))


def _look_up(packed: Tensor, values: str, run: int) -> Tensor:
    """Return the table's number for every nibble, int8 `[..., 2 * bytes]`: a run's low nibbles, then its high ones."""
    runs = packed.shape[-1] // run
    pairs = indices("index", packed.view(torch.int16), 0xFFFF).view(*packed.shape[:-1], runs, run // 2)
    out = temporary("planes", packed, (*packed.shape[:-1], runs, 2, run), torch.int8)
    for index in range(2):
        numbers = index_select(table(_pairs_of(values, 4 * index), packed.device), pairs, "numbers")
        if run == 16:
            words(out)[..., index, :].copy_(words(numbers))
        else:
            out.view(torch.int64)[..., index, :].copy_(numbers.view(torch.int64))
    return out.flatten(-3)


@cache
def _pairs_of(values: str, shift: int) -> Callable[[], Tensor]:
    return lambda: byte_pairs(_E2M1_DOUBLED if values == "E2M1" else _numbers_of_iq4(), shift)


def _numbers_of_iq4() -> Sequence[int]:
    numbers: tuple[int, ...] = of_gguf_py("IQ4_NL", "table").kvalues
    return numbers


def _e8m0() -> Tensor:
    return torch.tensor([2.0 ** (exponent - 128) for exponent in range(256)])


def _e4m3_halved() -> Tensor:
    """Byte -> half of the number; the sign bit is not looked at, and 0x7F stands for 0."""
    return (torch.arange(256) & 127).to(torch.uint8).view(torch.float8_e4m3fn).float().div_(2).nan_to_num_(0.0)


_E8M0 = "its scale is a power of two (E8M0): the smallest step is a factor of 2"
_E4M3 = "its scales have 3 bits of mantissa (E4M3): the smallest step is 6 to 12 %"
CODECS = (
    BlockCodec("IQ4_NL", 32, 18, (D,), (0,), _iq4_nl),
    BlockCodec("IQ4_XS", 256, 136, (D,), (0,), _iq4_xs),
    BlockCodec("MXFP4", 32, 17, (), (), _mxfp4, _E8M0),
    BlockCodec("NVFP4", 64, 36, (), (), _nvfp4, _E4M3),
)
