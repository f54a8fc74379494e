"""Mutations of a file of torch.save that leave the zip archive whole, so that they reach its pickle and storages."""

import io
import struct
import zipfile
import zlib

from fuzz.byte_mutations import mutate_bytes
from fuzz.choices import Choices

OPCODES = (
    b"c__builtin__\neval\n", b"cos\nsystem\n", b"R", b"b", b"0", b"(", b"}", b"]", b")", b"t", b"\x85", b"N", b"\x88",
    b"K\x05", b"J\xff\xff\xff\x7f", b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f", b"s", b"u", b"a", b"e", b"h\x00",
    b"q\x00", b"Q", b".", b"2", b"1", b"\x93", b"\x81", b"B\xff\xff\xff\x7f", b"X\x01\x00\x00\x00a",
)  # fmt: skip
"""Instructions of pickle, dangerous, out of place, or both."""

DOUBLED = b"\x8c\x01a" + b"".join(b"\x94h" + bytes([n]) + b"\x86" for n in range(60))
"""A tuple of the one before, twice, sixty times: too much for whoever looks at all parts."""
LONG = b"(" + b"N" * 5000 + b"t"
SHAPES = (
    DOUBLED, DOUBLED + b"\x8c\x01b\x93", b"\x8c\x05torch" + DOUBLED + b"\x93", DOUBLED + b"Q",
    b"(" + DOUBLED + b"ctorch\nFloatStorage\n\x8c\x010\x8c\x03cpuK\x01tQ", b"ctorch\nSize\n" + DOUBLED + b"\x85R",
    b"(\x8c\x07storagectorch\nFloatStorage\n\x8c\x010" + DOUBLED + b"K\x01tQ", b"\x8c\x01k" + DOUBLED + b"s",
    b"ctorch\nSize\n" + LONG + b"\x85R", b"ccollections\nOrderedDict\n" + LONG + b"R",
)  # fmt: skip
"""Values that stand for more than they are long, where each instruction takes its arguments."""
_RECORDS = (b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07", b"PK\x01\x02", b"PK\x03\x04")
_PLACES = (1 << 63, (1 << 64) - 1, 1 << 62, 1 << 32, (1 << 32) - 1, 0)

_UNREADABLE = (
    zipfile.BadZipFile, OSError, ValueError, EOFError, NotImplementedError, RuntimeError, OverflowError, struct.error,
    zlib.error,
)  # fmt: skip
"""What zipfile says of an archive that was damaged before."""


def mutate_archive(content: bytes, choices: Choices) -> bytes:
    """Change one thing in a zip archive: mostly its pickle, else a member or its bytes."""
    how = choices.below(7)
    if how == 6:
        return _misplace(content, choices)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
    except _UNREADABLE:
        return mutate_bytes(content, choices)
    if how == 0 or not members:
        return mutate_bytes(content, choices)
    pickles = [name for name in members if name.endswith(".pkl")]
    name = choices.one(pickles) if pickles and how > 1 else choices.one(list(members))
    if how == 1 and choices.below(3) == 0:
        del members[name]
    elif how == 2:
        place = choices.below(len(members[name]) + 1)
        put = choices.one(OPCODES) if choices.below(2) else choices.one(SHAPES)
        members[name] = members[name][:place] + put + members[name][place:]
    else:
        members[name] = mutate_bytes(members[name], choices)
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for each, data in members.items():
            archive.writestr(each, data)
    return target.getvalue()


def _misplace(content: bytes, choices: Choices) -> bytes:
    """Overwrite a number of a record of the archive: a place, a size or a count."""
    found = content.rfind(choices.one(_RECORDS))
    place = max(0, found) + 4 + 2 * choices.below(26)
    size = choices.one((4, 8))
    number = choices.one(_PLACES) % (1 << 8 * size)
    return content[:place] + number.to_bytes(size, "little") + content[place + size :]
