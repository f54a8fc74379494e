"""Tensors and plain values of a `.bin` or `.pt` file that `torch.save` wrote. No code of the file is ever run."""

from collections.abc import Iterable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch

from zoquant.errors import CheckpointError, shown
from zoquant.files.plain_pickle import MAX_PICKLE, RefusedPickleError, TensorRecord, read_plain
from zoquant.files.tensors import StoredTensor
from zoquant.files.zipped import Member, read_members

MAX_DEPTH = 4
"""Dicts within dicts: hqq writes a dict of modules, each a dict, each perhaps with a dict of second-level numbers."""

MAX_PARTS = 1 << 20
"""Parts of all values together, counted as often as they can be reached."""

MAX_NAME = 512
"""Characters of one key."""

MAX_NAMES = 1 << 26
"""Characters of all names together: the name of a dict stands again in that of each of its entries."""

Plain = int | float | str | bool | torch.dtype | tuple[Any, ...] | list[Any] | None


def read_archive(path: Path) -> tuple[dict[str, StoredTensor], dict[str, Plain]]:
    """Return the places of all tensors of a file, and its plain values, by their names joined with dots.

    Raises:
        CheckpointError: the file is damaged, compressed, or holds anything but tensors and plain values.
    """
    members = read_members(path)
    folder, content = _pickle(path, members)
    try:
        found = _named(_flat(read_plain(content), "", set(), 0))
        _check_plain(found.values())
    except RefusedPickleError as problem:
        raise CheckpointError(
            f"{path}: refused: its pickle holds {problem}. Nothing of it was run. Save the tensors as safetensors."
        ) from problem
    _check_byte_order(path, members, folder)
    tensors = {
        name: _place(path, name, value, members, folder)
        for name, value in found.items()
        if isinstance(value, TensorRecord)
    }
    return tensors, {name: value for name, value in found.items() if name not in tensors}


def _pickle(path: Path, members: Mapping[str, Member]) -> tuple[str, bytes]:
    """Return the folder within the archive, and its pickle."""
    names = [name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(names) != 1:
        raise CheckpointError(f"{path}: expected one data.pkl, as torch.save writes, got {len(names)}. Is it the file?")
    member = members[names[0]]
    if member.size > MAX_PICKLE:
        raise CheckpointError(
            f"{path}: {member.name}: expected at most {MAX_PICKLE} bytes, got {member.size}. Save the tensors as "
            "safetensors."
        )
    return names[0].removesuffix("data.pkl"), _content(path, member)


def _content(path: Path, member: Member) -> bytes:
    with path.open("rb") as file:
        file.seek(member.start)
        return file.read(member.size)


def _check_byte_order(path: Path, members: Mapping[str, Member], folder: str) -> None:
    member = members.get(f"{folder}byteorder")
    order = b"little" if member is None else _content(path, member) if member.size <= 16 else b"something long"
    if order != b"little":
        said = order.decode("utf-8", "replace")
        raise CheckpointError(f"{path}: expected little-endian numbers, got {said!r}. Save it on another machine.")


def _named(entries: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    size = 0
    for name, value in entries:
        size += len(name)
        if size > MAX_NAMES:
            raise RefusedPickleError(f"names of more than {MAX_NAMES} characters")
        if name in found:
            raise RefusedPickleError(f"two values of one name, {name!r:.80}")
        found[name] = value
    return found


def _flat(value: Any, name: str, seen: set[int], depth: int) -> Iterator[tuple[str, Any]]:
    if type(value) is not dict:
        yield name, value
        return
    if id(value) in seen or depth > MAX_DEPTH:
        raise RefusedPickleError("a dict within itself, twice, or too deep")
    seen.add(id(value))
    for key, part in value.items():
        if len(key) > MAX_NAME:
            raise RefusedPickleError(f"a name of {len(key)} characters, expected at most {MAX_NAME}")
        yield from _flat(part, f"{name}.{key}" if depth else key, seen, depth + 1)


def _check_plain(values: Iterable[Any]) -> None:
    """Refuse lists that hold themselves, or one another so often that they never end; and dicts within lists."""
    waiting, seen = [*values], 0
    while waiting:
        part = waiting.pop()
        seen += len(part) if isinstance(part, list | tuple) else 1
        if seen > MAX_PARTS or isinstance(part, dict):
            raise RefusedPickleError("lists without an end, or dicts in lists")
        if isinstance(part, list | tuple):
            waiting.extend(part)


def _place(path: Path, name: str, record: TensorRecord, members: Mapping[str, Member], folder: str) -> StoredTensor:
    member = members.get(f"{folder}data/{record.storage.member}")
    if member is None:
        raise _error(path, name, f"the member data/{record.storage.member:.40}", "none")
    unit = record.storage.dtype.itemsize if record.storage.dtype is not None else 1
    if record.storage.count * unit != member.size:
        raise _error(path, name, f"a storage of {record.storage.count * unit} bytes", str(member.size))
    if len(record.shape) > 8 or not all(0 <= n < 1 << 62 for n in (*record.shape, record.start)):
        raise _error(path, name, "a shape and a place", f"{shown(record.shape)} at {shown(record.start)}")
    if not _is_contiguous(record):
        raise _error(path, name, "a contiguous tensor", f"strides {shown(record.strides)}")
    nbytes, offset = prod(record.shape) * record.dtype.itemsize, record.start * record.dtype.itemsize
    if offset + nbytes > member.size:
        raise _error(path, name, f"at most {member.size} bytes", f"{nbytes} at byte {offset}")
    return StoredTensor(name, path, member.start + offset, nbytes, record.shape, record.dtype)


def _is_contiguous(record: TensorRecord) -> bool:
    step = 1
    for length, stride in zip(reversed(record.shape), reversed(record.strides), strict=True):
        if length != 1 and stride != step:
            return prod(record.shape) == 0
        step *= length
    return True


def _error(path: Path, what: str, expected: str, got: str) -> CheckpointError:
    return CheckpointError(f"{path}: {what!r:.120}: expected {expected}, got {got}. The file is damaged; get it again.")
