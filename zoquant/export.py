"""Put a delta into a checkpoint: copy its files, patch the bytes that the format's index names, touch no other."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from zoquant.buffer import Space, compose
from zoquant.checkpoint import read_base, values_at
from zoquant.delta import Delta, read_delta
from zoquant.errors import BaseMismatchError, ShapeError
from zoquant.files import refuse_existing, replacing
from zoquant.fingerprint import check_base, fingerprint
from zoquant.layout import keeps_sign
from zoquant.protocol import Span
from zoquant.registry import format_of
from zoquant.views import bytes_of


def export(base: str | Path, *, delta: str | Path, out: str | Path) -> Path:
    """Write the tuned checkpoint: the same format, the same size, the same bytes but those of the moved values.

    The model is never loaded. A delta of zero gives a file that is byte-identical to its base.

    Args:
        base: the checkpoint that the training started from.
        delta: a file that `save_delta` wrote.
        out: where the tuned checkpoint goes; for a checkpoint of a single file, the name of the new file.

    Returns:
        `out`.

    Raises:
        OutputExistsError: something stands at `out`.
        BaseMismatchError: the delta was made on another base; the first key that differs is named.
        CheckpointError, ShapeError, ValueRangeError: a file is damaged.
        WriteError: the disk is full or read-only. In every case nothing stands at `out`.
    """
    source, target = Path(base), Path(out)
    refuse_existing(target)
    index = format_of(source).index(source)
    change = read_delta(delta)
    _check(str(delta), source, index, change)
    with replacing(target) as temporary:
        shutil.copyfile(source, temporary)
        _patch(temporary, index, change)
    return target


def _check(what: str, source: Path, index: Mapping[str, Span], change: Delta) -> None:
    for key, value in change.values.items():
        if key not in index:
            raise BaseMismatchError(
                f"{what}: made for {key}, which {source} does not hold. Export to the checkpoint it was trained on."
            )
        if tuple(value.shape) != index[key].shape:
            raise ShapeError(f"{what}: {key} has shape {tuple(value.shape)}, expected {index[key].shape}.")
    here = {key: fingerprint(read_base(source, index[key])) for key in change.values}
    check_base(what, change.base, here)


def _patch(file: Path, index: Mapping[str, Span], change: Delta) -> None:
    mapped = np.memmap(file, dtype=np.uint8, mode="r+")
    packed = torch.from_numpy(mapped)
    for key, value in change.values.items():
        span = index[key]
        place = bytes_of(packed, span.offset, span.shape, span.strides, span.dtype)
        old = values_at(packed, span)
        new = _theta(old, value, span, change.space)
        moved = (value != 0).unsqueeze(-1)
        place.copy_(torch.where(moved, new.unsqueeze(-1).view(torch.uint8), place))
    mapped.flush()


def _theta(old: Tensor, value: Tensor, span: Span, space: Space) -> Tensor:
    base = old.to(torch.float32)
    theta = torch.empty_like(base)
    compose(value, base, theta, space=space, keep_sign=keeps_sign(span.role), dtype=span.dtype)
    return theta.to(span.dtype)
