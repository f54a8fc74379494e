"""Rows of training data from JSONL, CSV or TSV files."""

import csv
import io
import json
from pathlib import Path

from zoquant.errors import DataError

Row = dict[str, str]
_ENDINGS = (".jsonl", ".csv", ".tsv")


def read_rows(path: str | Path) -> list[Row]:
    """Read a data file: JSONL with one object a line, or CSV or TSV with a header line.

    Args:
        path: the file; its ending tells the kind.

    Returns:
        The rows; every value is text.

    Raises:
        DataError: the file is missing, empty, of another kind, or a line cannot be read; the line is named.
    """
    file = Path(path)
    if file.suffix not in _ENDINGS:
        raise DataError(
            f"{file}: unknown kind of file {file.suffix!r}, expected .jsonl, .csv or .tsv. Rename or convert."
        )
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read: {error}. Pass a text file in UTF-8.") from error
    rows = _jsonl(file, text) if file.suffix == ".jsonl" else _table(file, text)
    if not rows:
        raise DataError(f"{file}: holds no row, expected at least one. Is it the right file?")
    return rows


def _jsonl(file: Path, text: str) -> list[Row]:
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{file}, line {number}: not JSON: {error}. Put one object on each line.") from error
        if not isinstance(row, dict):
            raise DataError(f"{file}, line {number}: expected an object, got {type(row).__name__}.")
        rows.append({str(key): str(value) for key, value in row.items()})
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
        rows.append(dict(row))
    return rows
