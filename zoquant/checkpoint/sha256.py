"""The sha256 of a checkpoint, which may be one file or several."""

import hashlib
from pathlib import Path

from zoquant.checkpoint.stored_files import files_of
from zoquant.files.hub import local_path
from zoquant.files.sha256 import file_sha256
from zoquant.registry import format_of


def checkpoint_sha256(path_or_repo: str | Path) -> str:
    """Return the sha256 of a checkpoint in hexadecimal digits.

    Args:
        path_or_repo: a file; or a folder, or a file that others belong to: then it is the sha256 of what `sha256sum`
            prints of the files in the order of their names. Folders in a folder and Markdown files do not count.

    Raises:
        DataError: a file cannot be read.
    """
    path = local_path(path_or_repo)
    files = _files(path)
    if len(files) == 1:
        return file_sha256(files[0])
    lines = "".join(f"{file_sha256(file)}  {file.name}\n" for file in files)
    return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(file for file in path.iterdir() if file.is_file() and file.suffix != ".md")
    return sorted(files_of(path, format_of(path)).values()) if path.suffix == ".gguf" else [path]
