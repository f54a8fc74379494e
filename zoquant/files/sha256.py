"""The sha256 of a file, as `sha256sum` prints it."""

import hashlib
from pathlib import Path

from zoquant.errors import DataError

_PIECE = 1 << 20


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file, in hexadecimal digits.

    Raises:
        DataError: the file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as source:
            while piece := source.read(_PIECE):
                digest.update(piece)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}. Check the path.") from error
    return digest.hexdigest()
