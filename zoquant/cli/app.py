"""The commands, put together: each has a file of its own."""

import logging
import os
import sys
from collections.abc import Callable

import typer

from zoquant.cli.backends import backends_command
from zoquant.cli.bench.command import bench_command
from zoquant.cli.demo import demo_command
from zoquant.cli.doctor import doctor_command
from zoquant.cli.evaluate import eval_command
from zoquant.cli.export import export_command
from zoquant.cli.inspect import inspect_command
from zoquant.cli.replay import replay_command
from zoquant.cli.report import report_command
from zoquant.cli.show import log_handler, show_error, show_json
from zoquant.cli.training import train_command
from zoquant.errors import ZoquantError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Fine-tune quantized models with forward passes alone. Integer codes stay, scales move, and the checkpoint "
    "keeps its format and size.",
)

COMMANDS: dict[str, Callable[..., None]] = {
    "demo": demo_command,
    "inspect": inspect_command,
    "train": train_command,
    "report": report_command,
    "eval": eval_command,
    "export": export_command,
    "replay": replay_command,
    "bench": bench_command,
    "doctor": doctor_command,
    "backends": backends_command,
}
"""In the order of their use."""

for name, command in COMMANDS.items():
    app.command(name)(command)


def main() -> None:
    """Run the command line; an error that zoquant knows ends it with one line and exit code 2."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    log, handler = logging.getLogger("zoquant"), log_handler()
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        app()
    except (ZoquantError, ValueError) as error:
        if "--json" in sys.argv:
            show_json({"error": type(error).__name__, "message": str(error)})
        show_error(str(error))
        sys.exit(2)
    finally:
        log.removeHandler(handler)
