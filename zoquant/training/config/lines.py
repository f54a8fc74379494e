"""On which line of a config file each of its keys stands, those of tables after the name of the table and a dot."""

import sys
from collections.abc import Iterator
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_MOST = 1 << 20
"""Characters that are tried, those of a value of several lines once for each; a key behind them is not found."""

_MERGE = "tag:yaml.org,2002:merge"
"""The tag of YAML's `<<`, whose table stands for keys of the one that it is in."""


def toml_lines(text: str) -> Iterator[tuple[str, int]]:
    """Yield the keys of a sound TOML file and their lines: each statement is read for itself."""
    table, begun, tried = "", 0, 0
    lines = text.split("\n")
    for number in range(len(lines)):
        statement = "\n".join(lines[begun : number + 1])
        tried += len(statement)
        if tried > _MOST:
            return
        try:
            found = tomllib.loads(statement)
        except ValueError:
            continue
        names = list(_names(found))
        if statement.lstrip().startswith("["):
            table = names[-1]
            yield table, begun + 1
        else:
            for name in names:
                yield f"{table}.{name}" if table else name, begun + 1
        begun = number + 1


def yaml_lines(text: str) -> Iterator[tuple[str, int]]:
    """Yield the keys of a sound YAML file and their lines."""
    import yaml

    loader = yaml.SafeLoader(text)
    try:
        waiting = [("", loader.get_single_node())]
        while waiting:
            prefix, node = waiting.pop()
            for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
                if key.tag == _MERGE:
                    waiting += [
                        (prefix, each) for each in (value.value if isinstance(value, yaml.SequenceNode) else [value])
                    ]
                    continue
                name = f"{prefix}{loader.construct_object(key, deep=True)}"
                yield name, key.start_mark.line + 1
                waiting.append((f"{name}.", value))
    finally:
        loader.dispose()


def _names(values: Any, prefix: str = "") -> Iterator[str]:
    """Yield the names of values and tables, an outer one before what is in it."""
    if isinstance(values, list):
        values = values[0] if len(values) == 1 else None  # a table of an array of tables
    for key, value in values.items() if isinstance(values, dict) else ():
        yield f"{prefix}{key}"
        yield from _names(value, f"{prefix}{key}.")
