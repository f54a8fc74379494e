"""Rows of one file: JSONL, CSV, TSV, Parquet or plain text."""

import csv
import io
import json
from pathlib import Path
from typing import Any

from zoquant.errors import DataError
from zoquant.rows.row import Row, row_of

ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt")


def read_file(file: Path) -> list[Row]:
    """Read a data file; its ending tells the kind.

    JSONL has one object a line, CSV and TSV a header line, and text a row `text` for each paragraph, with an empty line
    between two.

    Raises:
        DataError: the file is missing, empty, of another kind, or a line cannot be read; the line is named.
    """
    if file.suffix not in ENDINGS:
        raise DataError(
            f"{file}: unknown kind of file {file.suffix!r}, expected one of {', '.join(ENDINGS)}. Rename or convert."
        )
    rows = _parquet(file) if file.suffix == ".parquet" else _text(file)
    if not rows:
        raise DataError(f"{file}: holds no row, expected at least one. Is it the right file?")
    return rows


def _text(file: Path) -> list[Row]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read: {error}. Pass a text file in UTF-8.") from error
    if file.suffix == ".txt":
        return [{"text": part.strip()} for part in text.split("\n\n") if part.strip()]
    return _jsonl(file, text) if file.suffix in (".jsonl", ".json") else _table(file, text)


def _jsonl(file: Path, text: str) -> list[Row]:
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{file}, line {number}: not JSON: {error}. Put one object on each line.") from error
        if not isinstance(row, dict):
            raise DataError(f"{file}, line {number}: expected an object, got {type(row).__name__}.")
        rows.append(row_of(row))
    return rows


def _table(file: Path, text: str) -> list[Row]:
    lines = io.StringIO(text, newline="")
    if file.suffix == ".tsv":
        reader = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    else:
        reader = csv.DictReader(lines)
    rows = []
    for row in reader:
        if None in row or None in row.values():
            raise DataError(f"{file}, line {reader.line_num}: expected {len(reader.fieldnames or ())} columns.")
        rows.append(row_of(row))
    return rows


def _parquet(file: Path) -> list[Row]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise DataError(f"{file}: Parquet needs pyarrow. Run: pip install 'zoquant[parquet]'.") from error
    try:
        table: Any = parquet.read_table(file)
    except (OSError, ArrowException) as error:
        raise DataError(f"{file}: cannot be read: {error}. Is it a whole Parquet file?") from error
    return [row_of(row) for row in table.to_pylist()]
