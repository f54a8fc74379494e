"""The continuous values of a checkpoint, read from its files through the format's index. The model is never loaded."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from zoquant.attach import BoundView, Views
from zoquant.errors import BaseMismatchError
from zoquant.protocol import Span
from zoquant.registry import format_of
from zoquant.views import TensorView, bytes_of


def checkpoint_views(path: str | Path, keys: Iterable[str], *, coupled: bool) -> Views:
    """Return views over copies of a checkpoint's values, to replay a trajectory or load a delta without a model.

    Args:
        path: the checkpoint.
        keys: which values.
        coupled: as in `attach`.

    Raises:
        BaseMismatchError: the checkpoint does not hold one of the keys.
        CheckpointError: the checkpoint is damaged or of an unknown kind.
    """
    source = Path(path)
    found = format_of(source)
    index = found.index(source)
    bound = []
    for key in keys:
        if key not in index:
            raise BaseMismatchError(f"{source}: holds no {key}. Use the checkpoint that training started from.")
        span = index[key]
        bound.append(BoundView(key, TensorView(key, span.role, read_base(source, span).to(span.dtype)), found.name))
    return Views(bound, coupled=coupled)


def read_base(path: str | Path, span: Span) -> Tensor:
    """Read the values of one key from its file, float32, in the shape of its span."""
    file = Path(path) if Path(path).is_file() else Path(path) / span.file
    return values_at(torch.from_numpy(np.memmap(file, dtype=np.uint8, mode="c")), span).to(torch.float32)


def values_at(packed: Tensor, span: Span) -> Tensor:
    """Return the values of one key from the bytes of its file, in the dtype and shape of its span. A copy."""
    place = bytes_of(packed, span.offset, span.shape, span.strides, span.dtype)
    return place.clone(memory_format=torch.contiguous_format).view(span.dtype).view(span.shape)
