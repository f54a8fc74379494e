"""Mutations of bytes that know nothing of their meaning, but where small numbers lie."""

from collections.abc import Callable

from fuzz.choices import Choices

NUMBERS = (
    0, 1, 2, 3, 8, 9, 12, 31, 32, 255, 0x7FFF, 0xFFFF, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 62,
    1 << 63, (1 << 64) - 1,
)  # fmt: skip
HEAD = 1 << 14
"""Most mutations fall into so many first bytes: that is where headers are."""


def mutate_bytes(data: bytes, choices: Choices) -> bytes:
    """Change one thing in some bytes."""
    if not data:
        return choices.bytes(16)
    how = choices.one(_HOW)
    place = choices.below(min(len(data), HEAD) if choices.below(4) else len(data))
    return how(data, place, choices)


def _set_byte(data: bytes, place: int, choices: Choices) -> bytes:
    return data[:place] + choices.bytes(1) + data[place + 1 :]


def _flip_bit(data: bytes, place: int, choices: Choices) -> bytes:
    return data[:place] + bytes([data[place] ^ 1 << choices.below(8)]) + data[place + 1 :]


def _set_number(data: bytes, place: int, choices: Choices) -> bytes:
    """Overwrite a number: the next small one that stands there, as lengths and counts are."""
    size = choices.one((4, 8))
    place = max(place, data.find(b"\0\0\0", place, place + HEAD) - 1)
    number = choices.one(NUMBERS) if choices.below(2) else int.from_bytes(data[place : place + size], "little") + 1
    return data[:place] + (number % (1 << 8 * size)).to_bytes(size, "little") + data[place + size :]


def _cut(data: bytes, place: int, choices: Choices) -> bytes:
    return data[:place]


def _delete(data: bytes, place: int, choices: Choices) -> bytes:
    return data[:place] + data[place + 1 + choices.below(64) :]


def _insert(data: bytes, place: int, choices: Choices) -> bytes:
    return data[:place] + choices.bytes(1 + choices.below(16)) + data[place:]


def _copy(data: bytes, place: int, choices: Choices) -> bytes:
    size, target = 1 + choices.below(64), choices.below(min(len(data), HEAD))
    return data[:target] + data[place : place + size] + data[target + size :]


def _append(data: bytes, place: int, choices: Choices) -> bytes:
    return data + choices.bytes(1 + choices.below(64))


_HOW: tuple[Callable[[bytes, int, Choices], bytes], ...] = (
    _set_byte, _flip_bit, _set_number, _set_number, _cut, _delete, _insert, _copy, _append,
)  # fmt: skip
