"""Mutations of a file of torch.save that leave the zip archive whole, so that they reach its pickle and storages."""

import io
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


def mutate_archive(content: bytes, choices: Choices) -> bytes:
    """Change one thing in a zip archive: mostly its pickle, else a member or its bytes."""
    how = choices.below(6)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
    except (zipfile.BadZipFile, OSError, ValueError, EOFError, NotImplementedError, RuntimeError, zlib.error):
        return mutate_bytes(content, choices)
    if how == 0 or not members:
        return mutate_bytes(content, choices)
    pickles = [name for name in members if name.endswith(".pkl")]
    name = choices.one(pickles) if pickles and how > 1 else choices.one(list(members))
    if how == 1 and choices.below(3) == 0:
        del members[name]
    elif how == 2:
        place = choices.below(len(members[name]) + 1)
        members[name] = members[name][:place] + choices.one(OPCODES) + members[name][place:]
    else:
        members[name] = mutate_bytes(members[name], choices)
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for each, data in members.items():
            archive.writestr(each, data)
    return target.getvalue()
