"""The continuous values of a checkpoint, read from the bytes of its files. The model is never loaded."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from zoquant.checkpoint.stored_files import file_of
from zoquant.protocol import Span
from zoquant.views.tensor_views import bytes_of


def read_base(path: str | Path, span: Span) -> Tensor:
    """Read the values of one key from its file, float32, in the shape of its span."""
    mapped = np.memmap(file_of(Path(path), span), dtype=np.uint8, mode="c")
    return values_at(torch.from_numpy(mapped), span).to(torch.float32)


def values_at(packed: Tensor, span: Span) -> Tensor:
    """Return the values of one key from the bytes of its file, in the dtype and shape of its span. A copy."""
    place = bytes_of(packed, span.offset, span.shape, span.strides, span.dtype)
    return place.clone(memory_format=torch.contiguous_format).view(span.dtype).view(span.shape)
