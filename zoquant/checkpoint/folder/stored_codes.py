"""Which tensor of a module holds the codes of its matrix, and how they lie in it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from zoquant.checkpoint.folder.reading import Folder
from zoquant.native import Codes, PackedWords, PlainCodes, SharedWords


@dataclass(frozen=True)
class StoredCodes:
    """The tensor of the codes.

    A tensor of `[rows, words]`, or `[words, rows]` if `transposed`. A format that lays them out otherwise overrides
    `size`, `shape` and `open`.

    Attributes:
        name: its name within the module, such as `"qweight"`.
        dtypes: the dtypes that it may have.
        bits: bits of a code; None where nothing is packed, and each element is one: int8, uint8 or float8.
        per_word: codes in a word, see `zoquant.native.PackedWords`, as are the others; None for codes without gaps.
        offset: what is taken off every code.
        signed: whether the highest bit of a code is its sign.
        transposed: whether the words of a row lie one below the other.
    """

    name: str
    dtypes: tuple[torch.dtype, ...]
    bits: int | None = None
    per_word: int | None = None
    offset: int = 0
    signed: bool = False
    transposed: bool = False

    def size(self, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[int, int]:
        """Return rows and columns of the matrix whose codes a tensor of some shape and dtype holds."""
        rows, length = shape[::-1] if self.transposed else shape
        if self.bits is None:
            return rows, length
        return rows, length * (self.per_word or 0) or length * dtype.itemsize * 8 // self.bits

    def shape(self, rows: int, columns: int, dtype: torch.dtype) -> tuple[int, ...]:
        """Return the shape of the tensor that holds the codes of a matrix."""
        length = columns
        if self.per_word is not None:
            length = -(-columns // self.per_word)
        elif self.bits is not None:
            length = -(-columns * self.bits // (dtype.itemsize * 8))
        return (length, rows) if self.transposed else (rows, length)

    def check(self, folder: Folder, path: str, size: tuple[int, int] | None = None) -> tuple[int, int]:
        """Return rows and columns of the matrix of a module.

        Args:
            folder: the checkpoint.
            path: the module.
            size: rows and columns, where something else than the codes says them; None for what the codes say.

        Raises:
            CheckpointError: the tensor is missing, no matrix, empty, of another dtype, or of another shape than `size`
                gives it.
        """
        tensor = folder.expect_matrix(f"{path}.{self.name}", self.dtypes)
        found = size or self.size(tensor.shape, tensor.dtype)
        folder.expect(tensor.name, self.shape(*found, tensor.dtype), self.dtypes)
        return found

    def open(self, stored: Tensor, rows: int, columns: int) -> Codes:
        """Return the codes of a matrix, whose tensor they hold as it is."""
        del rows
        if self.bits is None:
            return PlainCodes(stored, transposed=self.transposed)
        return PackedWords(
            stored, self.bits, columns, per_word=self.per_word, offset=self.offset, signed=self.signed,
            transposed=self.transposed,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SharedCodes(StoredCodes):
    """Codes packed along the rows, as in AWQ: int32 `[columns, rows / codes of a word]`.

    Attributes:
        order: which code of a word, the lowest bits first, each of its rows is; empty where they agree.
    """

    bits: int
    order: tuple[int, ...] = ()

    def size(self, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[int, int]:
        return shape[1] * (32 // self.bits), shape[0]

    def shape(self, rows: int, columns: int, dtype: torch.dtype) -> tuple[int, ...]:
        return columns, rows // (32 // self.bits)

    def open(self, stored: Tensor, rows: int, columns: int) -> Codes:
        return SharedWords(stored, self.bits, order=self.order, signed=self.signed)
