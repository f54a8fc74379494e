"""The sha256 of rows."""

from hashlib import sha256
from typing import Any

from zoquant.tasks.rows.sha256 import rows_sha256


def test_the_order_of_rows_counts_and_that_of_columns_does_not() -> None:
    """It is that of lines of JSON."""
    rows: list[dict[str, Any]] = [{"b": "1", "a": ["x", {"y": "é"}]}, {"a": "2"}]
    assert rows_sha256(rows) == sha256(b'{"a": ["x", {"y": "\\u00e9"}], "b": "1"}\n{"a": "2"}\n').hexdigest()
    assert rows_sha256([dict(reversed(row.items())) for row in rows]) == rows_sha256(rows)
    assert rows_sha256(rows[::-1]) != rows_sha256(rows)
