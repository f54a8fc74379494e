"""Decisions read from bytes, so that a fuzzer that changes the bytes changes the decisions."""

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Choices:
    """Reads decisions one after the other; once the bytes are used up every decision is the first one.

    Args:
        data: any bytes.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._place = 0

    def below(self, count: int) -> int:
        """Return a number of at least 0 and below `count`."""
        size = max(1, ((count - 1).bit_length() + 7) // 8)
        part = self._data[self._place : self._place + size]
        self._place += size
        return int.from_bytes(part, "little") % count

    def one(self, items: Sequence[T]) -> T:
        """Return one of the items, which must not be empty."""
        return items[self.below(len(items))]

    def bytes(self, count: int) -> bytes:
        """Return so many bytes, zeros once the data is used up."""
        part = self._data[self._place : self._place + count]
        self._place += count
        return part.ljust(count, b"\0")
