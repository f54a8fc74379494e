"""How the command line speaks: tables for people, JSON for programs, one line for an error."""

import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.highlighter import NullHighlighter
from rich.logging import RichHandler
from rich.markup import escape
from rich.table import Table

JSON = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of tables.")]

console = Console()
errors = Console(stderr=True)


def printable(value: Any) -> str:
    r"""Return a text in which nothing moves a cursor, colours a line or turns the writing round: `\x1b` for an escape.

    Names come from checkpoints, data and plugins, so from anybody.
    """
    return "".join(
        sign if sign.isprintable() or sign == "\n" else sign.encode("unicode_escape").decode() for sign in str(value)
    )


def harmless(value: Any) -> str:
    """Return a text that is printable and that rich shows as it is."""
    return escape(printable(value))


class PrintableFormatter(logging.Formatter):
    """Formats a record of the log as `printable` does, and says of a warning that it is one."""

    def format(self, record: logging.LogRecord) -> str:
        said = printable(super().format(record))
        return f"warning: {said}" if record.levelno == logging.WARNING else said


@contextmanager
def showing_log() -> Iterator[None]:
    """Print the log of zoquant, and what `warnings.warn` says as a line of it."""
    log, handler = logging.getLogger("zoquant"), log_handler()
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: log.warning("%s", message)
        try:
            yield
        finally:
            log.removeHandler(handler)


def log_handler() -> logging.Handler:
    """Return what prints the log: in a terminal through the console, which keeps a live table whole."""
    handler: logging.Handler
    if console.is_terminal and errors.is_terminal:
        handler = RichHandler(
            console=console, show_time=False, show_level=False, show_path=False, highlighter=NullHighlighter()
        )
        handler.keywords = []
    else:
        handler = logging.StreamHandler()
    handler.setFormatter(PrintableFormatter())
    return handler


def show_json(data: Any) -> None:
    """Print plain data as JSON."""
    print(json.dumps(data, indent=1))


def show_pairs(title: str, pairs: Mapping[str, Any]) -> None:
    """Print names and values as a table of two columns."""
    table = Table(title=harmless(title), show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in pairs.items():
        table.add_row(harmless(name), harmless(value))
    console.print(table)


def show_rows(title: str, columns: list[str], rows: list[list[Any]]) -> None:
    """Print rows under column heads."""
    table = Table(title=harmless(title), title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(harmless(cell) for cell in row))
    console.print(table)


def show_error(message: str) -> None:
    """Print an error to the standard error stream."""
    errors.print(f"[bold red]error:[/] {harmless(message)}", highlight=False, soft_wrap=True)


def mebibytes(count: float) -> str:
    """Return a number of bytes as people read it."""
    return f"{count / 2**20:,.1f} MiB" if count >= 2**20 else f"{count / 2**10:,.1f} KiB"


def percent(share: float) -> str:
    """Return a share as a percentage."""
    return f"{100 * share:.1f} %"


def score(evaluation: Mapping[str, Any]) -> str:
    """Return what an evaluation found as people read it: its metrics, the primary one first and with its interval.

    Args:
        evaluation: what `Evaluation.to_dict` returned.
    """
    primary = evaluation["primary"]
    interval = evaluation[f"{primary}_interval"]
    first = number(primary, evaluation[primary])
    if interval is not None:
        first += f" (95 %: {number(primary, interval[0])} to {number(primary, interval[1])})"
    names = [key.removesuffix("_interval") for key in evaluation if key.endswith("_interval")]
    rest = [f"{name} {number(name, evaluation[name])}" for name in names if name != primary]
    return ", ".join([f"{primary} {first}", *rest])


def number(metric: str, value: float) -> str:
    """Return a metric's value: losses in nats, everything else as a percentage."""
    return f"{value:.3f}" if metric == "loss" else percent(value)
