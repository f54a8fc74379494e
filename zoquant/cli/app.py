"""The commands, put together: each has a file of its own, which is imported when it is asked for."""

import os
import sys
from importlib.metadata import EntryPoint
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from zoquant.cli.show import show_error, show_json, showing_log
from zoquant.errors import ZoquantError
from zoquant.registry import own_package

_LOOK: dict[str, Any] = {"pretty_exceptions_enable": False, "rich_markup_mode": "markdown"}
_UsageError: Any = typer.BadParameter.__base__
"""What typer raises for a command line that makes no sense; its module depends on the version of typer."""

COMMANDS = {
    "demo": ("zoquant.cli.demo:demo_command", "Teach a real GGUF checkpoint to read reviews, and export it: minutes."),
    "inspect": ("zoquant.cli.inspect:inspect_command", "Show what is in a checkpoint and what training would move."),
    "train": ("zoquant.cli.train:train_command", "Fine-tune a checkpoint on rows of data."),
    "report": ("zoquant.cli.report:report_command", "Write an HTML page about one run or several."),
    "eval": ("zoquant.cli.evaluate:eval_command", "Measure a checkpoint on rows with known answers."),
    "export": ("zoquant.cli.export:export_command", "Write the tuned checkpoint, in the format of the base."),
    "replay": ("zoquant.cli.replay:replay_command", "Turn a trajectory into its delta without a single forward pass."),
    "bench": ("zoquant.cli.bench.command:bench_command", "Measure what a step costs beside its forwards."),
    "doctor": ("zoquant.cli.doctor:doctor_command", "Say what will work here, and what to install."),
    "backends": ("zoquant.cli.backends:backends_command", "List what zoquant can train: layer classes and formats."),
}
"""Where each command is, and what the list of them says of it; in the order of their use."""


class Commands(TyperGroup):
    """Commands of which the one that is asked for is imported, and no other."""

    def resolve_command(self, *asked: Any) -> Any:
        """Return the command of some words, and the words after its name."""
        name, listed_only, rest = super().resolve_command(*asked)
        return name, listed_only if name is None else _imported(name), rest


app = typer.Typer(
    **_LOOK,
    cls=Commands,
    no_args_is_help=True,
    help="Fine-tune quantized models with forward passes alone. Integer codes stay, scales move, and the checkpoint "
    "keeps its format and size.",
)


def _imported(name: str) -> Any:
    alone = typer.Typer(**_LOOK, add_completion=False)
    alone.command(name)(EntryPoint(name, COMMANDS[name][0], "").load())
    return typer.main.get_command(alone)


def _show_version(asked: bool) -> None:
    if asked:
        print(own_package())
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version, and end.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Take the options before a command."""


for _name, (_, _help) in COMMANDS.items():
    app.command(_name, help=_help)(lambda: None)


def main() -> None:
    """Run the command line; an error that zoquant knows ends it with one line and exit code 2."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with showing_log():
        try:
            code = app(sys.argv[1:] or ["--help"], prog_name="zoquant", standalone_mode=False)
        except (ZoquantError, ValueError, _UsageError) as error:
            said = _usage(error) if isinstance(error, _UsageError) else str(error)
            if "--json" in sys.argv:
                show_json({"error": type(error).__name__, "message": said})
            show_error(said)
            code = 2
    sys.exit(code or 0)


def _usage(error: Any) -> str:
    """Return what is wrong with a command line; all that is missing in it at once."""
    said, context = str(error.format_message()), error.ctx
    if context is None:
        return said
    said = said if said.endswith((".", "?")) else f"{said}."
    if type(error).__name__ == "MissingParameter":  # given ones were read before those that are not
        missing = [each for each in context.command.params if each.required and each.name not in context.params]
        said = f"not given: {', '.join(each.opts[0] for each in missing)}."
    return f"{said} See `{context.command_path} --help`."
