"""Rows that a program holds: dicts, a table of `datasets`, a frame of pandas. Neither library is imported."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from zoquant.errors import DataError
from zoquant.tasks.rows.row import Row, row_of


class RowsInMemory:
    """Rows in the place of a path; as text it is what messages and settings call them.

    Args:
        data: mappings of columns to values, a `datasets.Dataset`, or a `pandas.DataFrame`. What pandas holds for a
            missing value is an empty text, as in a CSV file.

    Raises:
        DataError: there is no row, or one is no mapping.
    """

    def __init__(self, data: Any) -> None:
        self.rows: list[Row] = [_row(number, each) for number, each in enumerate(_mappings(data), 1)]
        if not self.rows:
            raise DataError("the data hold no row, expected at least one.")

    def __str__(self) -> str:
        return "rows in memory"


DataSource = str | Path | RowsInMemory
"""Where rows come from: a path, a name on the Hub, or memory."""


def _mappings(data: Any) -> Iterable[Any]:
    if hasattr(data, "itertuples"):
        return data.astype(object).where(data.notna(), None).to_dict("records")  # type: ignore[no-any-return]
    if isinstance(data, Mapping) or not isinstance(data, Iterable):
        raise DataError(
            f"data is a {type(data).__name__}, expected a path, a list of dicts, one table of datasets, or a frame of "
            "pandas. Of several splits, pass one."
        )
    return data


def _row(number: int, value: Any) -> Row:
    if not isinstance(value, Mapping):
        raise DataError(f"row {number} is a {type(value).__name__}, expected a dict of columns and values.")
    return row_of(value)
