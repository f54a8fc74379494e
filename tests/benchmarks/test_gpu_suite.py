"""The suite for a GPU runs whole on a CPU: tiny shapes, no installation, no library but torch and transformers."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.gpu_suite import lines
from benchmarks.gpu_suite.checks import check_kernels
from benchmarks.gpu_suite.mmdit import MMDiT
from benchmarks.gpu_suite.models import adamw_bytes, build, weights_of
from benchmarks.gpu_suite.shapes import CASES, SHAPES
from benchmarks.gpu_suite.targets import targets
from zoquant.kernels.noise.definition import BLOCK
from zoquant.kernels.noise.source import NoiseSource
from zoquant.native import PackedWeight

ROOT = Path(__file__).parent.parent.parent
BARE = """
import importlib.metadata, runpy, sys
importlib.metadata.entry_points = lambda **chosen: ()
def absent(name, known=importlib.metadata.version):
    if name == "zoquant":
        raise importlib.metadata.PackageNotFoundError(name)
    return known(name)
importlib.metadata.version = absent
for name in ("psutil", "gguf", "typer", "rich", "matplotlib", "hypothesis", "pytest", "diffusers"):
    sys.modules[name] = None
sys.argv = ["gpu_suite", "--tiny", "--device", "cpu", "--rounds", "2", "--out", sys.argv[1]]
runpy.run_module("benchmarks.gpu_suite", run_name="__main__")
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
    assert set(found["multipliers"].values()) == {"torch"}
    assert len(found["products"]) == 6
    assert "checks, all agree" in done.stdout
    assert not any("skipped" in case for case in found["cases"].values())
    for case in CASES[:3]:
        measured = found["cases"][f"{case.model}, {case.format}"]
        assert {"batch 1", "batch 16"} <= set(measured)
        assert measured["train_peak_gb"] is None
        assert measured["batch 16"]["overhead"]["median"] > 0


def test_a_kernel_that_differs_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong:
        """Noise that is off by the sign of one element."""

        def draw(self, noise: object, seed: int, start: int, out: torch.Tensor, **probe: object) -> torch.Tensor:
            out.fill_(1)
            return out

        def accumulate(self, *args: object) -> None:
            return None

    monkeypatch.setattr("zoquant.kernels.noise.source.noise_kernels", lambda device: Wrong())
    assert not any(check_kernels(torch.device("cpu"))[f"{kind} noise"] for kind in ("rademacher", "gaussian"))
    assert NoiseSource(["a"], [BLOCK], "rademacher", torch.device("cpu")).kernels is not None


def test_packed_words_have_the_size_of_their_bits() -> None:
    for case in CASES:
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


def test_the_diffusion_transformer_has_the_published_number_of_weights() -> None:
    settings = {name: value for name, value in SHAPES["SD3.5-Large"].items() if name != "kind"}
    with torch.device("meta"):
        model = MMDiT(**settings)
    linear = sum(each.weight.numel() for each in model.modules() if isinstance(each, torch.nn.Linear))
    assert round(linear / 1e9, 1) == 8.1


def test_every_target_has_an_entry() -> None:
    half, slow = {"median": 0.5}, {"median": 1.2}
    case = {"weights": 7e9, "limit_gb": 5.0, "train_peak_gb": 6.0, "compared_with_adamw": True,
            "adamw_over_zoquant": 20.0, "adamw_bf16_gb": 84.0, "batch 1": {"overhead": half},
            "batch 16": {"overhead": slow}}  # fmt: skip
    product = {"product_seconds": half, "gb_a_second": 1, "packed_over_decoded": half, "tiles": {"wide": half}}
    found = {
        "machine": {"processor": "p", "torch": "t", "kernels": "k"}, "tiny": False, "checks": {"a": True, "b": False},
        "noise": {"rademacher": half}, "products": {"NF4, 16 tokens": product, "NF4, 1024 tokens": product},
        "cases": {"Llama": case, "large": {**case, "compared_with_adamw": False, "train_peak_gb": None}},
    }  # fmt: skip
    verdicts = {each.name: each.verdict for each in targets(found)}
    assert verdicts == {
        "noise, perturbation and cast / copy bandwidth": "missed",
        "packed / decoded product, NF4, 16 tokens": "met",
        "peak memory, GB, Llama": "missed",
        "AdamW bf16 / zoquant, Llama": "met",
        "step / two forwards, batch 1, Llama": "met",
        "step / two forwards, batch 16, Llama": "missed",
        "peak memory, GB, large": "not measured",
    }
    told = list(lines(found))
    assert "against the CPU: 2 checks, b DIFFER" in told
    assert any("wide would take 0.50 of the time" in line for line in told)
    assert "AdamW bf16 / zoquant, Llama: at least 18: 20.000, met" in told
