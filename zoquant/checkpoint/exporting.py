"""Put a delta into a checkpoint: copy its files, patch the bytes that the format's index names, touch no other.

Where a file keeps checksums of its own bytes, those of the bytes that changed are renewed.
"""

import logging
import shutil
import warnings
import zlib
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from zoquant.checkpoint.stored_files import checksums_of, files_of, holds
from zoquant.checkpoint.stored_values import read_base, values_at
from zoquant.errors import BaseMismatchError, CheckpointError, ShapeError
from zoquant.files.atomic_files import refuse_existing, refuse_place, replacing, replacing_folder
from zoquant.files.hub import delta_path, local_path
from zoquant.protocol import Checksum, Span
from zoquant.record.delta import Delta, read_delta
from zoquant.registry import format_of
from zoquant.views.fingerprint import check_base, fingerprint
from zoquant.views.flat_buffer import Space, compose
from zoquant.views.layout import keeps_sign
from zoquant.views.tensor_views import bytes_of

log = logging.getLogger("zoquant")


class Exported(NamedTuple):
    """What was exported.

    Attributes:
        path: the tuned checkpoint: `out`, or the first file in it where the base is one file of several.
        values: number of values in the delta.
        changed: how many of them differ from the base in the file.
    """

    path: Path
    values: int
    changed: int


def export(base: str | Path, *, delta: str | Path, out: str | Path) -> Path:
    """Write the tuned checkpoint: the same format, the same size, the same bytes but those of the moved values.

    The model is never loaded. A delta of zero gives files that are byte-identical to their base. How many values differ
    in the file is logged in one line: logger `zoquant`, level INFO. Where all of a delta is lost in the rounding to the
    dtype of the file, that is a warning.

    Args:
        base: the checkpoint that the training started from, or its name on the Hub.
        delta: a file that `save_delta` wrote, the folder of a run, or `owner/name[/file]` on the Hub.
        out: where the tuned checkpoint goes: the name of a file for a checkpoint of one file, else of a folder, which
            gets every file of the base.

    Returns:
        The path of the tuned checkpoint: `out`, or the first file in it where the base is one file of several.

    Raises:
        OutputExistsError: something stands at `out`.
        BaseMismatchError: the delta was made on another base; the first key that differs is named.
        CheckpointError, ShapeError, ValueRangeError: a file is damaged, or two keys of the delta lie on the same bytes.
        WriteError: the disk is full or read-only, or the folder of `out` does not exist. In every case nothing stands
            at `out`.
    """
    return export_counted(base, delta=delta, out=out).path


def export_counted(base: str | Path, *, delta: str | Path, out: str | Path) -> Exported:
    """Write the tuned checkpoint as `export` does, and say how many values differ from the base in it.

    Raises:
        ZoquantError: see `export`.
    """
    source, target = local_path(base), Path(out)
    refuse_place(target)
    found = format_of(source)
    index = found.index(source)
    change = read_delta(delta_path(delta))
    _check(str(delta), source, index, change)
    files = files_of(source, found)
    if source.is_file() and len(files) == 1:
        with replacing(target) as temporary:
            shutil.copyfile(source, temporary)
            changed = _patch({source.name: temporary}, index, change)
            _renew(checksums_of(source, found), files, {source.name: temporary})
            refuse_existing(target)  # somebody else may have exported there meanwhile
        return _told(target, change, changed)
    with replacing_folder(target) as folder:
        copies = _copy(files, folder)
        changed = _patch(copies, index, change)
        _renew(checksums_of(source, found), files, copies)
        refuse_existing(target)
    return _told(target if source.is_dir() else target / source.name, change, changed)


def _told(path: Path, change: Delta, changed: int) -> Exported:
    """Say what share of a delta the file really holds."""
    values = sum(value.numel() for value in change.values.values())
    if changed or not any(bool(value.any()) for value in change.values.values()):
        log.info("%s: %d of the %d values of the delta differ from the base in the file.", path, changed, values)
    else:
        warnings.warn(
            f"{path}: no value differs from the base: all {values} of the delta vanish in the rounding to the dtype of "
            "the file. Train with a larger lr, or for more steps.",
            stacklevel=2,
        )
    return Exported(path, values, changed)


def _copy(files: Mapping[str, Path], folder: Path) -> dict[str, Path]:
    copies = {name: folder / name for name in files}
    for name, file in files.items():
        copies[name].parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copies[name])
    return copies


def _check(what: str, source: Path, index: Mapping[str, Span], change: Delta) -> None:
    for key, value in change.values.items():
        if key not in index:
            raise BaseMismatchError(
                f"{what}: made for {key}, which {source} does not hold, where keys are such as "
                f"{next(iter(index), 'none')}. Export to the checkpoint it was trained on."
            )
        if tuple(value.shape) != index[key].shape:
            raise ShapeError(
                f"{what}: {key} has shape {list(value.shape)}, expected {list(index[key].shape)}. Is the delta whole?"
            )
    _refuse_overlaps(what, source, {key: index[key] for key in change.values})
    here = {key: fingerprint(read_base(source, index[key])) for key in change.values}
    check_base(what, change.base, here)


def _refuse_overlaps(what: str, source: Path, spans: Mapping[str, Span]) -> None:
    """Refuse two keys that lie on the same bytes: the second would be put on what the first already changed."""
    near: list[str] = []
    for key, span in sorted(spans.items(), key=lambda each: (each[1].file, each[1].offset)):
        near = [other for other in near if spans[other].file == span.file and _end(spans[other]) > span.offset]
        for other in near:
            if _overlap(spans[other], span):
                raise CheckpointError(
                    f"{what}: {other} and {key}: expected places of their own in {source}, got the same bytes in "
                    f"{span.file} twice. Train one of the two, or save the checkpoint as safetensors."
                )
        near.append(key)


def _end(span: Span) -> int:
    """Return the byte after the last value."""
    if 0 in span.shape:
        return span.offset
    steps = zip(span.shape, span.strides, strict=True)
    return span.offset + sum((length - 1) * stride for length, stride in steps) + span.dtype.itemsize


def _overlap(one: Span, other: Span) -> bool:
    """Whether two spans of a file share a byte; those of fields that lie in turns do not."""
    start = min(one.offset, other.offset)
    taken = torch.zeros(max(_end(one), _end(other)) - start, dtype=torch.uint8)
    bytes_of(taken, one.offset - start, one.shape, one.strides, one.dtype).fill_(1)
    return bool(bytes_of(taken, other.offset - start, other.shape, other.strides, other.dtype).any())


def _patch(files: Mapping[str, Path], index: Mapping[str, Span], change: Delta) -> int:
    """Put a delta into files; return how many values differ afterwards."""
    changed = 0
    keys = sorted(change.values, key=lambda key: index[key].file)
    for name, group in groupby(keys, key=lambda key: index[key].file):
        mapped = np.memmap(files[name], dtype=np.uint8, mode="r+")
        for key in group:
            changed += _patch_values(torch.from_numpy(mapped), index[key], change.values[key], change.space)
        mapped.flush()
    return changed


def _patch_values(packed: Tensor, span: Span, value: Tensor, space: Space) -> int:
    place = bytes_of(packed, span.offset, span.shape, span.strides, span.dtype)
    old = values_at(packed, span)
    new = _theta(old, value, span, space)
    moved = (value != 0).unsqueeze(-1)
    patched = torch.where(moved, new.unsqueeze(-1).view(torch.uint8), place)
    changed = int((patched != place).any(-1).sum())
    place.copy_(patched)
    return changed


def _renew(checksums: Sequence[Checksum], before: Mapping[str, Path], after: Mapping[str, Path]) -> None:
    """Let every checksum that held in the base hold in its copy. One that did not hold stays as it is."""
    for name, group in groupby(sorted(checksums, key=lambda each: each.file), key=lambda each: each.file):
        mapped = np.memmap(after[name], dtype=np.uint8, mode="r+")
        old, new = np.memmap(before[name], dtype=np.uint8, mode="r").data, mapped.data
        for checksum in group:
            if holds(old, checksum) and not holds(new, checksum):
                crc = zlib.crc32(new[checksum.start : checksum.start + checksum.size])
                for place in checksum.places:
                    new[place : place + 4] = crc.to_bytes(4, "little")
        mapped.flush()


def _theta(old: Tensor, value: Tensor, span: Span, space: Space) -> Tensor:
    base = old.to(torch.float32)
    theta = torch.empty_like(base)
    compose(value, base, theta, space=space, keep_sign=keeps_sign(span.role), dtype=span.dtype)
    return theta.to(span.dtype)
