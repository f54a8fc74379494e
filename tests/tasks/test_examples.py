"""The examples run offline, on a tiny model."""

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import write_checkpoint
from zoquant.tasks.rewards import Generated

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(write_checkpoint(tmp_path / "tiny.gguf"))


def example(name: str) -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLES / name))


def test_f1_of_questions(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example("qa_f1.py")["main"]([model, "--out", str(tmp_path / "out"), "--steps", "2", "--batch-size", "2"])
    assert "F1 before 0." in capsys.readouterr().out
    settings = json.loads((tmp_path / "out" / "run" / "settings.json").read_text())
    assert settings["objective"] == "f1"
    lines = [json.loads(line) for line in (tmp_path / "out" / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(-1 <= line["loss"] <= 0 for line in lines if "loss" in line)


def test_a_reward_of_json(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example("json_reward.py")["main"]([model, "--out", str(tmp_path / "out"), "--steps", "2"])
    out = capsys.readouterr().out
    assert out.count("after 0 steps:") == out.count("after 2 steps:") == 8
    assert json.loads((tmp_path / "out" / "run" / "settings.json").read_text())["reward"] == "valid_json"


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ('{"name": "Ada", "age": 7}', 1),
        ('{"name": "Ada"}', 3 / 8),
        ('{"name": "Ada", "age": 7', 3 / 8),
        ("Ada", 0),
        ("7", 0),
    ],
)
def test_the_reward_of_a_text(text: str, reward: float) -> None:
    score: Callable[[list[Generated]], float] = example("json_reward.py")["valid_json"]
    assert score([Generated("", text, (), {})]) == pytest.approx(reward)
