"""Typed access to the metadata of a file."""

from dataclasses import dataclass
from typing import Any

from zoquant.backends.gguf.header import Header, refusal
from zoquant.errors import CheckpointError

DEFAULT_THETA = 10000.0
"""The base of the rotary frequencies of a file that does not say."""


@dataclass(frozen=True)
class Keys:
    """Typed access to the metadata of one architecture. Keys are given without its name."""

    header: Header

    def number(self, key: str, default: float | None = None) -> float:
        """Return a number; a missing key without a default is an error."""
        value = self.get(key)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.error(key, "a number", "nothing" if value is None else repr(value)[:80])
        return value

    def integer(self, key: str, default: int | None = None) -> int:
        """Return a whole number of at least 1."""
        value = self.number(key, default)
        if not isinstance(value, int) or value < 1:
            raise self.error(key, "a whole number above 0", repr(value))
        return value

    def get(self, key: str) -> Any:
        """Return a value of any type, or None."""
        return self.header.metadata.get(f"{self.header.architecture}.{key}")

    def error(self, key: str, expected: str, got: str) -> CheckpointError:
        """Return the error for a key."""
        name = f"{self.header.architecture}.{key}"
        return refusal(self.header.path, f"key {name!r}", expected, got)
