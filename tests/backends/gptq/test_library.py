"""Checkpoints that GPTQModel itself wrote: native, live, trained, exported, and loaded by the library again."""

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zoquant
from tests.checkpoint.folder.llama import logits
from zoquant.checkpoint.folder import open_folder
from zoquant.testing.case import quietly

os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
pytestmark = pytest.mark.slow
FIXTURES = Path(os.environ.get("ZOQUANT_FIXTURES", Path(__file__).parents[3] / "shared" / "fixtures"))
WRITTEN = ("gptq_sym_g128", "gptq_asym_g128", "gptq_actorder_g128", "gptq_8bit_sym", "awq_gemm_g128")
TOLERANCE = 5e-3
"""Of logits: the library computes in float16, zoquant in float32."""


@pytest.fixture(scope="module", params=WRITTEN)
def folder(request: pytest.FixtureRequest) -> Path:
    pytest.importorskip("gptqmodel", reason="gptqmodel is not installed")
    path: Path = FIXTURES / request.param
    if not path.is_dir():
        pytest.skip(f"{path} is not here")
    return path


def of_library(path: Path) -> nn.Module:
    """Load a checkpoint with GPTQModel, on the kernels that decode their words at each forward."""
    from gptqmodel import BACKEND, GPTQModel

    kernel = BACKEND.AWQ_TORCH if path.name.startswith("awq") else BACKEND.GPTQ_TORCH
    model: nn.Module = GPTQModel.load(str(path), backend=kernel, device="cpu", dtype=torch.float16).model
    return model.eval()


def trained(model: nn.Module) -> zoquant.Views:
    """Attach and train 20 steps towards another distribution of the next token."""
    views = zoquant.attach(model)
    optimizer = zoquant.ZOSGD(views, lr=2e-2, eps=1e-2, seed=3)
    with quietly():
        for _ in range(20):
            optimizer.step(lambda: float(logits(model).log_softmax(-1)[..., 7].mean().neg()))
    assert any(bool(views.delta(key).any()) for key in views.keys)
    return views


def close(got: Tensor, expected: Tensor) -> bool:
    return float((got - expected).norm() / expected.norm()) < TOLERANCE


def words(path: Path) -> str:
    """Return the hash of everything in a checkpoint but its scales."""
    folder, digest = open_folder(path), hashlib.sha256()
    for name in sorted(folder.tensors):
        if not name.endswith(".scales"):
            digest.update(folder.read(name).contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def bytes_of(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def test_native_and_library_agree(folder: Path) -> None:
    native, _ = zoquant.load(folder, runtime="native", compute_dtype=torch.float32)
    assert close(logits(of_library(folder)), logits(native))


def test_trained_natively_exported_and_loaded_by_the_library(folder: Path, tmp_path: Path) -> None:
    model, _ = zoquant.load(folder, runtime="native", compute_dtype=torch.float32)
    before = logits(model)
    views = trained(model)
    assert not close(logits(model), before)
    delta, out = tmp_path / "delta.safetensors", tmp_path / folder.name
    zoquant.save_delta(delta, views)
    zoquant.export(folder, delta=delta, out=out)
    assert words(out) == words(folder)
    assert close(logits(of_library(out)), logits(model))
    live = of_library(folder)
    zoquant.load_delta(delta, zoquant.attach(live))
    assert close(logits(live), logits(model))


def test_trained_live_and_applied_natively(folder: Path, tmp_path: Path) -> None:
    live = of_library(folder)
    views = trained(live)
    zoquant.save_delta(tmp_path / "delta.safetensors", views)
    native, _ = zoquant.load(folder, runtime="native", compute_dtype=torch.float32)
    strangers = zoquant.attach(native)
    zoquant.load_delta(tmp_path / "delta.safetensors", strangers)
    assert {view.name: view.read().tolist() for view in views} == {
        view.name: view.read().tolist() for view in strangers
    }
    assert close(logits(live), logits(native))


def test_zero_delta_exports_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    model, _ = zoquant.load(folder, runtime="native")
    zoquant.save_delta(tmp_path / "delta.safetensors", zoquant.attach(model))
    zoquant.export(folder, delta=tmp_path / "delta.safetensors", out=tmp_path / "out")
    assert bytes_of(tmp_path / "out") == bytes_of(folder)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_transformers_on_its_own_choice_of_kernel(folder: Path, dtype: torch.dtype) -> None:
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    views = zoquant.attach(model)
    assert len(views) == 14
    before = logits(model)
    base = {view.name: view.read() for view in views}
    views.write(seed=1, eps=0.1)
    assert not torch.equal(logits(model), before)
    views.write()
    assert torch.equal(logits(model), before)
    assert all(torch.equal(view.read(), base[view.name]) for view in views)
