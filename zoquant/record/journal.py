"""The journal: a trajectory that grows by one record a step and is whole after a kill at any byte.

    8 bytes    b"ZOQTRAJ" and the version of this layout, 1
    4 bytes    n, the length of the header, little endian as all numbers here
    n bytes    the header: JSON
    4 bytes    CRC-32 of all bytes before
    records    uint32 step number · float64 lr · for each probe uint64 seed and float64 derivative · uint32 CRC-32
               where `seeds` in the header is below `probes`, the last derivatives have no seed before them;
               where `groups` in the header is a list, a float64 lr for each of them in the place of the one, and the
               derivatives of the further groups, without seeds, after those of the first

The CRC of a record covers its bytes and starts from the CRC of the header, so that a record belongs to one file alone.
A record goes to the system in one write, so a killed process loses at most the one that it was writing. Every
`SYNC_EVERY` records, and at the end, the file is flushed to the disk: a power failure loses at most that many steps.
"""

import json
import os
import struct
import zlib
from pathlib import Path
from typing import Any, NamedTuple

from zoquant.errors import CheckpointError, reason_of
from zoquant.files.atomic_files import replacing, writing
from zoquant.files.plain_json import parse_json
from zoquant.record.step import Step

MAGIC = b"ZOQTRAJ\x01"
SYNC_EVERY = 25
MAX_PROBES = 1 << 16
MAX_BYTES = 1 << 31
"""Of a journal that is read: it fits in memory, as a trajectory does."""

_LENGTH = struct.Struct("<I")


class _Layout(NamedTuple):
    """How many numbers a record has."""

    probes: int
    seeds: int
    groups: int

    @property
    def record(self) -> struct.Struct:
        """The bytes of a record before its CRC."""
        bare = self.groups * self.probes - self.seeds
        return struct.Struct("<I" + "d" * self.groups + "Qd" * self.seeds + "d" * bare)


class Journal:
    """A journal that is open for writing.

    Args:
        path: the file; whatever stood there is replaced.
        header: what to write before the records: anything JSON can hold.
        probes: directions a step.
        steps: the first steps.
        seeds: seeds a step: as many as probes, or one.

    Raises:
        WriteError: the file could not be written.
        ValueError: more directions a step than `read_journal` takes.
    """

    def __init__(
        self, path: Path, header: dict[str, Any], probes: int, steps: list[Step], *, seeds: int | None = None
    ) -> None:
        self.path = path
        self.count = 0
        self._layout = _Layout(probes, probes if seeds is None else seeds, len(header.get("groups", [None])))
        if probes * self._layout.groups > MAX_PROBES:
            raise ValueError(
                f"{path}: {probes} directions a step of {self._layout.groups} groups, expected at most {MAX_PROBES} in "
                "all, which is what a journal holds. Take fewer probes."
            )
        fewer = {"seeds": self._layout.seeds} if self._layout.seeds != probes else {}
        head = encode_header({**header, "probes": probes, **fewer})
        self._record = self._layout.record
        self._salt = zlib.crc32(head[:-4])
        with replacing(path) as temporary:
            temporary.write_bytes(head + b"".join(self._encode(step) for step in steps))
        with writing(path):
            self._file = os.open(path, os.O_RDWR)

    def append(self, step: Step) -> None:
        """Add a record.

        Raises:
            WriteError: the record could not be written; the journal ends where it ended before.
        """
        end = os.lseek(self._file, 0, os.SEEK_END)
        count = self.count
        with writing(self.path):
            try:
                _write(self._file, self._encode(step))
                if self.count % SYNC_EVERY == 0:
                    os.fsync(self._file)
            except BaseException:
                self.count = count
                os.ftruncate(self._file, end)
                raise

    def close(self) -> None:
        """Flush the file to the disk and close it."""
        if self._file >= 0:
            with writing(self.path):
                os.fsync(self._file)
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _encode(self, step: Step) -> bytes:
        seeds = self._layout.seeds
        pairs = [part for pair in zip(step.seeds, step.derivatives[:seeds], strict=True) for part in pair]
        body = self._record.pack(self.count, *step.rates, *pairs, *step.derivatives[seeds:])
        self.count += 1
        return body + _LENGTH.pack(zlib.crc32(body, self._salt))


def is_journal(path: Path) -> bool:
    """Whether a file begins like a journal."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC) - 1) == MAGIC[:-1]
    except OSError:
        return False


def read_journal(path: Path) -> tuple[dict[str, Any], list[Step]]:
    """Read header and steps. A record at the end that was cut off, or whose bytes never reached the disk, is left out.

    Raises:
        CheckpointError: the header is not whole, or a record is damaged although a later one is whole.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise CheckpointError(f"{path}: expected a journal of at most {MAX_BYTES} bytes. Check the path.")
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {reason_of(error)}. Check the path.") from error
    header, start = _decode_header(path, data)
    layout = _layout(path, header)
    record = layout.record
    salt, size = zlib.crc32(data[: start - 4]), record.size + 4
    rows = [data[at : at + size] for at in range(start, len(data) - size + 1, size)]
    whole = [_LENGTH.unpack(row[-4:])[0] == zlib.crc32(row[:-4], salt) for row in rows]
    good = whole.index(False) if False in whole else len(whole)
    if any(whole[good:]):
        raise CheckpointError(
            f"{path}: the record of step {good} at byte {start + good * size} is damaged, but a later one is whole. "
            "Use a copy of the file."
        )
    return header, [_decode(path, number, layout, record.unpack(row[:-4])) for number, row in enumerate(rows[:good])]


def encode_header(header: dict[str, Any]) -> bytes:
    """Return the bytes before the records."""
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    head = MAGIC + _LENGTH.pack(len(text)) + text
    return head + _LENGTH.pack(zlib.crc32(head))


def _decode_header(path: Path, data: bytes) -> tuple[dict[str, Any], int]:
    fixed = len(MAGIC) + 4
    if data[: len(MAGIC) - 1] != MAGIC[:-1]:
        raise CheckpointError(f"{path}: not a journal of a trajectory. Check the path.")
    if data[len(MAGIC) - 1 : len(MAGIC)] not in (b"", MAGIC[-1:]):
        raise CheckpointError(
            f"{path}: journal of version {data[len(MAGIC) - 1]}, expected {MAGIC[-1]}. Update zoquant."
        )
    end = fixed + _LENGTH.unpack(data[len(MAGIC) : fixed])[0] if len(data) >= fixed else len(data)
    if not fixed <= end <= len(data) - 4 or _LENGTH.unpack(data[end : end + 4])[0] != zlib.crc32(data[:end]):
        raise CheckpointError(f"{path}: the header is damaged. Use a copy of the file, or begin the run again.")
    try:
        header = parse_json(data[fixed:end])
    except ValueError as error:
        raise CheckpointError(f"{path}: the header is not JSON: {str(error)[:120]}. Begin the run again.") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: the header is no JSON object. Begin the run again.")
    return header, end + 4


def _layout(path: Path, header: dict[str, Any]) -> _Layout:
    """Return how many numbers a record has, as the header says."""
    probes, groups = header.get("probes"), header.get("groups", [None])
    seeds = header.get("seeds", probes)
    if type(probes) is not int or type(seeds) is not int or not 0 < probes <= MAX_PROBES or seeds not in (1, probes):
        raise CheckpointError(
            f"{path}: the header says {probes!r:.40} probes and {seeds!r:.40} seeds a step, expected 1 to "
            f"{MAX_PROBES}, and as many seeds or one. Begin the run again."
        )
    if not isinstance(groups, list) or not 0 < len(groups) <= MAX_PROBES // probes:
        raise CheckpointError(
            f"{path}: the header says groups of {groups!r:.40}, expected a list of at most {MAX_PROBES // probes}. "
            "Begin the run again."
        )
    return _Layout(probes, seeds, len(groups))


def _decode(path: Path, number: int, layout: _Layout, row: tuple[Any, ...]) -> Step:
    found, rates, rest = row[0], row[1 : 1 + layout.groups], row[1 + layout.groups :]
    pairs, others = rest[: 2 * layout.seeds], rest[2 * layout.seeds :]
    if found != number:
        raise CheckpointError(f"{path}: record {number} is of step {found}. Use a copy of the file.")
    if any(seed >= 1 << 63 for seed in pairs[::2]):
        raise CheckpointError(f"{path}: step {number} has a seed above 2⁶³. Use a copy of the file.")
    return Step(pairs[::2], (*pairs[1::2], *others), rates)


def _write(file: int, data: bytes) -> None:
    """Hand all bytes to the system; it may take them in parts when the disk is nearly full."""
    while data:
        data = data[os.write(file, data) :]
