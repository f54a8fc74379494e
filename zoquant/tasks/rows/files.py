"""Rows of one file: JSONL, a JSON array, CSV, TSV, Parquet or plain text."""

import csv
import io
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zoquant.errors import DataError, reason_of
from zoquant.files.plain_json import parse_json
from zoquant.tasks.rows.row import Row, row_of

ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt")
_KINDS = {list: "an array", str: "a text", bool: "a truth value", int: "a number", float: "a number"}
MAX_BYTES = (1 << 31) - 1
"""Of a data file: rows are held in memory."""


def read_file(file: Path) -> list[Row]:
    """Read a data file; its ending tells the kind.

    JSONL has one object a line, a `.json` file may be one array of objects instead, CSV and TSV have a header line, and
    text is a row `text` for each paragraph, with an empty line between two.

    Raises:
        DataError: the file is missing, empty, of another kind, or a line cannot be read; the line is named.
    """
    if file.suffix not in ENDINGS:
        raise DataError(
            f"{file}: unknown kind of file {file.suffix!r}, expected one of {', '.join(ENDINGS)}. Rename or convert."
        )
    if not file.exists():
        raise DataError(f"{file}: no such file or folder. Check the path.")
    if not (file.is_file() and file.stat().st_size <= MAX_BYTES):
        raise DataError(f"{file}: expected a file of at most {MAX_BYTES} bytes. Split the data.")
    rows = _parquet(file) if file.suffix == ".parquet" else _text(file)
    if not rows:
        raise DataError(f"{file}: holds no row, expected at least one. Is it the right file?")
    return rows


def _text(file: Path) -> list[Row]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read: {reason_of(error)}. Pass a text file in UTF-8.") from error
    if file.suffix == ".txt":
        return [{"text": part.strip()} for part in text.split("\n\n") if part.strip()]
    if file.suffix not in (".jsonl", ".json"):
        return _table(file, text)
    return _array(file, text) if file.suffix == ".json" and text.lstrip().startswith("[") else _jsonl(file, text)


def _array(file: Path, text: str) -> list[Row]:
    try:
        found = parse_json(text)
    except ValueError as error:
        raise DataError(
            f"{file}: begins as an array, but is not JSON: {error}. Mend it, or save it as JSONL, an object a line."
        ) from error
    return [_object(f"{file}, object {number}", row, "\\u" in text) for number, row in enumerate(found, 1)]


def _jsonl(file: Path, text: str) -> list[Row]:
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            raise DataError(
                f"{file}, line {number}: not JSON: {error}. Put one object on each line, or all into one array of a "
                ".json file."
            ) from error
        rows.append(_object(f"{file}, line {number}", row, "\\u" in line))
    return rows


def _object(where: str, row: Any, escaped: bool) -> Row:
    """Return an object as a row; escaped, as JSON lets it be, is half of a pair of surrogates, which UTF-8 has not."""
    if not isinstance(row, dict):
        got = next((said for kind, said in _KINDS.items() if isinstance(row, kind)), "null")
        raise DataError(
            f"{where}: expected an object, {{...}}, got {got}. Write each row with the names of its columns; one "
            "array of all rows is a .json file."
        )
    try:
        if escaped:
            json.dumps(row, ensure_ascii=False).encode("utf-8")
        return row_of(row)
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: holds half a character: {error.reason}. Repair the text.") from error
    except RecursionError as error:
        raise DataError(f"{where}: values are nested too deep. Flatten them.") from error


def _table(file: Path, text: str) -> list[Row]:
    limit = csv.field_size_limit(MAX_BYTES)
    try:
        return _cells(file, text)
    finally:
        csv.field_size_limit(limit)


def _cells(file: Path, text: str) -> list[Row]:
    lines = io.StringIO(text, newline="")
    if file.suffix == ".tsv":
        reader = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    else:
        reader = csv.DictReader(lines, strict=True)
    rows = []
    try:
        _check_columns(file, reader.fieldnames or ())
        for row in reader:
            if None in row or None in row.values():
                count, got = len(reader.fieldnames or ()), "more" if None in row else "fewer"
                raise DataError(
                    f"{file}, line {reader.line_num}: expected {count} columns, as line 1 has, got {got}. Mend the "
                    "line, or save the data as JSONL."
                )
            rows.append(row_of(row))
    except csv.Error as error:
        begun = reader.line_num + 1
        raise DataError(
            f"{file}, the row from line {begun} on: {error}. Mend its quotes, or save it as JSONL."
        ) from error
    return rows


def _check_columns(file: Path, names: Sequence[str]) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(f"{file}, line 1: the column {twice[0]!r} comes twice, expected it once. Rename or drop one.")


def _parquet(file: Path) -> list[Row]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise DataError(f"{file}: Parquet needs pyarrow. Run: pip install 'zoquant[parquet]'.") from error
    try:
        rows: list[Row] = parquet.read_table(file).to_pylist()
    except (OSError, ArrowException, UnicodeDecodeError) as error:  # the last for text and names that are no UTF-8
        raise DataError(f"{file}: cannot be read: {reason_of(error)}. Is it a whole Parquet file?") from error
    return [row_of(row) for row in rows]
