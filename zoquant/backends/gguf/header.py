"""A GGUF file's header: metadata and the place of every tensor, checked against the size of the file.

Nothing in a header is believed: every count, length and offset is compared with what is left of the file before
anything is read or allocated by it. The tensors' data is not touched.

Source: ggml docs/gguf.md and gguf.cpp (`gguf_init_from_file`), GGUF versions 2 and 3.
"""

from __future__ import annotations

import mmap
import struct
import sys
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from zoquant.backends.gguf.types import TYPES, BlockType
from zoquant.errors import CheckpointError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_DIMENSIONS = 4
MAX_NESTING = 8
DEFAULT_ALIGNMENT = 32

_STRING, _ARRAY, _BOOL = 8, 9, 7
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", _BOOL: "B", 10: "Q", 11: "q", 12: "d"}
_UINT32, _UINT64 = struct.Struct("<I"), struct.Struct("<Q")
_SMALLEST_ENTRY = 8 + 4 + 1
_SMALLEST_TENSOR = 8 + 4 + 8 + 4 + 8


def refusal(
    path: Path, where: str, expected: str, got: str, remedy: str = "Convert the checkpoint again."
) -> CheckpointError:
    """Return the error for a file that is not as expected."""
    return CheckpointError(f"{path}: {where}: expected {expected}, got {got}. {remedy}")


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of the file.

    Attributes:
        name: the file's name of it.
        shape: slowest dimension first, as torch has it (the file says it the other way round).
        type: how its numbers are stored.
        offset: bytes from the start of the file.
        nbytes: bytes of its data.
        file: the file that holds it.
    """

    name: str
    shape: tuple[int, ...]
    type: BlockType
    offset: int
    nbytes: int
    file: Path

    def error(self, expected: str, got: str, remedy: str = "Convert the checkpoint again.") -> CheckpointError:
        """Return the error for a tensor that is not as expected."""
        return refusal(self.file, f"tensor {self.name!r}", expected, got, remedy)


@dataclass(frozen=True, slots=True)
class Header:
    """What a GGUF file says of itself, or all shards of one model together.

    Attributes:
        path: the file, the first of several.
        size: its size in bytes, or that of all.
        metadata: key -> value; arrays of strings are lists, arrays of numbers `array.array`.
        tensors: name -> tensor, in the order of the file.
    """

    path: Path
    size: int
    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]

    @property
    def architecture(self) -> str:
        """The file's word for the kind of model, `general.architecture`."""
        value = self.metadata.get("general.architecture")
        if not isinstance(value, str):
            remedy = "The file does not hold a model; convert the checkpoint again."
            raise refusal(self.path, "key 'general.architecture'", "a string", repr(value), remedy)
        return value


def read_header(path: Path) -> Header:
    """Read and check the header of a GGUF file.

    Raises:
        CheckpointError: the file is missing, truncated, contradicts itself, or is no GGUF of version 2 or 3.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if size == 0:
                raise CheckpointError(f"{path}: expected a GGUF file, got an empty file. Download it again.")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Reader(path, data).header()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}. Give the path of a file.") from error


class _Reader:
    """Walks over the mapped file. `at` is the position of the next byte."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path = path
        self.data = data
        self.size = len(data)
        self.at = 0

    def header(self) -> Header:
        self._magic()
        tensor_count = self._count("the header", "tensors", _SMALLEST_TENSOR)
        entry_count = self._count("the header", "metadata keys", _SMALLEST_ENTRY)
        metadata = self._metadata(entry_count)
        alignment = self._alignment(metadata)
        tensors = [self._tensor(index) for index in range(tensor_count)]
        start = -(-self.at // alignment) * alignment
        return Header(self.path, self.size, metadata, self._placed(tensors, start, alignment))

    def fail(self, where: str, expected: str, got: str, remedy: str = "Download or convert it again.") -> NoReturn:
        raise refusal(self.path, where, expected, got, remedy)

    def _magic(self) -> None:
        magic = bytes(self.data[:4])
        if magic != MAGIC:
            self.fail("the first 4 bytes", f"{MAGIC!r}", f"{magic!r}", "This is not a GGUF file.")
        self.at = 4
        version = self._uint32("the version")
        if version not in VERSIONS and int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS:
            self.fail("the version", "a little-endian file", "a big-endian one", "Convert it on a little-endian host.")
        if version not in VERSIONS:
            self.fail("the version", "GGUF version 2 or 3", f"version {version}", "Convert it with a newer llama.cpp.")

    def _metadata(self, count: int) -> dict[str, Any]:
        metadata: dict[str, Any] = {}
        for index in range(count):
            key = self._string(f"the name of metadata key {index}")
            if key in metadata:
                self.fail(f"key {key!r}", "it once", "it twice")
            where = f"key {key!r}"
            metadata[key] = self._value(where, self._uint32(where))
        return metadata

    def _alignment(self, metadata: Mapping[str, Any]) -> int:
        value = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if not isinstance(value, int) or value < 1 or value & (value - 1):
            self.fail("key 'general.alignment'", "a power of two", repr(value))
        return value

    def _tensor(self, index: int) -> TensorInfo:
        name = self._string(f"the name of tensor {index}")
        where = f"tensor {name!r}"
        dimensions = self._uint32(where)
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            self.fail(where, f"1 to {MAX_DIMENSIONS} dimensions", str(dimensions))
        shape = tuple(reversed([self._uint64(where) for _ in range(dimensions)]))
        number = self._uint32(where)
        if number not in TYPES:
            known = ", ".join(f"{kind.name} ({kind.number})" for kind in TYPES.values())
            self.fail(where, f"one of the types {known}", f"type {number}", "Update zoquant, or quantize it otherwise.")
        kind = TYPES[number]
        return TensorInfo(name, shape, kind, self._uint64(where), self._nbytes(where, shape, kind), self.path)

    def _nbytes(self, where: str, shape: tuple[int, ...], kind: BlockType) -> int:
        numbers = 1
        for length in shape:
            numbers *= length
        if numbers == 0:
            self.fail(where, "dimensions above 0", f"shape {shape}")
        if shape[-1] % kind.block:
            self.fail(where, f"rows of a multiple of {kind.block} numbers ({kind.name})", f"rows of {shape[-1]}")
        nbytes = numbers // kind.block * kind.nbytes
        if nbytes > self.size:
            self.fail(where, f"at most {self.size} bytes (the file)", f"shape {shape}, {nbytes} bytes")
        return nbytes

    def _placed(self, tensors: Sequence[TensorInfo], start: int, alignment: int) -> dict[str, TensorInfo]:
        placed: dict[str, TensorInfo] = {}
        for tensor in tensors:
            where = f"tensor {tensor.name!r}"
            if tensor.name in placed:
                self.fail(where, "it once", "it twice")
            if tensor.offset % alignment:
                self.fail(where, f"an offset that is a multiple of {alignment}", f"offset {tensor.offset}")
            offset = start + tensor.offset
            end = offset + tensor.nbytes
            if end > self.size:
                remedy = "The file is truncated; download it again."
                self.fail(where, f"its data at bytes {offset} to {end}", f"a file of {self.size} bytes", remedy)
            placed[tensor.name] = replace(tensor, offset=offset)
        self._apart(placed)
        return placed

    def _apart(self, placed: Mapping[str, TensorInfo]) -> None:
        before: TensorInfo | None = None
        for tensor in sorted(placed.values(), key=lambda tensor: tensor.offset):
            if before is not None and before.offset + before.nbytes > tensor.offset:
                ends = before.offset + before.nbytes
                where = f"tensor {tensor.name!r}"
                self.fail(where, f"an offset from {ends}, where {before.name!r} ends", f"offset {tensor.offset}")
            before = tensor

    def _value(self, where: str, kind: int, depth: int = 0) -> Any:
        if kind == _STRING:
            return self._string(where)
        if kind == _ARRAY:
            return self._array(where, depth)
        if kind not in _SCALARS:
            self.fail(where, "a value type from 0 to 12", f"type {kind}")
        (value,) = struct.unpack("<" + _SCALARS[kind], self._take(where, struct.calcsize("<" + _SCALARS[kind])))
        return bool(value) if kind == _BOOL else value

    def _array(self, where: str, depth: int) -> list[Any] | array[Any]:
        if depth == MAX_NESTING:
            self.fail(where, f"arrays in arrays {MAX_NESTING} deep at most", "deeper ones")
        kind = self._uint32(where)
        if kind == _STRING:
            return self._strings(where, self._count(where, "strings", 8))
        if kind == _ARRAY:
            return [self._array(where, depth + 1) for _ in range(self._count(where, "arrays", 12))]
        if kind not in _SCALARS:
            self.fail(where, "an array of a value type from 0 to 12", f"type {kind}")
        values = array(_SCALARS[kind])
        values.frombytes(self._take(where, self._count(where, "numbers", values.itemsize) * values.itemsize))
        if sys.byteorder == "big":
            values.byteswap()
        return values

    def _strings(self, where: str, count: int) -> list[str]:
        data, size, at, length_at = self.data, self.size, self.at, _UINT64.unpack_from
        strings = []
        try:
            for _ in range(count):
                (length,) = length_at(data, at)
                end = at + 8 + length
                if end > size:
                    self.fail(where, f"a string of {length} bytes at byte {at}", f"a file of {size} bytes")
                strings.append(data[at + 8 : end].decode())
                at = end
        except struct.error:
            self.fail(where, "the length of a string", f"the end of the file ({size} bytes)")
        except UnicodeDecodeError as error:
            self.fail(where, "UTF-8", str(error))
        self.at = at
        return strings

    def _string(self, where: str) -> str:
        length = self._uint64(where)
        try:
            return self._take(where, length).decode()
        except UnicodeDecodeError as error:
            self.fail(where, "UTF-8", str(error))

    def _count(self, where: str, what: str, smallest: int) -> int:
        count = self._uint64(where)
        if count > (self.size - self.at) // smallest:
            self.fail(where, f"{what} that fit in a file of {self.size} bytes", f"{count} of them")
        return count

    def _uint32(self, where: str) -> int:
        (value,) = _UINT32.unpack(self._take(where, 4))
        return int(value)

    def _uint64(self, where: str) -> int:
        (value,) = _UINT64.unpack(self._take(where, 8))
        return int(value)

    def _take(self, where: str, length: int) -> bytes:
        if length > self.size - self.at:
            self.fail(where, f"{length} more bytes at byte {self.at}", f"a file of {self.size} bytes")
        start, self.at = self.at, self.at + length
        return self.data[start : self.at]
