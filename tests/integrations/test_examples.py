"""The examples run from end to end on a tiny checkpoint."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import zoquant
from tests.tiny import ROWS, write_checkpoint, write_rows

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["trainer", "plain_loop", "lightning_train"])
def test_the_example_trains(name: str, tmp_path: Path) -> None:
    if name == "lightning_train" and importlib.util.find_spec("lightning") is None:
        pytest.skip("lightning is not here")
    path, rows = write_checkpoint(tmp_path / "model.gguf"), write_rows(tmp_path / "rows.jsonl")
    done = subprocess.run(
        [
            sys.executable, str(ROOT / "examples" / f"{name}.py"), str(path), "--train", str(rows), "--test", str(rows),
            "--steps", "4", "--batch", str(len(ROWS) // 3), "--out", str(tmp_path / "out"),
        ],
        capture_output=True, text=True, check=False, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "accuracy" in done.stdout
    model, _ = zoquant.load(path, compute_dtype=torch.float32)
    views = zoquant.attach(model)
    zoquant.load_delta(tmp_path / "out" / "delta.safetensors", views)
    assert any(bool(views.delta(key).any()) for key in views.keys)
