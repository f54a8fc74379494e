"""A reader of pickles that makes tensors' descriptions and plain values, and can call nothing.

It knows the instructions that `torch.save` writes and a closed list of names. No class is looked up, no function is
called: what a pickle says of a tensor becomes a `TensorRecord`, and everything else is refused.

Source: CPython 3.13, Lib/pickletools.py; torch 2.13, torch/_utils.py (`_rebuild_tensor_v2`, `_rebuild_tensor_v3`,
`_rebuild_parameter`).
"""

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

MAX_PICKLE = 16 << 20
MAX_STACK = 1 << 16
MAX_ARGUMENTS = 16
MAX_DIMENSIONS = 64
MAX_NAME = 200
"""Of what is looked at again and again: an instruction of two bytes may name what a million others made."""
_STORAGES = {
    "Double": "float64", "Float": "float32", "Half": "float16", "BFloat16": "bfloat16", "Long": "int64",
    "Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8", "Bool": "bool",
}  # fmt: skip
_DTYPES = (
    *_STORAGES.values(), "uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu",
)  # fmt: skip


class RefusedPickleError(ValueError):
    """The pickle holds something else than tensors and plain values."""


@dataclass(frozen=True, slots=True)
class StorageRecord:
    """What a pickle says of a storage: the name of its member, its dtype (None: bytes), its number of elements."""

    member: str
    dtype: torch.dtype | None
    count: int


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """What a pickle says of a tensor; nothing of it is checked against the storage."""

    storage: StorageRecord
    start: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class _Name:
    """One of the names that may stand in a pickle, and what a call of it makes of its arguments."""

    make: Callable[..., Any] | None = None
    value: Any = None


_MARK = object()


def read_plain(data: bytes) -> Any:
    """Return what a pickle holds: dicts, lists, tuples, numbers, strings, dtypes, None and `TensorRecord`.

    Raises:
        RefusedPickleError: the pickle is damaged, or holds something else.
    """
    if len(data) > MAX_PICKLE:
        raise RefusedPickleError(f"a pickle of {len(data)} bytes, expected at most {MAX_PICKLE}")
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name == "STOP":
                return machine.pop()
            machine.run(opcode.name, argument)
    except RefusedPickleError:
        raise
    except (ValueError, TypeError, IndexError, KeyError, OverflowError) as problem:
        raise RefusedPickleError(f"a damaged pickle: {type(problem).__name__}: {str(problem)[:120]}") from problem
    raise RefusedPickleError("a pickle without an end")


class _Machine:
    """The stack and the memo of one pickle."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise RefusedPickleError("a mark where a value belongs")
        return value

    def pop_to_mark(self) -> list[Any]:
        place = len(self.stack) - 1
        while self.stack[place] is not _MARK:
            place -= 1
            if place < 0:
                raise RefusedPickleError("no mark")
        items = self.stack[place + 1 :]
        del self.stack[place:]
        return items

    def run(self, name: str, argument: Any) -> None:
        if name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name](argument))
        elif name in _ACTIONS:
            _ACTIONS[name](self, argument)
        else:
            raise RefusedPickleError(f"the instruction {name}, which torch.save does not write for tensors")
        if len(self.stack) > MAX_STACK:
            raise RefusedPickleError(f"more than {MAX_STACK} values at once")

    def put(self, argument: int) -> None:
        self.memo[argument] = self.stack[-1]

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict or len(items) % 2 or not all(isinstance(key, str) for key in items[::2]):
            raise RefusedPickleError("a dict whose keys are no strings")
        target.update(zip(items[::2], items[1::2], strict=True))

    def append(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise RefusedPickleError("items of no list")
        self.stack[-1].extend(items)

    def call(self) -> None:
        arguments, name = self.pop(), self.pop()
        if not isinstance(name, _Name) or name.make is None or not _is_tuple(arguments, MAX_ARGUMENTS):
            raise RefusedPickleError("a call of something that is no tensor")
        self.stack.append(name.make(*arguments))

    def leave_out_state(self) -> None:
        """Drop the attributes of a dict, such as the `_metadata` of a state dict."""
        self.pop()
        if type(self.stack[-1]) is not dict:
            raise RefusedPickleError("attributes of something that is no dict")

    def take_tuple(self, count: int) -> None:
        items = tuple(self.pop() for _ in range(count))
        self.stack.append(items[::-1])

    def find(self, module: Any, name: Any) -> None:
        if not all(isinstance(part, str) and len(part) <= MAX_NAME for part in (module, name)):
            raise RefusedPickleError(f"a name that is no text of at most {MAX_NAME} characters")
        key = f"{module}.{name}"
        if key not in _NAMES:
            raise RefusedPickleError(f"the name {key!r:.80}: expected tensors and plain values alone")
        found = _NAMES[key]
        self.stack.append(found.value if found.make is None else found)


def _is_tuple(value: Any, most: int) -> bool:
    """Whether a value is a tuple of few parts; none of them is looked at."""
    return type(value) is tuple and len(value) <= most


def _are_numbers(value: Any) -> bool:
    """Whether a value can be a shape, or strides."""
    return _is_tuple(value, MAX_DIMENSIONS) and all(type(number) is int for number in value)


def _storage(found: Any) -> StorageRecord:
    """Return what a persistent id says: the word "storage", a dtype, a member, a device and a count."""
    if not _is_tuple(found, 5):
        raise RefusedPickleError("a persistent id that is no storage")
    kind, dtype, member, _, count = found
    known = dtype is None or isinstance(dtype, torch.dtype)
    if kind != "storage" or not known or not isinstance(member, str) or type(count) is not int:
        raise RefusedPickleError("a persistent id that is no storage")
    return StorageRecord(member, dtype, count)


def _tensor(
    storage: Any, start: Any, shape: Any, strides: Any, grad: Any, hooks: Any, dtype: Any = None, *more: Any
) -> TensorRecord:
    del grad, hooks, more
    numbers = _are_numbers(shape) and _are_numbers(strides) and len(shape) == len(strides)
    if not isinstance(storage, StorageRecord) or type(start) is not int or not numbers:
        raise RefusedPickleError("a tensor without a storage, a shape and strides")
    kind = dtype if isinstance(dtype, torch.dtype) else storage.dtype
    if kind is None:
        raise RefusedPickleError("a tensor without a dtype")
    return TensorRecord(storage, start, shape, strides, kind)


def _parameter(tensor: Any, grad: Any = False, hooks: Any = None) -> TensorRecord:
    del grad, hooks
    if not isinstance(tensor, TensorRecord):
        raise RefusedPickleError("a parameter of something that is no tensor")
    return tensor


def _empty_dict() -> dict[str, Any]:
    return {}


def _size(numbers: Any) -> tuple[int, ...]:
    found = tuple(numbers) if type(numbers) is list and len(numbers) <= MAX_DIMENSIONS else numbers
    if not _are_numbers(found):
        raise RefusedPickleError("a size of something else than numbers")
    return tuple(found)


_NAMES: dict[str, _Name] = {
    **{f"torch.{kind}Storage": _Name(value=getattr(torch, dtype)) for kind, dtype in _STORAGES.items()},
    **{f"torch.{dtype}": _Name(value=getattr(torch, dtype)) for dtype in _DTYPES if hasattr(torch, dtype)},
    "torch.storage.UntypedStorage": _Name(),
    "torch.Size": _Name(_size),
    "torch._utils._rebuild_tensor_v2": _Name(_tensor),
    "torch._utils._rebuild_tensor_v3": _Name(_tensor),
    "torch._utils._rebuild_parameter": _Name(_parameter),
    "collections.OrderedDict": _Name(_empty_dict),
}
_CONSTANTS: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"), lambda number: number),
    **dict.fromkeys(("BINUNICODE", "SHORT_BINUNICODE"), lambda text: text),
    "NONE": lambda _: None,
    "NEWTRUE": lambda _: True,
    "NEWFALSE": lambda _: False,
    "EMPTY_DICT": lambda _: {},
    "EMPTY_LIST": lambda _: [],
    "EMPTY_TUPLE": lambda _: (),
    "MARK": lambda _: _MARK,
}
_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME"), lambda machine, _: None),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), _Machine.put),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda machine, place: machine.stack.append(machine.memo[place])),
    "MEMOIZE": lambda machine, _: machine.put(len(machine.memo)),
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.pop_to_mark())),
    "TUPLE1": lambda machine, _: machine.take_tuple(1),
    "TUPLE2": lambda machine, _: machine.take_tuple(2),
    "TUPLE3": lambda machine, _: machine.take_tuple(3),
    "SETITEM": lambda machine, _: machine.set_items([machine.pop(), machine.pop()][::-1]),
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_to_mark()),
    "APPEND": lambda machine, _: machine.append([machine.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.pop_to_mark()),
    "GLOBAL": lambda machine, names: machine.find(*names.split(" ", 1)),
    "STACK_GLOBAL": lambda machine, _: machine.find(*[machine.pop(), machine.pop()][::-1]),
    "BINPERSID": lambda machine, _: machine.stack.append(_storage(machine.pop())),
    "REDUCE": lambda machine, _: machine.call(),
    "BUILD": lambda machine, _: machine.leave_out_state(),
}
