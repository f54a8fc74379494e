"""From what a file or the command line says to the value of a key."""

import types
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin

from zoquant.errors import ConfigError, one_of, shown
from zoquant.tasks.template import parse_words

AUTO = "auto"
"""How the value None of a number is written: it is to be calibrated."""


def convert(name: str, value: Any, kind: Any) -> Any:
    """Return a value in the type of its key.

    Args:
        name: the key.
        value: text, a number, a list or a table.
        kind: the type: bool, int, float, str, a literal, a tuple, a mapping of text, or one of them or None.

    Raises:
        ConfigError: the value is of another type, or none of the literals.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        inner = next(each for each in arguments if each is not types.NoneType)
        return None if value is None or (value == AUTO and inner is float) else convert(name, value, inner)
    if origin is Literal:
        return _choice(name, value, arguments)
    if origin is tuple:
        return _tuple(name, value, arguments[0])
    if origin is not None and issubclass(origin, Mapping):
        return _table(name, value)
    return _plain(name, value, kind)


def told(value: Any) -> str:
    """Return the value of a setting as people write it."""
    if value is None or isinstance(value, bool):
        return {None: "not given", True: "true", False: "false"}[value]
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _plain(name: str, value: Any, kind: type) -> Any:
    if kind is float:
        return _number(name, value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        said = {bool: "true or false", int: "a whole number", str: "text"}[kind]
        raise ConfigError(f"{name} is {shown(value)}, expected {said}.", name)
    return value


def _number(name: str, value: Any) -> float:
    """Return a float; text is read too, since YAML takes 1e-3 for text."""
    try:
        if isinstance(value, bool):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigError(f"{name} is {shown(value)}, expected a number.", name) from error


def _choice(name: str, value: Any, choices: tuple[Any, ...]) -> Any:
    if value not in choices:
        raise ConfigError(f"{name} is {shown(value)}, expected {one_of(choices, value)}", name)
    return value


def _tuple(name: str, value: Any, kind: Any) -> tuple[Any, ...]:
    value = value.split(",") if isinstance(value, str) else value
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{name} is {shown(value)}, expected a list.", name)
    return tuple(convert(name, each, kind) for each in value)


def _table(name: str, value: Any) -> dict[str, str]:
    if isinstance(value, str):
        return dict(parse_words(value))
    if not isinstance(value, Mapping):
        raise ConfigError(f"{name} is {shown(value)}, expected a table.", name)
    for key, word in value.items():
        if not isinstance(word, str):
            raise ConfigError(f"{name}.{key} is {shown(word)}, expected text. Put it in quotes.", name)
    return {str(key): word for key, word in value.items()}
