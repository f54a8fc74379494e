"""Config files: TOML and YAML are read, TOML is written."""

import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from zoquant.errors import ConfigError, reason_of
from zoquant.training.config.lines import toml_lines, yaml_lines

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_MOST = 1 << 16
"""Bytes of a config file."""
_DEEPEST = 8
"""Tables and lists within each other; a run needs two."""


@dataclass(frozen=True)
class ConfigFile:
    """What a config file says.

    Attributes:
        path: the file.
        text: all of it.
        values: its values by key.
    """

    path: Path
    text: str
    values: Mapping[str, Any]

    @classmethod
    def read(cls, path: str | Path) -> "ConfigFile":
        """Read a file whose name ends in .toml, .yaml or .yml.

        Raises:
            ConfigError: the file is missing or large, is not TOML or YAML, or is no table; the line is named where it
                is known.
        """
        file = Path(path)
        if file.suffix not in (".toml", ".yaml", ".yml"):
            raise ConfigError(f"{file}: expected a name that ends in .toml, .yaml or .yml.")
        try:
            with file.open("rb") as opened:
                data = opened.read(_MOST + 1)
            text = data.decode("utf-8").replace("\r\n", "\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{file}: cannot be read: {reason_of(error)}. Check the path.") from error
        if len(data) > _MOST:
            raise ConfigError(f"{file}: expected at most {_MOST} bytes. Is it the right file?")
        values = _toml(file, text) if file.suffix == ".toml" else _yaml(file, text)
        if not isinstance(values, dict):
            raise ConfigError(f"{file}: expected keys with values, got {type(values).__name__}.")
        if _is_deep(values):
            raise ConfigError(f"{file}: {_TOO_DEEP}.")
        return cls(file, text, {str(key): value for key, value in values.items()})

    @contextmanager
    def naming_lines(self) -> Iterator[None]:
        """Put the file, and the line of the key at fault, before the message of a ConfigError."""
        try:
            yield
        except ConfigError as error:
            line = None if error.key is None else self.line_of(error.key)
            where = f"{self.path}" if line is None else f"{self.path}, line {line}"
            raise ConfigError(f"{where}: {error}", error.key) from error

    def line_of(self, key: str) -> int | None:
        """Return the line that a key, or a `table.name`, stands on; None where it is not to be found."""
        lines = toml_lines(self.text) if self.path.suffix == ".toml" else yaml_lines(self.text)
        return next((number for name, number in lines if name == key), None)


_TOO_DEEP = f"values are nested too deep, expected at most {_DEEPEST} tables and lists within each other"


def _toml(file: Path, text: str) -> Any:
    try:
        return tomllib.loads(text)
    except ValueError as error:  # what tomllib raises, and Python for a number of thousands of digits
        raise ConfigError(f"{file}: not TOML: {error}.") from error
    except RecursionError as error:
        raise ConfigError(f"{file}: {_TOO_DEEP}.") from error


def _yaml(file: Path, text: str) -> Any:
    import yaml

    try:
        _check_yaml(text)
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError) as error:
        # beside YAMLError, what its constructors raise for a tag such as !!bool on a text that is none
        raise ConfigError(f"{file}: not YAML: {' '.join(str(error).split())}.") from error


def _check_yaml(text: str) -> None:
    """Refuse what a small text can make large: aliases, which may double sixty times, and depth."""
    import yaml

    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise yaml.YAMLError(f"*{event.anchor} is an alias; write the value out")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise yaml.YAMLError(_TOO_DEEP)


def _is_deep(values: Any) -> bool:
    level = [values]
    for _ in range(_DEEPEST):
        level = [inner for each in level for inner in _inside(each)]
    return bool(level)


def _inside(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def toml_text(values: Mapping[str, Any]) -> str:
    """Return values by key as TOML, with the tables at its end.

    Raises:
        ConfigError: a text is none, since it holds half of a character.
    """
    text = tomli_w.dumps(values)
    for line in text.splitlines():
        if any("\ud800" <= letter <= "\udfff" for letter in line):
            raise ConfigError(f"{line!r:.200} is not valid text, so no config file can hold it. Rename the file.")
    return text
