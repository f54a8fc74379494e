"""What a layer is called with and returns: whether two calls are the same, and the first of several repetitions."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_PLAIN = (bool, int, float, str, torch.dtype, torch.device)


class OpaqueError(Exception):
    """An argument cannot be compared or cut, such as a cache that the layer writes to."""


@dataclass(frozen=True)
class Call:
    """Arguments of a call, taken apart.

    Attributes:
        parts: the arguments in order; of what is nested the shape first, then its own parts.
        versions: how often each tensor had been written to when it was taken apart.
    """

    parts: tuple[Any, ...]
    versions: tuple[int, ...]

    @classmethod
    def of(cls, *arguments: object) -> "Call":
        """Take arguments apart, holding tensors; an OpaqueError for what is no tensor, plain value or nest of them."""
        parts = tuple(part for argument in arguments for part in _parts(argument))
        return cls(parts, _versions(parts))

    @property
    def untouched(self) -> bool:
        """Whether no tensor was written to since it was taken apart."""
        return _versions(self.parts) == self.versions

    def same(self, other: "Call") -> bool:
        """Whether both have equal parts."""
        if len(self.parts) != len(other.parts):
            return False
        return all(_equal(mine, its) for mine, its in zip(self.parts, other.parts, strict=True))


class Fold:
    """Cuts arguments of a batch that is repeated so often to those of its first repetition.

    The first arguments are those of the layer that gets the batch, its rows first. What is known to be the same in all
    repetitions is not compared again.

    Raises:
        OpaqueError: the repetitions differ, or an argument cannot be cut.
    """

    def __init__(self, repeat: int, arguments: tuple[tuple[Any, ...], dict[str, Any]]) -> None:
        first = arguments[0][0]
        if not isinstance(first, Tensor) or not first.dim() or len(first) % repeat:
            raise OpaqueError
        self.repeat, self._rows = repeat, len(first)
        self._cut: dict[int, tuple[Tensor, Tensor]] = {}
        self(arguments)

    def __call__(self, value: Any) -> Any:
        """Return a value as the first repetition has it."""
        if isinstance(value, Tensor):
            return self._first(value)
        if isinstance(value, Mapping):
            return {name: self(part) for name, part in value.items()}
        if type(value) in (tuple, list):
            return type(value)(self(part) for part in value)
        if value is None or isinstance(value, _PLAIN):
            return value
        raise OpaqueError

    def repeated(self, value: Tensor) -> Tensor:
        """Return the rows of the first repetition as often as the batch is repeated."""
        return value.repeat(self.repeat, *[1] * (value.dim() - 1))

    def _first(self, value: Tensor) -> Tensor:
        if not value.dim() or len(value) != self._rows:
            return value
        if id(value) not in self._cut:  # held together with its cut, so no other tensor can get this id
            first, *others = value.chunk(self.repeat)
            if not all(torch.equal(first, other) for other in others):
                raise OpaqueError
            self._cut[id(value)] = value, first
        return self._cut[id(value)][1]


def _parts(value: object) -> Iterator[Any]:
    if isinstance(value, Tensor):
        if value.is_inference():  # keeps no count of what is written to it
            raise OpaqueError
        yield value
    elif isinstance(value, Mapping):
        yield tuple(value)
        for part in value.values():
            yield from _parts(part)
    elif type(value) in (tuple, list):
        yield type(value), len(value)  # type: ignore[arg-type]
        for part in value:  # type: ignore[attr-defined]
            yield from _parts(part)
    elif value is None or isinstance(value, _PLAIN):
        yield value
    else:
        raise OpaqueError


def _versions(parts: tuple[Any, ...]) -> tuple[int, ...]:
    return tuple(part._version for part in parts if isinstance(part, Tensor))


def _equal(one: Any, other: Any) -> bool:
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return type(one) is type(other) and bool(one == other)
    alike = (one.shape, one.dtype, one.device) == (other.shape, other.dtype, other.device)
    return one is other or (alike and torch.equal(one, other))
