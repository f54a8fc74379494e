"""The progress of a run: a live bar in a terminal, a plain line now and then elsewhere."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from zoquant.calibration import Numbers
from zoquant.cli.show import console, score
from zoquant.run_folder import Progress
from zoquant.trainer import Report

_PLAIN_EVERY = 25
_SMOOTHING = 0.95


@contextmanager
def reporting(quiet: bool) -> Iterator[Report]:
    """Yield what a run shall call after each step."""
    if quiet:
        yield lambda _: None
    elif console.is_terminal:
        with _bar() as bar:
            yield _Live(bar)
    else:
        yield _plain


class _Live:
    """Moves a bar and prints evaluations above it."""

    def __init__(self, bar: Bar) -> None:
        self._bar = bar
        self._task = bar.add_task("training", total=None, loss=float("nan"), derivative=float("nan"), rate=0.0)
        self._loss: float | None = None
        self._seconds = 0.0
        self._steps = 0

    def __call__(self, progress: Progress) -> None:
        if progress.notice is not None:
            self._bar.console.print(progress.notice, highlight=False, markup=False)
        if progress.calibration is not None:
            self._bar.console.print(_calibration_lines(progress.calibration), highlight=False)
        if progress.evaluation is not None:
            self._bar.console.print(_evaluation_line(progress), highlight=False)
        if progress.skipped is not None:
            self._bar.console.print(_skipped_line(progress), highlight=False, markup=False)
        if progress.result is None:
            return
        loss = progress.result.loss
        self._loss = loss if self._loss is None else _SMOOTHING * self._loss + (1 - _SMOOTHING) * loss
        self._seconds += progress.seconds
        self._steps += 1
        self._bar.update(
            self._task,
            completed=progress.step,
            total=progress.steps,
            loss=self._loss,
            derivative=progress.result.derivative,
            rate=self._steps / self._seconds,
        )


def _bar() -> Bar:
    return Bar(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}  derivative {task.fields[derivative]:+.2f}"),
        TextColumn("{task.fields[rate]:.2f} steps/s"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    )


def _plain(progress: Progress) -> None:
    if progress.notice is not None:
        print(progress.notice, flush=True)
    if progress.calibration is not None:
        print(_calibration_lines(progress.calibration), flush=True)
    if progress.evaluation is not None:
        print(_evaluation_line(progress), flush=True)
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


def _evaluation_line(progress: Progress) -> str:
    found = progress.evaluation
    if found is None:
        return ""
    return f"step {progress.step}/{progress.steps}  held-out {score(found.to_dict())} on {found.examples} examples"
