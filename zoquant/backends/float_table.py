"""The numbers of four- and six-bit floating-point codes: MXFP4, MXFP6, NVFP4.

Source: OCP Microscaling Formats (MX) v1.0, sections 5.3.2 (E2M3, E3M2) and 5.3.3 (E2M1): sign, exponent, mantissa.
"""

import torch
from torch import Tensor


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
