"""What a run came to: which share of the values really changed, and what speaks against its export."""

from typing import Any

import pytest

from tests.cli.test_cli import TRAIN, Shell, folder, shell
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


def test_a_run_whose_steps_are_lost_says_so(shell: Shell, folder: object) -> None:
    lost = shell.text(*TRAIN[:-4], "--lr", "1e-7", "--eps", "0.03", "--out", "run")
    assert "No value changed: all" in lost
    assert "Next: zoquant export" not in lost
    moved = shell.text(*TRAIN, "--out", "again")
    assert "No value changed" not in moved
    assert "Next: zoquant export" in moved
