"""The layout of GPTQ: `w[o, i] = (code[i, o] − zero[g[i], o]) · scales[g[i], o]`.

    qweight  int32 [columns * bits / 32, rows]   codes, packed along the columns
    qzeros   int32 [groups, rows * bits / 32]    integer zeros, packed along the rows
    scales   [groups, rows]
    g_idx    int32 [columns]                     the group of each column; a permutation with desc_act

Codes and zeros of 3 bits cross from a word into the next: 32 of them lie in 3 words.

Source: AutoGPTQ 0.7.1 and GPTQModel 7.7.0, nn_modules/qlinear (`pack`).
"""

from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch

from zoquant.checkpoint.folder import AffineLayout, PackedZeros, StoredCodes, StoredNumbers
from zoquant.native.packed_rows import PackedRows
from zoquant.native.values import GroupLookup

BITS = (2, 3, 4, 8)
_ONES = {2: 0x55555555, 4: 0x11111111, 8: 0x01010101}

Wrap = Literal["words", "fields", "never"]
"""How ones come back that were taken off zeros: to whole words, to each field within its bits, or beyond them."""


def gptq_layout(
    bits: int, group_size: int, *, minus_one: bool, wrap: Wrap = "words", g_idx: bool = False, type: str = ""
) -> AffineLayout:
    """Return the layout of a layer.

    Args:
        bits: bits of a code: 2, 3, 4 or 8.
        group_size: columns of a group; -1 for all of them.
        minus_one: whether `qzeros` holds zero − 1, as the format `gptq` does and `gptq_v2` does not.
        wrap: how those ones come back, see `packed_zeros`.
        g_idx: whether there is a `g_idx`.
        type: what `zoquant inspect` calls it.
    """
    block = (1, max(group_size, 0))
    return AffineLayout(
        type=type or f"gptq {bits}-bit g{group_size}",
        codes=StoredCodes("qweight", (torch.int32,), bits, transposed=True),
        scale=StoredNumbers("scales", block, transposed=True, ragged=True),
        zero=GPTQZeros("qzeros", block, transposed=True, ragged=True, bits=bits, minus_one=minus_one, wrap=wrap),
        group_of="g_idx" if g_idx else "",
    )


@dataclass(frozen=True, kw_only=True)
class GPTQZeros(PackedZeros):
    """Zeros that may be stored less one, see `packed_zeros`."""

    minus_one: bool
    wrap: Wrap

    def lookup(self, rows: int, columns: int) -> GroupLookup:
        return packed_zeros(self.bits, minus_one=self.minus_one, wrap=self.wrap)


@cache
def packed_zeros(bits: int, *, minus_one: bool, wrap: Wrap = "words") -> GroupLookup:
    """`[groups, words]` int32: integer zeros, packed along the rows of the matrix.

    Args:
        bits: bits of a zero: 2, 3, 4 or 8.
        minus_one: whether the file holds zero − 1.
        wrap: GPTQModel takes the ones off whole words, so that a zero of 0 borrows from its neighbour, and gives them
            back to whole words; of 3 bits it takes each field by itself.
    """
    if not minus_one:
        return PackedRows(bits)
    if bits in _ONES and wrap == "words":
        return PackedRows(bits, _ONES[bits])
    stored, mask = PackedRows(bits), -1 if wrap == "never" else (1 << bits) - 1
    return lambda data, rows: stored(data, rows) + 1 & mask
