"""The sha256 of a file, of a checkpoint, which may be several, and of rows, wherever they come from."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from zoquant.checkpoint.file_views import files_of
from zoquant.errors import DataError
from zoquant.files.hub import local_path
from zoquant.registry import format_of
from zoquant.tasks.rows import Row

_PIECE = 1 << 20


def digest_of(path_or_repo: str | Path) -> str:
    """Return the sha256 of a file or a checkpoint, in hexadecimal digits.

    Args:
        path_or_repo: a file; or a folder, or a file that others belong to: then it is the sha256 of what `sha256sum`
            prints of the files in the order of their names. Folders in a folder and Markdown files do not count.

    Raises:
        DataError: a file cannot be read.
    """
    path = local_path(path_or_repo)
    files = _files(path)
    if len(files) == 1:
        return _sha256(files[0])
    lines = "".join(f"{_sha256(file)}  {file.name}\n" for file in files)
    return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()


def digest_of_rows(rows: Sequence[Row]) -> str:
    """Return the sha256 of rows in their order, in hexadecimal digits; the order of their columns does not count."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(file for file in path.iterdir() if file.is_file() and file.suffix != ".md")
    return sorted(files_of(path, format_of(path)).values()) if path.suffix == ".gguf" else [path]


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    try:
        with open(file, "rb") as source:
            while piece := source.read(_PIECE):
                digest.update(piece)
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}. Check the path.") from error
    return digest.hexdigest()
