"""The progress of a run: a live table in a terminal, a plain line now and then elsewhere."""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from threading import Event, Thread

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from zoquant.cli.show import console, number, percent, printable, score
from zoquant.tasks import Evaluation
from zoquant.training import OnProgress, Progress

_APART, _SILENCE = 20.0, 60.0
"""Seconds: between two lines of steps at least, and without any line at most."""
_SMOOTHING = 0.95
_EVALUATIONS = 8
COLUMNS = ("step", "loss", "derivative", "clipped", "moved", "lr", "s/step", "x fwd", "held-out")


@contextmanager
def reporting(*, quiet: bool = False, silent: bool = False) -> Iterator[OnProgress]:
    """Yield what a run shall call after each step.

    Args:
        quiet: plain lines in a terminal as well.
        silent: nothing at all.
    """
    if silent:
        yield lambda _: None
    elif console.is_terminal and not quiet:
        with LiveTable(console) as table:
            yield table
    else:
        with PlainLines("reading data", partial(print, flush=True)) as lines:
            yield lines


def waiting(doing: str, *, silent: bool = False) -> AbstractContextManager[object]:
    """Return a context that tells now and then, in the log, that something which takes long goes on."""
    return nullcontext() if silent else PlainLines(doing, logging.getLogger("zoquant").info)


class LiveTable:
    """A table whose last row follows the steps; every evaluation leaves a row above it.

    Args:
        screen: the terminal.
    """

    def __init__(self, screen: Console) -> None:
        self._bar = Bar(
            BarColumn(bar_width=None), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"),
            TimeRemainingColumn(), console=screen,
        )  # fmt: skip
        self._task = self._bar.add_task("training", total=None)
        self._rows: deque[list[str]] = deque(maxlen=_EVALUATIONS)
        self._now = [""] * len(COLUMNS)
        self._loss: float | None = None
        self._steps = self._clipped = 0
        self._live = Live(self.renderable(), console=screen, refresh_per_second=4)

    def __enter__(self) -> "LiveTable":
        self._live.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.__exit__(None, None, None)

    def __call__(self, progress: Progress) -> None:
        """Take in what a run reports."""
        for line in _lines(replace(progress, evaluation=None)):
            self._live.console.print(printable(line), highlight=False, markup=False)
        if progress.result is not None:
            self._now = self._step(progress)
            self._bar.update(self._task, completed=progress.step, total=progress.steps)
        if progress.evaluation is not None:
            self._rows.append([str(progress.step), *self._now[1:-1], _held_out(progress.evaluation)])
        self._live.update(self.renderable())

    def renderable(self) -> Group:
        """Return table and bar as they stand now."""
        table = Table(box=SIMPLE_HEAD, padding=0)
        for name in COLUMNS:
            table.add_column(name, justify="right", no_wrap=True)
        for row in self._rows:
            table.add_row(*row)
        if self._now[0]:
            table.add_row(*self._now, style="bold")
        return Group(table, self._bar)

    def _step(self, progress: Progress) -> list[str]:
        seen = progress.result
        if seen is None:
            return self._now
        self._loss = seen.loss if self._loss is None else _SMOOTHING * self._loss + (1 - _SMOOTHING) * seen.loss
        self._steps += 1
        self._clipped += seen.clipped
        return [
            str(progress.step), f"{self._loss:.3f}", f"{seen.derivative:+.2f}", percent(self._clipped / self._steps),
            percent(seen.moved), f"{seen.lr:.1e}", f"{progress.seconds:.2f}", f"{progress.overhead:.2f}", "",
        ]  # fmt: skip


def _held_out(found: Evaluation) -> str:
    """Return the metric that says how good a model is, and the loss."""
    names = dict.fromkeys((found.primary, "loss"))
    return ", ".join(number(name, found[name]) for name in names if name in found.metrics)


class PlainLines:
    """Lines for people and logs without a terminal: seldom in a row, and never silent for long.

    Args:
        doing: what takes time at first, e.g. `"loading model.gguf"`.
        say: prints a line.
    """

    def __init__(self, doing: str, say: Callable[[str], object]) -> None:
        self._say, self._ended, self._begun = say, Event(), False
        self._doing = doing
        self._since = self._said = time.monotonic()
        self._watcher = Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "PlainLines":
        self._watcher.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._watcher.join()

    def __call__(self, progress: Progress) -> None:
        """Take in what a run reports."""
        self._doing = progress.doing or f"at step {min(progress.step + 1, progress.steps)} of {progress.steps}"
        self._since = time.monotonic()
        for line in _lines(progress):
            self._print(line)
        if progress.result is not None:
            left = _time((progress.steps - progress.step) * progress.seconds)
            self._doing += f", loss {progress.result.loss:.3f}, {left} left"
            if not self._begun or progress.step == progress.steps or self._silent_for() >= _APART:
                self._begun = True
                self._print(
                    f"step {progress.step}/{progress.steps}  loss {progress.result.loss:.3f}  "
                    f"derivative {progress.result.derivative:+.2f}  {progress.seconds:.2f} s a step  {left} left"
                )

    def _print(self, line: str) -> None:
        self._say(printable(line))
        self._said = time.monotonic()

    def _silent_for(self) -> float:
        return time.monotonic() - self._said

    def _watch(self) -> None:
        """Say what goes on whenever nothing was said for a while."""
        while not self._ended.wait(max(_SILENCE - self._silent_for(), 0.01)):
            if self._silent_for() >= _SILENCE:
                self._print(f"still {self._doing}: {_time(time.monotonic() - self._since)} so far")


def _time(seconds: float) -> str:
    """Return a time as people say it."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _lines(progress: Progress) -> Iterator[str]:
    """Yield what a run tells beside its steps."""
    at = f"step {progress.step}/{progress.steps}"
    if progress.notice is not None:
        yield progress.notice
    if (chosen := progress.calibration) is not None:
        yield f"calibrated with {chosen.forwards} forwards:" if chosen.forwards else "chosen without a forward:"
        yield from (f"  {reason}" for reason in chosen.reasons)
    if progress.skipped is not None:
        yield f"{at} skipped: {progress.skipped}"
    if (found := progress.evaluation) is not None:
        yield f"{at}  held-out {score(found.to_dict())} on {found.examples} examples"
