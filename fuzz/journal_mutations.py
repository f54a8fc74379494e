"""Mutations of a journal whose checksums are made anew, so that they reach what comes after the checksums."""

import json
import struct
import zlib

from fuzz.byte_mutations import mutate_bytes
from fuzz.choices import Choices
from fuzz.json_mutations import mutate_json
from zoquant.record.journal import MAGIC

_FIXED = len(MAGIC) + 4


def mutate_journal(content: bytes, choices: Choices) -> bytes:
    """Change one thing in a journal: its bytes as they are, its header, or its records."""
    how = choices.below(4)
    end = _FIXED + int.from_bytes(content[len(MAGIC) : _FIXED], "little")
    try:
        header = json.loads(content[_FIXED:end])
        probes, seeds = header["probes"], header.get("seeds", header["probes"])
        size = 16 + 8 * (probes + seeds)
    except (ValueError, KeyError, TypeError, RecursionError, AttributeError):
        return mutate_bytes(content, choices)
    if how == 0 or not isinstance(size, int) or not 16 < size < 1 << 16:
        return mutate_bytes(content, choices)
    text, records = content[_FIXED:end], content[end + 4 :]
    if how == 1:
        text = mutate_json(text, choices)
    rows = [records[at : at + size - 4] for at in range(0, len(records), size)]
    if how > 1 and rows:
        place = choices.below(len(rows))
        rows[place] = mutate_bytes(rows[place], choices)
    head = MAGIC + struct.pack("<I", len(text)) + text
    salt = zlib.crc32(head)
    return head + struct.pack("<I", salt) + b"".join(row + struct.pack("<I", zlib.crc32(row, salt)) for row in rows)
