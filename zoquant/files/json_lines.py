"""Files to which a run appends one JSON object a line, each with the number of a step."""

import json
from pathlib import Path
from typing import Any

from zoquant.errors import CheckpointError, reason_of
from zoquant.files.atomic_files import writing
from zoquant.files.plain_json import parse_json

_MOST = 1 << 31
"""Bytes of a file: some millions of steps."""


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a file; what a kill or a power failure left at its end is left out.

    Raises:
        CheckpointError: a line is damaged although a later one is whole, or the file is too large.
    """
    try:
        if not path.exists():
            return []
        if path.stat().st_size > _MOST:
            raise CheckpointError(f"{path}: expected at most {_MOST} bytes. Begin a new run.")
        lines = [_object(text) for text in path.read_bytes().split(b"\n")[:-1]]
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {reason_of(error)}. Begin a new run.") from error
    good = lines.index(None) if None in lines else len(lines)
    if any(line is not None for line in lines[good:]):
        raise CheckpointError(f"{path}, line {good + 1}: is damaged, but a later one is whole. Begin a new run.")
    return [line for line in lines[:good] if line is not None]


def append_line(path: Path, line: dict[str, Any]) -> None:
    """Add an object to the end of a file.

    Raises:
        WriteError: it could not be written.
    """
    with writing(path), open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def _object(text: bytes) -> dict[str, Any] | None:
    try:
        found = parse_json(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) and type(found.get("step")) is int else None
