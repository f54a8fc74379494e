"""The script for a GPU runs whole on a CPU: tiny shapes, no installation, no library but torch and transformers."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.gpu_suite import CASES, SHAPES, adamw_bytes, build, check_kernels, weights_of
from zoquant.native import PackedWeight
from zoquant.noise import BLOCK
from zoquant.source import NoiseSource

ROOT = Path(__file__).parent.parent.parent
BARE = """
import importlib.metadata, runpy, sys
importlib.metadata.entry_points = lambda **chosen: ()
for name in ("psutil", "gguf", "typer", "rich", "matplotlib", "hypothesis", "pytest", "diffusers"):
    sys.modules[name] = None
sys.argv = ["gpu_suite.py", "--tiny", "--device", "cpu", "--rounds", "2", "--out", sys.argv[1]]
runpy.run_path("benchmarks/gpu_suite.py", run_name="__main__")
"""


def test_the_script_runs_on_a_bare_machine(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BARE, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("gpu-*.json")
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found["tiny"]
    assert set(found["checks"].values()) == {True}
    assert len(found["cases"]) == len(CASES)
    assert "SD3.5-Large, NF4 b64: diffusers" in done.stdout
    for case in CASES[:3]:
        measured = found["cases"][f"{case.model}, {case.format}"]
        assert {"batch 1", "batch 16"} <= set(measured)
        assert measured["train_peak_gb"] is None


def test_a_kernel_that_differs_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong:
        """Noise that is off by the sign of one element."""

        def draw(self, kind: int, table: torch.Tensor, counters: torch.Tensor, seed: int, start: int,
                 out: torch.Tensor, **probe: object) -> torch.Tensor:  # fmt: skip
            out.fill_(1)
            return out

        def accumulate(self, *args: object) -> None:
            return None

    monkeypatch.setattr("zoquant.source.noise_kernels", lambda device: Wrong())
    assert not any(check_kernels(torch.device("cpu"))[f"{kind} noise"] for kind in ("rademacher", "gaussian"))
    assert NoiseSource(["a"], [BLOCK], "rademacher", torch.device("cpu")).kernels is not None


def test_packed_words_have_the_size_of_their_bits() -> None:
    for case in CASES[:5]:
        model = build(case, torch.device("cpu"), tiny=True)
        words = sum(b.nbytes for b in model.buffers() if b.dtype in (torch.int16, torch.int32, torch.uint8))
        packed = sum(each.rows * each.columns for each in model.modules() if isinstance(each, PackedWeight))
        assert packed * (2 if "2-bit" in case.format else 4) / 8 <= words <= packed * 4.5 / 8
        assert weights_of(model) > packed


def test_true_shapes_have_the_published_number_of_weights() -> None:
    llama = SHAPES["Llama-2-7B"]
    width, inner, layers = llama["hidden_size"], llama["intermediate_size"], llama["num_hidden_layers"]
    weights = layers * (4 * width * width + 3 * width * inner) + 2 * llama["vocab_size"] * width
    assert round(weights / 1e9, 2) == 6.74
    assert adamw_bytes(weights) == 12 * weights
