"""Members of a zip archive that are stored as they are, with the places of their checksums.

Source: PKWARE APPNOTE 6.3.10, sections 4.3.7 to 4.3.16 and 4.5.3; torch 2.13 writes members uncompressed, with zip64
records where a file passes 4 GiB.
"""

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from struct import Struct, error, unpack_from
from typing import Any

from zoquant.errors import CheckpointError

MAX_MEMBERS = 1 << 18
_END = Struct("<4s4H2IH")
_END_64 = Struct("<4sQ2H2I4Q")
_LOCATOR_64 = Struct("<4sIQI")
_CENTRAL = Struct("<4s6H3I5H2I")
_LOCAL = Struct("<4s5H3I2H")
_DESCRIPTOR = b"PK\x07\x08"
_CRC_IN_CENTRAL, _CRC_IN_LOCAL = 16, 14
_HAS_DESCRIPTOR, _FULL = 0x8, 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Member:
    """One file in an archive.

    Attributes:
        name: its name.
        start: bytes from the start of the archive to its content.
        size: bytes of its content.
        crc_places: where the archive keeps the CRC-32 of its content, four little-endian bytes each.
    """

    name: str
    start: int
    size: int
    crc_places: tuple[int, ...]


def read_members(path: Path) -> dict[str, Member]:
    """Return the members of a zip archive by name, reading its directory alone.

    Raises:
        CheckpointError: the archive is damaged, cut off, compressed or encrypted, or its members overlap.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            members = list(_members(path, data))
    except OSError as problem:
        raise CheckpointError(f"{path}: cannot be read: {problem.strerror}. Check the path.") from problem
    except (ValueError, error) as problem:
        raise _error(path, "a zip archive", str(problem)[:120]) from problem
    _check_apart(path, members)
    return {member.name: member for member in members}


def _members(path: Path, data: mmap.mmap) -> Iterator[Member]:
    count, place = _directory(path, data)
    if count > MAX_MEMBERS:
        raise _error(path, f"at most {MAX_MEMBERS} members", str(count))
    for _ in range(count):
        fields = _unpack(_CENTRAL, data, place)
        flags, method, crc, packed, size, *lengths = fields[3], fields[4], *fields[7:13]
        head = place + _CENTRAL.size
        raw = data[head : head + lengths[0]]
        name = raw.decode("utf-8")
        extra = data[head + lengths[0] : head + lengths[0] + lengths[1]]
        size, packed, local = _wide(extra, size, packed, fields[16])
        if fields[0] != b"PK\x01\x02" or method != 0 or packed != size or flags & 1:
            raise _error(path, f"{name!r:.80} stored as it is", "a compressed, encrypted or damaged member")
        start, places = _content(path, data, (raw, local, size, crc, flags))
        yield Member(name, start, size, (place + _CRC_IN_CENTRAL, *places))
        place = head + sum(lengths)


def _directory(path: Path, data: mmap.mmap) -> tuple[int, int]:
    """Return the number of members and where the directory starts."""
    end = len(data) - _END.size
    if end < 0 or data[end : end + 4] != b"PK\x05\x06":
        raise _error(path, "the end of a zip archive", "other bytes; it was cut off, or torch before 1.6 wrote it")
    *_, count, _, start, _ = _END.unpack_from(data, end)
    if start == _FULL or count == 0xFFFF or data[max(0, end - _LOCATOR_64.size) :][:4] == b"PK\x06\x07":
        where = _unpack(_LOCATOR_64, data, end - _LOCATOR_64.size)[2]
        wide = _unpack(_END_64, data, where)
        if wide[0] != b"PK\x06\x06":
            raise _error(path, "a zip64 directory", "other bytes")
        count, start = wide[7], wide[9]
    return count, start


def _wide(extra: bytes, size: int, packed: int, local: int) -> tuple[int, int, int]:
    """Return the three numbers with those that did not fit into 32 bits from the zip64 field."""
    place, wide = 0, b""
    while place + 4 <= len(extra):
        kind, length = unpack_from("<2H", extra, place)
        if kind == 1:
            wide = extra[place + 4 : place + 4 + length]
        place += 4 + length
    numbers = iter(unpack_from(f"<{len(wide) // 8}Q", wide))
    size, packed, local = (next(numbers, n) if n == _FULL else n for n in (size, packed, local))
    return size, packed, local


def _content(path: Path, data: mmap.mmap, entry: tuple[bytes, int, int, int, int]) -> tuple[int, list[int]]:
    """Return where a member's content starts, and where its checksum stands beside it."""
    raw, local, size, crc, flags = entry
    fields = _unpack(_LOCAL, data, local)
    head = local + _LOCAL.size
    start = head + fields[9] + fields[10]
    same = fields[0] == b"PK\x03\x04" and fields[9] == len(raw) and data[head : head + len(raw)] == raw
    if not same or start + size > len(data):
        raise _error(
            path, f"{size} bytes of {raw.decode()!r:.80}", "a header that says otherwise; it is damaged or cut off"
        )
    if not flags & _HAS_DESCRIPTOR:
        return start, [local + _CRC_IN_LOCAL]
    place = start + size + 4 * (data[start + size : start + size + 4] == _DESCRIPTOR)
    return start, [place] if data[place : place + 4] == crc.to_bytes(4, "little") else []


def _unpack(record: Struct, data: mmap.mmap, place: int) -> tuple[Any, ...]:
    """Return the fields of a record at a place that a file has said, which may be anywhere."""
    if not 0 <= place <= len(data) - record.size:
        raise ValueError(f"a record at byte {place} of {len(data)}")
    return record.unpack_from(data, place)


def _check_apart(path: Path, members: list[Member]) -> None:
    end, names = 0, set()
    for member in sorted(members, key=lambda each: each.start):
        if member.start - _LOCAL.size < end or member.name in names:
            raise _error(path, "members side by side", f"{member.name!r:.80} over another")
        end = member.start + member.size
        names.add(member.name)


def _error(path: Path, expected: str, got: str) -> CheckpointError:
    return CheckpointError(f"{path}: expected {expected}, got {got}. Get the file again.")
