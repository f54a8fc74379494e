"""The progress of a run: a live table in a terminal, a plain line now and then elsewhere."""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from zoquant.cli.show import console, number, percent, score
from zoquant.optim.choosing import Numbers
from zoquant.tasks import Evaluation
from zoquant.training import OnProgress, Progress

_PLAIN_EVERY = 25
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
        yield _plain


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
        if progress.notice is not None:
            self._live.console.print(progress.notice, highlight=False, markup=False)
        if progress.calibration is not None:
            self._live.console.print(_calibration_lines(progress.calibration), highlight=False, markup=False)
        if progress.skipped is not None:
            self._live.console.print(_skipped_line(progress), highlight=False, markup=False)
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


def _plain(progress: Progress) -> None:
    if progress.notice is not None:
        print(progress.notice, flush=True)
    if progress.calibration is not None:
        print(_calibration_lines(progress.calibration), flush=True)
    if progress.evaluation is not None:
        print(_evaluation_line(progress.step, progress.steps, progress.evaluation), flush=True)
    if progress.skipped is not None:
        print(_skipped_line(progress), flush=True)
    if progress.result is not None and progress.step % _PLAIN_EVERY == 0:
        left = (progress.steps - progress.step) * progress.seconds
        print(
            f"step {progress.step}/{progress.steps}  loss {progress.result.loss:.3f}  "
            f"derivative {progress.result.derivative:+.2f}  {1 / progress.seconds:.2f} steps/s  left {left:.0f} s",
            flush=True,
        )


def _calibration_lines(found: Numbers) -> str:
    how = f"calibrated with {found.forwards} forwards:" if found.forwards else "set without a forward:"
    return "\n".join([how, *(f"  {reason}" for reason in found.reasons)])


def _skipped_line(progress: Progress) -> str:
    return f"step {progress.step}/{progress.steps} skipped: {progress.skipped}"


def _evaluation_line(step: int, steps: int, found: Evaluation) -> str:
    return f"step {step}/{steps}  held-out {score(found.to_dict())} on {found.examples} examples"
