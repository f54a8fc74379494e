"""The page of every command and flag, from the program itself."""

from collections.abc import Iterator
from typing import Any

import click
from typer.main import get_command

from docs.matrix import table
from zoquant.cli.app import COMMANDS, app

PAGE = "reference/commands.md"
_INTRO = """# Commands and flags

<!-- Written by `make docs` from the program. -->

You want to look up a flag. `zoquant COMMAND --help` says the same in a terminal. Flags of `zoquant train` are also
keys of [the config](config.md).
"""


def commands_page() -> str:
    """Return the text of the page."""
    group: Any = get_command(app)
    context = click.Context(group, info_name="zoquant")
    return "\n".join([_INTRO, *(_command(name, group, context) for name in COMMANDS)])


def _command(name: str, group: Any, context: click.Context) -> str:
    found = group.resolve_command(context, [name])[1]
    rows = [_row(each) for each in found.params if each.name != "help"]
    said = "\n".join(line.strip() for line in (found.help or "").splitlines())
    return f"## zoquant {name}\n\n{said}\n\n{table(('flag', 'what it means', 'default'), rows)}"


def _row(flag: Any) -> list[str]:
    names = [flag.name] if flag.param_type_name == "argument" else [*flag.opts, *flag.secondary_opts]
    told = " ".join((flag.help or "").split()).replace("[", "\\[").replace("<", "&lt;")
    return [", ".join(f"`{name}`" for name in names), told, "".join(_default(flag))]


def _default(flag: Any) -> Iterator[str]:
    """Yield what holds where a flag is not given, in words."""
    shown = getattr(flag, "show_default", None)
    if flag.required:
        yield "must be given"
    elif isinstance(shown, str):
        yield f"`{shown}`"
    elif flag.default or (flag.default == 0 and flag.default is not False):
        yield f"`{flag.default}`"
