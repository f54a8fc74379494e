"""Rows from the Hugging Face Hub, and from folders that its library `datasets` saved."""

from pathlib import Path
from typing import Any

from zoquant.errors import DataError
from zoquant.tasks.rows.row import Row, row_of

HUB = "hub:"


def read_hub(source: str, *, split: str, config: str | None) -> list[Row]:
    """Read a split from the Hub, or from where `datasets` has cached it.

    Raises:
        DataError: `datasets` is not installed, or what it raised.
    """
    name, *more = source.removeprefix(HUB).split(":")
    if not name or len(more) > 2:
        raise DataError(f"{source!r} is no name on the Hub: write hub:owner/name[:config][:split].")
    split = more[-1] if more else split
    config = more[0] if len(more) == 2 else config
    datasets = _library(source)
    try:
        table = datasets.load_dataset(name, config, split=split)
    except Exception as error:
        raise DataError(
            f"{source}: split {split!r} cannot be loaded: {error}. Check the name, or pass files."
        ) from error
    return _rows(source, table)


def read_saved(folder: Path, split: str) -> list[Row]:
    """Read a split that `datasets` saved with `save_to_disk`.

    Raises:
        DataError: `datasets` is not installed, there is no such split, or what it raised.
    """
    datasets = _library(str(folder))
    try:
        table = datasets.load_from_disk(str(folder))
    except Exception as error:
        raise DataError(f"{folder}: cannot be loaded: {error}. Was it saved whole?") from error
    if isinstance(table, dict):
        if split not in table:
            raise DataError(f"{folder}: holds no split {split!r}, expected one of {', '.join(table)}.")
        table = table[split]
    return _rows(str(folder), table)


def _library(source: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"{source}: needs the library datasets. Run: pip install 'zoquant[datasets]'.") from error
    return datasets


def _rows(source: str, table: Any) -> list[Row]:
    rows = [row_of(row) for row in table]
    if not rows:
        raise DataError(f"{source}: holds no row, expected at least one. Is it the right split?")
    return rows
