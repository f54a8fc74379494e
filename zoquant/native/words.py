"""The integer codes of a matrix in the words of the file, unpacked a few rows at a time."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from zoquant.errors import ShapeError
from zoquant.kernels.products.operands import Words
from zoquant.kernels.workspace import scratch
from zoquant.native.packed import Rows


class Codes(nn.Module, ABC):
    """The codes of one matrix.

    Attributes:
        rows: rows of the matrix.
        columns: columns of the matrix.
    """

    rows: int
    columns: int

    @abstractmethod
    def read(self, rows: Rows) -> Tensor:
        """Return the codes of some rows, `[len(rows), columns]`, integers or float8, perhaps in scratch memory."""

    def in_words(self) -> Words | None:
        """Return the codes as a kernel reads them, the same as `read`; None where no kernel can."""
        return None


class PlainCodes(Codes):
    """Codes that the file does not pack.

    Args:
        codes: `[rows, columns]`, int8, uint8 or a float8 dtype.
    """

    codes: Tensor

    def __init__(self, codes: Tensor) -> None:
        super().__init__()
        self.register_buffer("codes", codes)
        self.rows, self.columns = codes.shape

    def read(self, rows: Rows) -> Tensor:
        return self.codes[rows]

    def in_words(self) -> Words | None:
        """Return four codes as a word, where a row has a multiple of four."""
        if self.codes.dtype not in (torch.int8, torch.uint8):
            return None
        return _in_rows(self.codes, 8, signed=self.codes.dtype == torch.int8)


class PackedWords(Codes):
    """Codes of 1, 2, 4 or 8 bits, packed in words along the columns, the lowest bits of a word first.

    Args:
        words: `[rows, words]` of any integer dtype, or `[words, rows]` if `transposed`. Contiguous.
        bits: bits of a code: 1, 2, 4 or 8.
        columns: columns of the matrix; codes behind them in a row's last word are left out.
        transposed: whether the words of a row lie one below the other, as in GPTQ.
        high_first: whether the highest bits of a byte come first, as in bitsandbytes.
    """

    words: Tensor

    def __init__(
        self, words: Tensor, bits: int, columns: int, *, transposed: bool = False, high_first: bool = False
    ) -> None:
        super().__init__()
        self.register_buffer("words", words)
        self.bits, self.columns = bits, columns
        self.transposed, self.high_first = transposed, high_first
        self.rows, length = words.shape[::-1] if transposed else words.shape
        held = length * words.element_size() * 8 // bits
        if held < columns:
            raise ShapeError(
                f"packed words: expected {columns} codes of {bits} bits a row, got room for {held} in {length} words."
            )

    def read(self, rows: Rows) -> Tensor:
        words = self.words[:, rows].t() if self.transposed else self.words[rows]
        codes = unpack(words.contiguous().view(torch.uint8), self.bits, high_first=self.high_first)
        return codes[:, : self.columns]

    def in_words(self) -> Words | None:
        """Return the words; those of another size than int32 are read by fours or halves of them."""
        order = 8 // self.bits - 1 if self.high_first else 0
        if not self.transposed:
            return _in_rows(self.words, self.bits, order=order)
        if self.words.dtype != torch.int32 or not self.words.is_contiguous():
            return None
        return Words(self.words, 1, self.words.shape[1], self.bits, order=order)


def _in_rows(data: Tensor, bits: int, *, signed: bool = False, order: int = 0) -> Words | None:
    """Return rows of packed codes as int32 words; None where a row does not consist of whole ones."""
    if not data.is_contiguous() or data[0].nbytes % 4 or data.data_ptr() % 4:
        return None
    words = data.view(torch.int32)
    return Words(words, words.shape[1], 1, bits, signed=signed, order=order)


def unpack(packed: Tensor, bits: int, *, high_first: bool = False) -> Tensor:
    """Unpack bytes into codes.

    Args:
        packed: uint8 `[..., bytes]`.
        bits: bits of a code: 1, 2, 4 or 8.
        high_first: whether the highest bits of a byte come first.

    Returns:
        uint8 `[..., bytes * 8 // bits]` in scratch memory; for 8 bits `packed` itself.
    """
    count = 8 // bits
    if count == 1:
        return packed
    out = scratch((*packed.shape, count), torch.uint8, packed.device, "unpack")
    for index in range(count):
        place = count - 1 - index if high_first else index
        torch.bitwise_right_shift(packed, index * bits, out=out[..., place])
    return out.bitwise_and_((1 << bits) - 1).flatten(-2)
