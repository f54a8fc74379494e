"""The examples run from end to end on a tiny checkpoint."""

import importlib.util
import runpy
import sys
from pathlib import Path

import pytest
import torch

import zoquant
from tests.tiny import write_checkpoint, write_rows

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize("name", ["trainer", "plain_loop", "lightning_train"])
def test_the_example_trains(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if name == "lightning_train" and importlib.util.find_spec("lightning") is None:
        pytest.skip("lightning is not here")
    path, rows = str(write_checkpoint(tmp_path / "model.gguf")), str(write_rows(tmp_path / "rows.jsonl"))
    given = ["--train", rows, "--test", rows, "--steps", "4", "--batch", "4", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", [name, path, *given])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert "accuracy" in capsys.readouterr().out
    model, _ = zoquant.load(path, compute_dtype=torch.float32)
    views = zoquant.attach(model)
    zoquant.load_delta(tmp_path / "out" / "delta.safetensors", views)
    assert any(bool(views.delta(key).any()) for key in views.keys)
