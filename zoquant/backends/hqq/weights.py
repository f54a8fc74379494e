"""A matrix of HQQ: codes in planes of packed words, scale and zero point in one or two levels.

    W = ((codes - zero) * scale).reshape(rows, columns)

The matrix is flattened and laid out as `[groups, size]` (axis 1) or `[size, groups]` (axis 0), with a scale and a zero
point for each group. In older files either of the two is itself a matrix of HQQ: `scale = (codes - zero) * scale`.

Source: hqq 0.2.8.post1, hqq/core/bitpack.py, hqq/core/quantize.py (`Quantizer.dequantize`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from zoquant.kernels.products.operands import Shared, Words
from zoquant.kernels.workspace import scratch
from zoquant.native import AffineWeight, Codes, Values
from zoquant.native.packed import Rows
from zoquant.native.values import GroupLookup, flat_blocks, flat_groups, indices


@dataclass(frozen=True)
class Packing:
    """How hqq packs codes: bits of a code, codes in a word, dtype of the words."""

    bits: int
    count: int
    dtype: torch.dtype


PACKINGS: Mapping[str, Packing] = {
    "8bit_u8": Packing(8, 1, torch.uint8),
    "4bit_u8": Packing(4, 2, torch.uint8),
    "3bit_32": Packing(3, 10, torch.int32),
    "2bit_u8": Packing(2, 4, torch.uint8),
    "1bit_u8": Packing(1, 8, torch.uint8),
}


class PlaneCodes(Codes):
    """Codes of a flattened matrix that is cut into as many equal planes as a word holds codes, the first one highest.

    Args:
        words: the words of the file, of any shape and dtype; their bytes count.
        packing: how they are packed.
        rows: rows of the matrix.
        columns: columns of the matrix.
    """

    words: Tensor

    def __init__(self, words: Tensor, packing: Packing, rows: int, columns: int) -> None:
        super().__init__()
        self.register_buffer("words", words.view(torch.uint8).view(packing.dtype).flatten())
        self.packing, self.rows, self.columns = packing, rows, columns

    def read(self, rows: Rows) -> Tensor:
        if isinstance(rows, slice):
            start, stop, _ = rows.indices(self.rows)
            return self._run(start * self.columns, stop * self.columns).view(-1, self.columns)
        places = rows[:, None] * self.columns + torch.arange(self.columns, device=rows.device)
        size = self.words.numel()
        shifts = (self.packing.count - 1 - places // size) * self.packing.bits
        return (self.words[places % size] >> shifts) & self._mask

    def in_words(self) -> Words | None:
        """Return the words, each shared by a row of every plane, where planes consist of whole rows."""
        bits, count = self.packing.bits, self.packing.count
        if self.rows % count or self.words.numel() * count != self.rows * self.columns:
            return None
        shifts = tuple((count - 1 - plane) * bits for plane in range(count))
        return Words(self.words, self.columns, 1, bits, shared=Shared(shifts, self.rows // count))

    def _run(self, start: int, stop: int) -> Tensor:
        """Return the codes from one place of the flattened matrix to another."""
        size = self.words.numel()
        out = scratch((stop - start,), self.packing.dtype, self.words.device, "planes")
        for plane in range(start // size, -(-stop // size)):
            first, last = max(start, plane * size), min(stop, (plane + 1) * size)
            part = self.words[first - plane * size : last - plane * size]
            shift = (self.packing.count - 1 - plane) * self.packing.bits
            torch.bitwise_right_shift(part, shift, out=out[first - start : last - start])
        return out.bitwise_and_(self._mask)

    @property
    def _mask(self) -> int:
        return (1 << self.packing.bits) - 1


def axis_groups(axis: int, rows: int, columns: int, groups: int) -> GroupLookup:
    """Return where the numbers of `groups` groups of a matrix lie."""
    return flat_groups(columns, rows * columns // groups) if axis == 1 else striped(rows, columns)


@cache
def striped(rows: int, columns: int) -> GroupLookup:
    """`[groups]`, where weight n of the flattened matrix belongs to group `n % groups`: axis 0 of HQQ."""

    def place(data: Tensor, at: Rows) -> Tensor:
        flat, index = data.reshape(-1), indices(at, rows, data.device)
        if flat.numel() % columns == 0:
            stripes = flat.view(-1, columns)
            return stripes[index % len(stripes)]
        return flat[stripes_of(index, columns, flat.numel())]

    return place


def stripes_of(rows: Tensor, columns: int, groups: int) -> Tensor:
    """Return the groups of the weights of some rows, `[n, columns]`, as `striped` counts them."""
    return (rows[:, None] * columns + torch.arange(columns, device=rows.device)) % groups


class QuantizedValues(Values):
    """Scales or zero points that hqq quantized to 8 bits: its double quantization, which is deprecated.

    Args:
        codes: uint8, one for each number.
        scale: the second-level scale, over the codes as one column.
        zero: the second-level zero point, likewise.
        axis: the axis of the matrix's groups.
        rows: rows of the matrix.
        columns: columns of the matrix.
    """

    def __init__(self, codes: Tensor, scale: Values, zero: Values, axis: int, rows: int, columns: int) -> None:
        super().__init__(None, codes, axis_groups(axis, rows, columns, codes.numel()))
        self.scale, self.zero = scale, zero
        self.axis, self.rows, self.columns = axis, rows, columns

    def at(self, rows: Rows) -> Tensor:
        """Return the numbers of some rows, decoded anew each time: only those, or all where they are fewer."""
        device, count = self.data.device, self.data.numel()
        wanted = indices(rows, self.rows, device)
        if len(wanted) * self._index(wanted[:1]).numel() > count:
            return self.place(self._decoded(torch.arange(count, device=device)), rows).unsqueeze(-1)
        index = self._index(wanted)
        return self._decoded(index.flatten()).view(*index.shape, 1)

    def _index(self, rows: Tensor) -> Tensor:
        """Return which of the numbers belong to some rows of the matrix, `[len(rows), groups]`."""
        count = self.data.numel()
        if self.axis == 1:
            return flat_blocks(rows, self.columns, self.rows * self.columns // count)
        return stripes_of(rows, self.columns, count)

    def _decoded(self, which: Tensor) -> Tensor:
        codes = self.data.reshape(-1)[which].float()
        return (codes - self.zero.at(which).flatten()) * self.scale.at(which).flatten()


class HQQWeight(AffineWeight):
    """A matrix whose scale and zero point may have a second level."""

    @property
    def numbers(self) -> tuple[Values, ...]:
        return tuple(
            level
            for values in super().numbers
            for level in ((values.scale, values.zero) if isinstance(values, QuantizedValues) else (values,))
        )
