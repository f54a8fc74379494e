"""What a run came to: which share of the values really changed, and what speaks against its export."""

from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_cli import TRAIN, Shell, folder, shell
from zoquant.cli import train
from zoquant.training.outcome import warnings_of

__all__ = ["folder", "shell"]  # fixtures


def summary(before: float, after: float, primary: str = "accuracy", changed: float = 0.5) -> dict[str, Any]:
    found = {
        f"eval_{when}": {"primary": primary, primary: value} for when, value in (("before", before), ("after", after))
    }
    return {**found, "steps": 3, "changed": changed, "trainable": 40}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (summary(0.5, 0.75), []), (summary(0.5, 0.5), []), (summary(2.0, 1.0, "loss"), []),
        (summary(0.917, 0.5), ["Held-out accuracy got worse: 0.917 before, 0.5 after. Keep the base"]),
        (summary(1.0, 2.0, "loss"), ["Held-out loss got worse: 1 before, 2 after."]),
        (summary(0.5, 0.75, changed=0.0), ["No value changed: all 40 round to those of the base"]),
        ({"steps": 0, "changed": 0.0, "eval_before": None, "eval_after": None}, []),
    ],
)  # fmt: skip
def test_what_speaks_against_an_export(given: dict[str, Any], said: list[str]) -> None:
    warnings = warnings_of(given)
    assert len(warnings) == len(said)
    assert all(text.startswith(start) for text, start in zip(warnings, said, strict=True))


def test_the_best_step_speaks_for_itself() -> None:
    better = {"primary": "accuracy", "accuracy": 0.9}
    assert warnings_of({**summary(0.8, 0.5), "better": better}) == []
    (said,) = warnings_of({**summary(0.95, 0.5), "better": better})
    assert said.startswith("Held-out accuracy got worse: 0.95 before, 0.9 after.")


def test_the_last_line_names_what_was_measured_best(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "show_summary", lambda *_: None)
    found: dict[str, Any] = {**summary(0.5, 0.75), "finished": True}
    train._show_end(found, "m.gguf", Path("run"))
    assert capsys.readouterr().out == "Next: zoquant export m.gguf --delta run/delta.safetensors --out tuned.gguf\n"
    better = {"primary": "accuracy", "accuracy": 0.9}
    train._show_end({**found, "better": better, "better_step": 4}, "m.gguf", Path("run"))
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "Step 4 was measured better than the end; its delta is run/best.safetensors."
    assert told[1] == "Next: zoquant export m.gguf --delta run/best.safetensors --out tuned.gguf"


def test_a_run_whose_steps_are_lost_says_so(shell: Shell, folder: object) -> None:
    lost = shell.text(*TRAIN[:-4], "--lr", "1e-7", "--eps", "0.03", "--out", "run")
    assert "No value changed: all" in lost
    assert "Next: zoquant export" not in lost
    moved = shell.text(*TRAIN, "--out", "again")
    assert "No value changed" not in moved
    assert "Next: zoquant export" in moved
