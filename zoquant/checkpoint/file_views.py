"""The continuous values of a checkpoint, read from its files through the format's index. The model is never loaded."""

import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from zoquant.errors import BaseMismatchError
from zoquant.files.hub import local_path
from zoquant.files.safe_paths import refuse_stray
from zoquant.protocol import Checksum, Checksummed, Format, SeveralFiles, Span
from zoquant.registry import format_of
from zoquant.views.model_views import BoundView, Views
from zoquant.views.tensor_views import TensorView, bytes_of


def checkpoint_views(path: str | Path, keys: Iterable[str], *, coupled: bool) -> Views:
    """Return views over copies of a checkpoint's values, to replay a trajectory or load a delta without a model.

    Args:
        path: the checkpoint, or its name on the Hub.
        keys: which values.
        coupled: as in `attach`.

    Raises:
        BaseMismatchError: the checkpoint does not hold one of the keys.
        CheckpointError: the checkpoint is damaged or of an unknown kind.
    """
    source = local_path(path)
    found = format_of(source)
    index = found.index(source)
    bound = []
    for key in keys:
        if key not in index:
            raise BaseMismatchError(f"{source}: holds no {key}. Use the checkpoint that training started from.")
        span = index[key]
        bound.append(BoundView(key, TensorView(key, span.role, read_base(source, span).to(span.dtype)), found.name))
    return Views(bound, coupled=coupled)


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


def read_base(path: str | Path, span: Span) -> Tensor:
    """Read the values of one key from its file, float32, in the shape of its span."""
    mapped = np.memmap(file_of(Path(path), span), dtype=np.uint8, mode="c")
    return values_at(torch.from_numpy(mapped), span).to(torch.float32)


def values_at(packed: Tensor, span: Span) -> Tensor:
    """Return the values of one key from the bytes of its file, in the dtype and shape of its span. A copy."""
    place = bytes_of(packed, span.offset, span.shape, span.strides, span.dtype)
    return place.clone(memory_format=torch.contiguous_format).view(span.dtype).view(span.shape)
