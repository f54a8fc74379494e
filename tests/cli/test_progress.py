"""The progress of a run in a terminal and out of it."""

import io
import logging
import math
import time
from dataclasses import replace
from queue import SimpleQueue

import pytest
from rich.console import Console

from zoquant.cli import progress as shown
from zoquant.cli import show
from zoquant.cli.progress import LiveTable, PlainLines, reporting, waiting
from zoquant.optim.calibration import Calibration
from zoquant.optim.measuring import StepResult
from zoquant.tasks import Evaluation, Metric
from zoquant.training import Progress


def evaluation(accuracy: float, loss: float) -> Evaluation:
    ends = (accuracy - 0.1, accuracy + 0.1)
    return Evaluation("accuracy", {"accuracy": Metric(accuracy, ends), "loss": Metric(loss, None)}, 100)


STEP = Progress(1, 40, StepResult(0.7, -1.25, False, 0.98, 1e-3, 0), None, 0.5, 0.2, overhead=1.25)
EVALUATION = Progress(0, 40, None, evaluation(0.5, 0.69), 1.0, 0.0)
CALIBRATION = Calibration(
    eps=0.03, lr=0.01, clip=1.0, reasons=("eps [bold]0.03[/]: it fits",), loss=1.0, repeat=0.0, derivatives=(),
    derivative_rms=1.0, derivative_median=1.0, curvature=0.0, signal=0.5, forwards=12, scan=(),
)  # fmt: skip


def terminal(width: int = 100) -> Console:
    return Console(
        file=io.StringIO(), force_terminal=True, width=width, height=40, color_system=None, legacy_windows=False
    )


def rows_of(table: LiveTable, width: int = 100) -> list[str]:
    """Return the lines that a table shows, words one space apart, without those that are empty or a rule."""
    screen = terminal(width)
    with screen.capture() as taken:
        screen.print(table.renderable())
    lines = (" ".join(line.split()) for line in taken.get().splitlines())
    return [line for line in lines if line.strip("─ ")]


@pytest.mark.parametrize("width", [80, 120])
def test_the_last_row_follows_and_evaluations_stay(width: int) -> None:
    with LiveTable(terminal(width)) as table:
        table(EVALUATION)
        table(STEP)
        table(replace(STEP, step=2, result=replace(STEP.result, loss=0.7, clipped=True, lr=5e-4)))  # type: ignore[type-var]
        table(replace(EVALUATION, step=2, evaluation=evaluation(0.75, 0.4)))
        table(replace(STEP, step=3))
    head, *rows, bar = rows_of(table, width)
    assert head == " ".join(shown.COLUMNS)
    assert rows == [
        "0 50.0 %, 0.690",
        "2 0.700 -1.25 50.0 % 98.0 % 5.0e-04 0.50 1.25 75.0 %, 0.400",
        "3 0.700 -1.25 33.3 % 98.0 % 1.0e-03 0.50 1.25",
    ]
    assert "3/40" in bar


def test_many_evaluations_keep_the_last_ones() -> None:
    with LiveTable(terminal()) as table:
        for step in range(50):
            table(replace(EVALUATION, step=step))
    assert [row.split()[0] for row in rows_of(table)[1:9]] == [str(step) for step in range(42, 50)]


def test_the_calibration_is_printed_as_it_is() -> None:
    screen = terminal()
    with LiveTable(screen) as table:
        table(Progress(0, 40, None, None, 0.0, 0.0, CALIBRATION))
    assert isinstance(screen.file, io.StringIO)
    assert "calibrated with 12 forwards:" in screen.file.getvalue()
    assert "eps [bold]0.03[/]: it fits" in screen.file.getvalue()


def test_a_warning_goes_above_the_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Where output and errors are the same terminal, the log goes through the console of the table."""
    screen = terminal()
    monkeypatch.setattr(show, "console", screen)
    monkeypatch.setattr(show, "errors", terminal())
    handler = show.log_handler()
    with LiveTable(screen) as table:
        table(STEP)
        handler.handle(logging.LogRecord("zoquant", logging.WARNING, "", 0, "a [red]\x1b[31mwarning", (), None))
    assert isinstance(screen.file, io.StringIO)
    lines = [line.rstrip() for line in screen.file.getvalue().splitlines()]
    assert any(line.endswith("warning: a [red]\\x1b[31mwarning") for line in lines)
    assert capsys.readouterr() == ("", "")


def test_a_warning_goes_to_the_errors_where_they_are_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """A line of a log file is not broken at the width of a screen."""
    message = "a warning " * 50
    show.log_handler().handle(logging.LogRecord("zoquant", logging.WARNING, "", 0, message, (), None))
    assert capsys.readouterr() == ("", f"warning: {message}\n")


def test_an_error_ends_the_table() -> None:
    screen = terminal()
    with pytest.raises(ZeroDivisionError), LiveTable(screen):
        raise ZeroDivisionError
    assert isinstance(screen.file, io.StringIO)
    assert screen.file.getvalue().endswith("\x1b[?25h")  # the cursor is back


@pytest.mark.parametrize(
    ("is_terminal", "quiet", "silent", "expected"),
    [
        (True, False, False, "live"),
        (True, True, False, "plain"),
        (False, False, False, "plain"),
        (True, False, True, "none"),
    ],
)
def test_who_sees_what(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    is_terminal: bool,
    quiet: bool,
    silent: bool,
    expected: str,
) -> None:
    screen = terminal() if is_terminal else Console(file=io.StringIO())
    monkeypatch.setattr(shown, "console", screen)
    with reporting(quiet=quiet, silent=silent) as report:
        report(replace(STEP, step=25))
        report(replace(STEP, step=26))
        report(EVALUATION)
        assert isinstance(report, LiveTable) == (expected == "live")
    plain = capsys.readouterr().out
    assert "step 26/40" not in plain
    assert ("step 25/40  loss 0.700  derivative -1.25  0.50 s a step  8 s left" in plain) == (expected == "plain")
    assert ("step 0/40  held-out accuracy 50.0 % (95 %: 40.0 % to 60.0 %), loss 0.690 on 100 examples" in plain) == (
        expected == "plain"
    )


def test_a_step_without_forwards_has_no_ratio() -> None:
    assert math.isnan(Progress(0, 1, None, None, 0.0, 0.0).overhead)


def test_skipped_steps_are_told_as_they_are(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = terminal()
    skipped = Progress(4, 40, None, None, 1.0, 0.0, skipped="the reward said [red]no[/]")
    with LiveTable(screen) as table:
        table(skipped)
    assert isinstance(screen.file, io.StringIO)
    assert "step 4/40 skipped: the reward said [red]no[/]" in screen.file.getvalue()
    monkeypatch.setattr(shown, "console", Console(file=io.StringIO()))
    with reporting() as report:
        report(skipped)
    assert "step 4/40 skipped: the reward said [red]no[/]" in capsys.readouterr().out


def test_a_task_without_accuracy_shows_its_loss() -> None:
    with LiveTable(terminal()) as table:
        table(Progress(0, 40, None, Evaluation("loss", {"loss": Metric(2.5, (2.0, 3.0))}, 8), 1.0, 0.0))
    assert rows_of(table)[1] == "0 2.500"


def test_lines_without_a_terminal_are_neither_many_nor_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of a step every so often, and of the last one; what goes on is told where nothing else is."""
    now, said = [100.0], []  # type: list[float], list[str]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    lines = PlainLines("loading base.gguf", said.append)
    for second, step in enumerate((1, 2, 3, 39, 40)):
        now[0] = 100.0 + 12 * second
        lines(replace(STEP, step=step))
    assert [line.split()[1] for line in said] == ["1/40", "3/40", "40/40"]


def test_what_strangers_wrote_moves_no_cursor() -> None:
    """A notice names labels of the data."""
    hostile = Progress(0, 40, notice="batches: of a\x1b[2Jb", skipped="no\x1b]0;title\x07")
    screen, said = terminal(), list[str]()
    with LiveTable(screen) as table:
        table(hostile)
    assert isinstance(screen.file, io.StringIO)
    assert r"batches: of a\x1b[2Jb" in screen.file.getvalue()
    assert r"no\x1b]0;title\x07" in screen.file.getvalue()
    PlainLines("loading", said.append)(hostile)
    assert said == [r"batches: of a\x1b[2Jb", r"step 0/40 skipped: no\x1b]0;title\x07"]


def test_silence_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shown, "_SILENCE", 0.01)
    said: SimpleQueue[str] = SimpleQueue()
    with PlainLines("loading base.gguf", said.put) as lines:
        assert said.get(timeout=20) == "still loading base.gguf: 0 s so far"
        lines(replace(STEP, step=3))
        lines(Progress(3, 40, doing="evaluating on held-out data"))
        while (line := said.get(timeout=20)).startswith(("still loading", "step 3/40", "still at step 4 of 40, loss")):
            pass
        assert line == "still evaluating on held-out data: 0 s so far"
    assert not lines._watcher.is_alive()


def test_what_takes_long_is_told_in_the_log(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(shown, "_SILENCE", 0.01)
    with caplog.at_level(logging.INFO, "zoquant"), waiting("replaying run"):
        while not caplog.records:
            time.sleep(0.01)
    assert caplog.records[0].getMessage() == "still replaying run: 0 s so far"
    caplog.clear()
    with waiting("replaying run", silent=True):
        time.sleep(0.03)
    assert not caplog.records


@pytest.mark.parametrize(("seconds", "said"), [(59.6, "60 s"), (600, "10 min"), (9000, "2.5 h")])
def test_times_are_told_as_people_say_them(seconds: float, said: str) -> None:
    assert shown._time(seconds) == said
