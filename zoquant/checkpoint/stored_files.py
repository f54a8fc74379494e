"""The files of a checkpoint, and the checksums that they keep of their own bytes."""

import zlib
from collections.abc import Sequence
from pathlib import Path

from zoquant.files.safe_paths import refuse_stray
from zoquant.protocol import Checksum, Checksummed, Format, SeveralFiles, Span


def files_of(path: Path, found: Format) -> dict[str, Path]:
    """Return all files of a checkpoint by their names relative to its folder.

    A folder is all files in it; a file is one, unless its format says which others belong to it.

    Raises:
        CheckpointError: the format misses one of them, or one is no plain file of the folder.
    """
    if path.is_dir():
        inside = [file for file in sorted(path.rglob("*")) if file.is_symlink() or not file.is_dir()]
        for file in inside:
            refuse_stray(path, file)
        return {file.relative_to(path).as_posix(): file for file in inside}
    files = found.files(path) if isinstance(found, SeveralFiles) else [path]
    return {file.name: file for file in files}


def file_of(path: Path, span: Span) -> Path:
    """Return the file that holds the values of a key."""
    if path.is_dir():
        return path / span.file
    return path if span.file == path.name else path.parent / span.file


def checksums_of(path: Path, found: Format) -> Sequence[Checksum]:
    """Return the checksums that the files of a checkpoint keep of their own bytes."""
    return found.checksums(path) if isinstance(found, Checksummed) else ()


def holds(data: memoryview, checksum: Checksum) -> bool:
    """Tell whether a checksum agrees with the bytes of its file, at every place where it stands."""
    crc = zlib.crc32(data[checksum.start : checksum.start + checksum.size]).to_bytes(4, "little")
    return all(data[place : place + 4] == crc for place in checksum.places)
