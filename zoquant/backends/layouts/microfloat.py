"""Matrices of four- and six-bit floating-point codes with one scale for each short run of columns: MXFP4, MXFP6, NVFP4.

Source: OCP Microscaling Formats (MX) v1.0, sections 5.3.2 (E2M3, E3M2) and 5.3.3 (E2M1): sign, exponent, mantissa.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from zoquant.backends.layouts.bit_stream import BitStream
from zoquant.backends.layouts.scale_grid import ScaleGrid, power_of_two
from zoquant.backends.layouts.scaled import POWERS, spec_of
from zoquant.checkpoint.folder import Folder, StoredMatrix
from zoquant.native import PackedWeight, PackedWords, TableWeight
from zoquant.native.values import Decode

COARSE_NOTE = "its scales are float8, in steps of 6 to 12 %"
"""Why the scales of NVFP4 are not trained: a step that moves them at all is too long."""


def float_table(exponent_bits: int, mantissa_bits: int) -> Tensor:
    """Return the number of every code, float32 `[2 ** bits]`: the sign is the highest bit, no code is infinite or NaN.

    Args:
        exponent_bits: bits of the exponent, whose bias is `2 ** (exponent_bits - 1) - 1`.
        mantissa_bits: bits of the mantissa.
    """
    codes = torch.arange(1 << (exponent_bits + mantissa_bits))
    exponent, mantissa = codes >> mantissa_bits, (codes & ((1 << mantissa_bits) - 1)) / (1 << mantissa_bits)
    bias = (1 << (exponent_bits - 1)) - 1
    subnormal = exponent == 0
    power = torch.where(subnormal, 1, exponent) - bias
    positive = (mantissa + (~subnormal).float()) * power.float().exp2()
    return torch.cat((positive, -positive))


E2M1 = float_table(2, 1)


@dataclass(frozen=True, kw_only=True)
class MicrofloatLayer(StoredMatrix):
    """`w = table[code] * scale`, times one more scale for the whole matrix if there is one.

    Attributes:
        codes: tensor of the codes, `[rows, bytes]`, the lowest bits of a byte first.
        scale: tensor of the scales.
        grid: how they lie over the matrix.
        bits: bits of a code: 4 for E2M1, 6 for E2M3 and E3M2.
        exponent_bits: how many of them are the exponent.
        whole: tensor of the scale of the whole matrix, or empty.
        decode_whole: what turns that into a factor.
    """

    codes: str
    scale: str
    grid: ScaleGrid
    bits: int = 4
    exponent_bits: int = 2
    whole: str = ""
    decode_whole: Decode = Tensor.float

    def packed(self, folder: Folder) -> PackedWeight:
        """Read the matrix."""
        words, stored = folder.read(self.codes), folder.read(self.scale)
        codes = PackedWords(words, 4, self.columns) if self.bits == 4 else BitStream(words, self.bits, self.columns)
        decode = power_of_two if stored.dtype in POWERS else Tensor.float
        scales = [self.grid.values(spec_of(self, folder, self.scale), stored, decode)]
        if self.whole:
            one = ScaleGrid(self.rows, self.columns, self.rows, self.columns)
            scales.append(one.values(spec_of(self, folder, self.whole), folder.read(self.whole), self.decode_whole))
        table = float_table(self.exponent_bits, self.bits - 1 - self.exponent_bits)
        return TableWeight(self.type, codes, table, *scales)
