"""The header of a safetensors file, checked against the size of the file before anything is believed.

Source: huggingface/safetensors README, "Format", version 0.8: 8 bytes of header length, JSON, then the tensors without
gaps, little endian.
"""

from collections.abc import Iterable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch

from zoquant.errors import CheckpointError, shown
from zoquant.files.plain_json import parse_json
from zoquant.files.tensors import StoredTensor

MAX_HEADER = 100_000_000
MAX_DIMENSIONS = 8
_NAMES = {
    "F64": "float64", "I64": "int64", "U64": "uint64", "F32": "float32", "I32": "int32", "U32": "uint32",
    "F16": "float16", "BF16": "bfloat16", "I16": "int16", "U16": "uint16", "I8": "int8", "U8": "uint8",
    "BOOL": "bool", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
}  # fmt: skip
_DTYPES: dict[str, torch.dtype] = {kind: getattr(torch, name) for kind, name in _NAMES.items() if hasattr(torch, name)}


def read_safetensors(path: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Return the tensors of a file by name, and its metadata. Reads the header alone.

    Raises:
        CheckpointError: the file is truncated, or its header contradicts itself.
    """
    size, header = _header(path)
    start = size[1]
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _error(path, "__metadata__", "an object of strings", shown(metadata))
    tensors = {name: _tensor(path, name, entry, start, size[0]) for name, entry in header.items()}
    _check_without_gaps(path, tensors.values(), start, size[0])
    return tensors, metadata


def _header(path: Path) -> tuple[tuple[int, int], dict[str, Any]]:
    """Return the file's size, where its data starts, and its header."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(MAX_HEADER, size - 8):
                raise _error(path, "header", f"at most {max(0, size - 8)} bytes", f"a length of {length}")
            raw = file.read(length)
        header = parse_json(raw, pairs=_without_duplicates)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}. Check the path.") from error
    except ValueError as error:
        raise _error(path, "header", "a JSON object", str(error)[:120]) from error
    if not isinstance(header, dict):
        raise _error(path, "header", "a JSON object", shown(header))
    return (size, 8 + length), header


def _without_duplicates(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands there twice")
    return found


def _tensor(path: Path, name: str, entry: Any, start: int, size: int) -> StoredTensor:
    if not isinstance(entry, Mapping):
        raise _error(path, name, "an object", shown(entry))
    kind, shape, offsets = entry.get("dtype"), _counts(entry.get("shape")), _counts(entry.get("data_offsets"))
    if not isinstance(kind, str) or kind not in _DTYPES:
        raise _error(path, name, f"a dtype of {', '.join(_DTYPES)}", shown(kind))
    if shape is None or len(shape) > MAX_DIMENSIONS or offsets is None or len(offsets) != 2:
        got = f"{shown(entry.get('shape'))} and {shown(entry.get('data_offsets'))}"
        raise _error(path, name, "a shape and two offsets", got)
    first, last = offsets
    nbytes = prod(shape) * _DTYPES[kind].itemsize
    if not first <= last <= size - start or last - first != nbytes:
        raise _error(path, name, f"{nbytes} bytes within {size - start} of data", f"offsets {first} to {last}")
    return StoredTensor(name, path, start + first, nbytes, shape, _DTYPES[kind])


def _counts(numbers: Any) -> tuple[int, ...] | None:
    """Return a list of counts as a tuple, or None for anything else."""
    fine = isinstance(numbers, list) and all(type(n) is int and 0 <= n < 1 << 62 for n in numbers)
    return tuple(numbers) if fine else None


def _check_without_gaps(path: Path, tensors: Iterable[StoredTensor], start: int, size: int) -> None:
    end = start
    for tensor in sorted(tensors, key=lambda each: (each.offset, each.nbytes)):
        if tensor.offset != end:
            raise _error(path, tensor.name, f"data at byte {end}", f"byte {tensor.offset}")
        end += tensor.nbytes
    if end != size:
        raise _error(path, "data", f"{end} bytes, as the header says", f"{size}")


def _error(path: Path, what: str, expected: str, got: str) -> CheckpointError:
    return CheckpointError(f"{path}: {what!r}: expected {expected}, got {got}. The file is damaged; get it again.")
