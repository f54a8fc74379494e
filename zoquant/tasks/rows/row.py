"""One row of data."""

from collections.abc import Mapping
from typing import Any

Row = dict[str, Any]
"""Values by column: text, or lists and objects of text where the data have them."""


def row_of(values: Mapping[str, Any]) -> Row:
    """Return a row: numbers and truth values become text, so that a row is the same whatever file it came from."""
    return {str(name): _plain(value) for name, value in values.items()}


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):  # of numpy, or a tensor
        value = value.tolist()
    if isinstance(value, Mapping):
        return row_of(value)
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, bytes):  # text too, in the Parquet files of some programs
        return value.decode("utf-8", "backslashreplace")
    return value if isinstance(value, str) else "" if value is None else str(value)
