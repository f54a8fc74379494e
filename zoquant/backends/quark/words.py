"""Codes of 4 bits in two orders.

Source: amd-quark 0.13, torch/utils/pack.py (`Pack_4_bits`, `Pack_8_bits`).
"""

from dataclasses import dataclass

from torch import Tensor

from zoquant.checkpoint.folder import StoredCodes
from zoquant.kernels.products.operands import Words
from zoquant.native import Codes, PackedWords
from zoquant.native.packed import Rows

ORDERS = {"order": (), "reorder": (0, 4, 1, 5, 2, 6, 3, 7)}
"""`pack_method` -> which nibble of a word holds each of its eight numbers; empty where they agree."""


@dataclass(frozen=True, kw_only=True)
class ReorderedCodes(StoredCodes):
    """Codes of 4 bits in an order of their own within an int32 word, the words along the columns.

    Attributes:
        order: which nibble of a word holds each of its columns; empty where they agree.
    """

    order: tuple[int, ...]

    def open(self, stored: Tensor, rows: int, columns: int) -> Codes:
        words = ReorderedWords(stored, 4, columns, signed=self.signed)
        words.order = self.order
        return words


class ReorderedWords(PackedWords):
    """The words of `ReorderedCodes`."""

    order: tuple[int, ...] = ()

    def read(self, rows: Rows) -> Tensor:
        codes = super().read(rows)
        return codes.reshape(len(codes), -1, 8)[..., self.order].flatten(1) if self.order else codes

    def in_words(self) -> Words | None:
        """Return nothing: no kernel knows the order."""
        return None if self.order else super().in_words()
