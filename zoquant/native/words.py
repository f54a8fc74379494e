"""The integer codes of a matrix in the words of the file, unpacked a few rows at a time."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from zoquant.errors import ShapeError
from zoquant.kernels.products.operands import Shared, Words
from zoquant.kernels.workspace import scratch
from zoquant.native.packed import Rows

_SIGNED = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}
"""The dtype that torch can shift -> in the place of one that it cannot; the bits are the same."""


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
        codes: `[rows, columns]`, or `[columns, rows]` if `transposed`; int8, uint8 or a float8 dtype.
        transposed: whether the columns of the matrix are the rows of the tensor.
    """

    codes: Tensor

    def __init__(self, codes: Tensor, *, transposed: bool = False) -> None:
        super().__init__()
        self.register_buffer("codes", codes)
        self.transposed = transposed
        self.rows, self.columns = codes.shape[::-1] if transposed else codes.shape

    def read(self, rows: Rows) -> Tensor:
        return self.codes[:, rows].t() if self.transposed else self.codes[rows]

    def in_words(self) -> Words | None:
        """Return four codes as a word, where a row has a multiple of four."""
        if self.transposed or self.codes.dtype not in (torch.int8, torch.uint8):
            return None
        return _in_rows(self.codes, 8, signed=self.codes.dtype == torch.int8)


class PackedWords(Codes):
    """Codes of 1 to 8 bits, packed in words along the columns, the lowest bits of a word first.

    Args:
        words: `[rows, words]` of any integer dtype, or `[words, rows]` if `transposed`.
        bits: bits of a code.
        columns: columns of the matrix; codes behind them in a row's last word are left out.
        per_word: codes that a word holds in its lowest bits, such as ten of 3 bits in 32; None where codes follow one
            another without gaps, from one word into the next.
        offset: what is taken off every code.
        signed: whether the highest bit of a code is its sign, as in two's complement.
        transposed: whether the words of a row lie one below the other, as in GPTQ.
        high_first: whether the highest bits of a byte come first, as in bitsandbytes, for 1, 2 and 4 bits.

    Raises:
        ShapeError: the words have no room for the columns, or a word none for its codes.
    """

    words: Tensor

    def __init__(
        self, words: Tensor, bits: int, columns: int, *, per_word: int | None = None, offset: int = 0,
        signed: bool = False, transposed: bool = False, high_first: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        size = words.element_size() * 8
        fits = 1 <= bits <= 8 and (per_word is None or 1 <= per_word <= size // bits)
        if not fits or (high_first and (8 % bits or per_word)):
            count = "codes" if per_word is None else f"{per_word} codes"
            first = ", the highest first," if high_first else ""
            raise ShapeError(
                f"packed words: {count} of {bits} bits{first} in words of {size} bits: expected 1 to 8 bits a code, as "
                "many codes as fit a word, and the highest first with 1, 2 or 4 bits and no gaps alone."
            )
        self.register_buffer("words", words.view(_SIGNED.get(words.dtype, words.dtype)))
        self.bits, self.columns = bits, columns
        self.per_word = None if (per_word or 0) * bits == size else per_word
        self.offset, self.signed, self.transposed, self.high_first = offset, signed, transposed, high_first
        self.rows, length = words.shape[::-1] if transposed else words.shape
        held = length * size // bits if self.per_word is None else length * self.per_word
        if held < columns:
            raise ShapeError(
                f"packed words: expected {columns} codes of {bits} bits a row, got room for {held} in {length} words."
            )

    def read(self, rows: Rows) -> Tensor:
        """Return the codes of some rows, `[len(rows), columns]`: uint8, or int16 with a sign or an offset."""
        words = _turned(self.words[:, rows]) if self.transposed else self.words[rows].contiguous()
        if self.per_word is not None:
            codes = unpack_words(words, self.bits, self.per_word)
        elif 8 % self.bits:
            codes = unpack_stream(words.view(torch.uint8), self.bits, self.columns)
        else:
            codes = unpack(words.view(torch.uint8), self.bits, high_first=self.high_first)
        return shifted(codes[:, : self.columns], self.bits, self.offset, signed=self.signed)

    def in_words(self) -> Words | None:
        """Return the words of 1, 2, 4 and 8 bits; those of another size than int32 are read by fours or halves."""
        if 8 % self.bits or self.per_word is not None or (self.signed and self.bits < 8):
            return None
        order = 8 // self.bits - 1 if self.high_first else 0
        if not self.transposed:
            return _in_rows(self.words, self.bits, signed=self.signed, offset=self.offset, order=order)
        if self.words.dtype != torch.int32 or not self.words.is_contiguous():
            return None
        row = self.words.shape[1]
        return Words(self.words, 1, row, self.bits, signed=self.signed, offset=self.offset, order=order)


class SharedWords(Codes):
    """Codes of 1, 2, 4 or 8 bits packed along the rows, as in AWQ: neighbouring rows share the words of a column.

    Args:
        words: int32 `[columns, rows / codes of a word]`, contiguous.
        bits: bits of a code.
        order: which code of a word, the lowest bits first, each of its rows is; empty where they agree.
        signed: whether the highest bit of a code is its sign, as in two's complement.
    """

    words: Tensor

    def __init__(self, words: Tensor, bits: int, *, order: tuple[int, ...] = (), signed: bool = False) -> None:
        super().__init__()
        self.register_buffer("words", words)
        self.bits, self.signed = bits, signed
        self.order = order or tuple(range(32 // bits))
        self.rows, self.columns = words.shape[1] * len(self.order), words.shape[0]

    def read(self, rows: Rows) -> Tensor:
        """Return the codes of some rows, `[len(rows), columns]`, for a slice in scratch memory."""
        count = len(self.order)
        if isinstance(rows, slice):
            start, stop, step = rows.indices(self.rows)
            first = start // count
            codes = self._run(first, max(first, -(-stop // count)))[start - first * count : stop - first * count : step]
        else:
            shift = torch.tensor(self.order, dtype=torch.int32, device=rows.device)[rows % count] * self.bits
            codes = (self.words[:, rows // count] >> shift & (1 << self.bits) - 1).to(torch.uint8).t()
        return shifted(codes, self.bits, signed=self.signed)

    def in_words(self) -> Words | None:
        """Return the words, each shared by some rows."""
        if self.signed:
            return None
        shared = Shared(tuple(place * self.bits for place in self.order), 1)
        return Words(self.words, 1, self.words.shape[1], self.bits, shared=shared)

    def _run(self, first: int, last: int) -> Tensor:
        """Return the codes of the rows of some columns of words."""
        packed = _turned(self.words[:, first:last]).view(torch.uint8).view(last - first, self.columns, 4)
        out = scratch((last - first, len(self.order), self.columns), torch.uint8, packed.device, "shared")
        for row, place in enumerate(self.order):
            byte, shift = divmod(place * self.bits, 8)
            out[:, row] = packed[..., byte] >> shift & (1 << self.bits) - 1
        return out.flatten(0, 1)


def _turned(words: Tensor) -> Tensor:
    """Return a transposed copy of words that can be viewed as bytes: `contiguous` copies no tensor of one column."""
    return words.t().clone(memory_format=torch.contiguous_format)


def _in_rows(data: Tensor, bits: int, *, signed: bool = False, offset: int = 0, order: int = 0) -> Words | None:
    """Return rows of packed codes as int32 words; None where a row does not consist of whole ones."""
    if not data.is_contiguous() or data[0].nbytes % 4 or data.data_ptr() % 4:
        return None
    words = data.view(torch.int32)
    return Words(words, words.shape[1], 1, bits, signed=signed, offset=offset, order=order)


def shifted(codes: Tensor, bits: int, offset: int = 0, *, signed: bool = False) -> Tensor:
    """Return uint8 codes with their sign and less an offset, int16; `codes` itself where there is neither."""
    if not signed and not offset:
        return codes
    half = 1 << bits - 1 if signed else 0
    return (codes ^ half).to(torch.int16).sub_(half + offset)


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


def unpack_stream(stream: Tensor, bits: int, count: int) -> Tensor:
    """Unpack codes that follow one another without gaps: eight of them lie in as many bytes as each has bits.

    Args:
        stream: uint8 `[n, bytes]`.
        bits: bits of a code, at most 8.
        count: codes of a row, rounded up to a multiple of eight in the result.

    Returns:
        uint8 `[n, codes]` in scratch memory.
    """
    runs = -(-count // 8)
    lacking = max(runs * bits - stream.shape[1], 0)
    stream = nn.functional.pad(stream, (0, lacking)) if lacking else stream[:, : runs * bits]
    packed = stream.reshape(len(stream), runs, bits)
    out = scratch((len(stream), runs, 8), torch.uint8, stream.device, "unpack")
    for index in range(8):
        first, shift = divmod(index * bits, 8)
        torch.bitwise_right_shift(packed[..., first], shift, out=out[..., index])
        if shift + bits > 8:
            out[..., index] |= packed[..., first + 1] << 8 - shift
    return out.bitwise_and_((1 << bits) - 1).flatten(1)


def unpack_words(words: Tensor, bits: int, count: int) -> Tensor:
    """Unpack the codes in the lowest bits of words, uint8 `[..., words * count]` in scratch memory.

    Args:
        words: `[..., words]` of an integer dtype with a sign, or uint8.
        bits: bits of a code, at most 8.
        count: codes of a word.
    """
    out = scratch((*words.shape, count), torch.uint8, words.device, "unpack")
    for index in range(count):
        out[..., index] = words >> index * bits & (1 << bits) - 1
    return out.flatten(-2)
