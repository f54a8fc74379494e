"""Native matrices over the tensors of bitsandbytes.

    4 bits:  W = table[code] * absmax, with  absmax = nested_quant_map[code2] * nested_absmax + offset  when nested
    8 bits:  W = code * SCB / 127

The first code of a byte lies in its high half, and a block of absmax runs over the flattened matrix.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from zoquant.backends.bitsandbytes.quant_state import QuantState
from zoquant.checkpoint.folder import ROW, AffineLayout, StoredCodes, StoredNumbers
from zoquant.native import FieldSpec, PackedWords, TableWeight, Values
from zoquant.native.packed import Rows
from zoquant.native.values import flat_blocks, flat_groups, indices

_FP4 = (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0)
TABLES = {
    # QLoRA (arXiv 2305.14314), appendix E.
    "nf4": (
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
        0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ),
    # bitsandbytes 0.50.2, functional.py (`get_4bit_type`): sign, then three bits of floating point, over 12.
    "fp4": tuple(sign * value / 12 for sign in (1, -1) for value in _FP4),
}  # fmt: skip
"""What the codes of 0 to 15 stand for. The library's kernels have these built in and ignore the file's `quant_map`."""


class NestedAbsmax(Values):
    """Absmax in 8 bits, whose scale `nested_absmax` is the continuous tensor.

    Args:
        spec: the field of `nested_absmax`.
        nested_absmax: float32 `[ceil(blocks / nested_blocksize)]`.
        codes: the first level, uint8 `[blocks]`.
        quant_map: what its codes stand for, float32 `[256]`.
        state: shape, block sizes and offset.
    """

    codes: Tensor
    quant_map: Tensor

    def __init__(
        self, spec: FieldSpec, nested_absmax: Tensor, codes: Tensor, quant_map: Tensor, state: QuantState
    ) -> None:
        super().__init__(spec, nested_absmax, flat_groups(state.columns, state.blocksize))
        self.register_buffer("codes", codes)
        self.register_buffer("quant_map", quant_map)
        self.state = state

    def at(self, rows: Rows) -> Tensor:
        """Return absmax of some rows, float32 `[len(rows), groups, 1]`."""
        state = self.state
        index = flat_blocks(indices(rows, state.rows, self.codes.device), state.columns, state.blocksize)
        scale = self.data[index // state.nested_blocksize].float()
        absmax = self.quant_map[self.codes[index].int()] * scale + state.nested_offset
        return absmax.unsqueeze(-1)


def four_bit(tensors: Mapping[str, Tensor], state: QuantState) -> TableWeight:
    """Return a 4-bit matrix.

    Args:
        tensors: `weight`, two codes a byte, of any dtype and shape: the bytes of the flattened matrix;
            `weight.absmax`, and when nested `weight.nested_absmax` and `weight.nested_quant_map`.
        state: shape, block sizes and quant_type.
    """
    absmax = tensors["weight.absmax"]
    if state.nested_blocksize:
        nested = tensors["weight.nested_absmax"]
        spec = FieldSpec("nested_absmax", "scale", nested.dtype)
        scale: Values = NestedAbsmax(spec, nested, absmax, tensors["weight.nested_quant_map"], state)
    else:
        scale = Values(FieldSpec("absmax", "scale", absmax.dtype), absmax, flat_groups(state.columns, state.blocksize))
    words = tensors["weight"].reshape(-1).view(torch.uint8).view(state.rows, state.columns // 2)
    table = torch.tensor(TABLES[state.quant_type], dtype=torch.float32, device=words.device)
    return TableWeight(state.quant_type, PackedWords(words, 4, state.columns, high_first=True), table, scale)


def _over_127(stored: Tensor) -> Tensor:
    return stored.float() / 127


EIGHT_BIT = AffineLayout(
    type="int8 rows",
    codes=StoredCodes("weight", (torch.int8,)),
    scale=StoredNumbers("SCB", ROW, (torch.float32,), dims=1, decode=_over_127),
    beside=("weight_format",),
)
