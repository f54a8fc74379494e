"""AutoGPTQ 0.7.1 and its old transformers: run in an environment of its own, where zoquant's core is all that works."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import zoquant
from tests.backends.gptq.layers import auto_gptq_layer
from tests.backends.gptq.reference import dequantize, random_gptq
from zoquant.registry import backend_of
from zoquant.testing import run_backend_checks

pytest.importorskip("auto_gptq", reason="auto-gptq is not installed")

FIXTURE = Path(os.environ.get("ZOQUANT_FIXTURES", Path(__file__).parents[3] / "shared" / "fixtures"))
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "cuda": ("qlinear_cuda", {}),
    "cuda-act-order": ("qlinear_cuda", {"act_order": True}),
    "cuda-3-bit": ("qlinear_cuda", {"bits": 3}),
    "cuda-8-bit": ("qlinear_cuda", {"bits": 8}),
    "cuda-old": ("qlinear_cuda_old", {}),
    "cuda-old-2-bit": ("qlinear_cuda_old", {"bits": 2}),
    "cuda-old-fp16": ("qlinear_cuda_old", {"dtype": torch.float16}),
}


@pytest.mark.parametrize("case", CASES)
def test_every_layer_keeps_every_law(case: str) -> None:
    module, changes = CASES[case]
    results = run_backend_checks(lambda: auto_gptq_layer(module, **changes), steps=20)
    assert [(result.check, result.text) for result in results if result.outcome != "passed"] == []


@pytest.mark.parametrize("case", CASES)
def test_weight_is_the_reference(case: str) -> None:
    module, changes = CASES[case]
    layer = auto_gptq_layer(module, **changes)
    tensors = random_gptq("", 32, 64, **{"dtype": torch.float32, **changes})
    expected = dequantize(tensors, "", bits=changes.get("bits", 4), columns=64, group_size=32, minus_one=True)
    backend = backend_of(layer)
    assert backend is not None
    torch.testing.assert_close(backend.dequantize(layer).double(), torch.from_numpy(expected), rtol=1e-6, atol=0)


@pytest.mark.slow
def test_a_model_that_it_loaded_is_trained(tmp_path: Path) -> None:
    path = FIXTURE / "autogptq_rtn_sym_g128"
    if not path.is_dir():
        pytest.skip(f"{path} is not here")
    from auto_gptq import AutoGPTQForCausalLM

    plain: dict[str, Any] = {
        "device": "cpu", "torch_dtype": torch.float32, "use_safetensors": True, "inject_fused_attention": False,
        "inject_fused_mlp": False,
    }  # fmt: skip
    loaded: Any = AutoGPTQForCausalLM.from_quantized(str(path), **plain)
    model: nn.Module = loaded.model.eval()
    views = zoquant.attach(model)
    assert len(views) == 14
    ids = torch.arange(16).reshape(2, 8)

    def loss() -> float:
        with torch.no_grad():
            output: Any = model(input_ids=ids, labels=ids)
        return float(output.loss)

    before = loss()
    optimizer = zoquant.ZOSGD(views, lr=2e-2, eps=1e-2, seed=3)
    for _ in range(20):
        optimizer.step(loss)
    assert loss() < before
    out = tmp_path / "out"
    zoquant.save_delta(tmp_path / "delta.safetensors", views)
    zoquant.export(path, delta=tmp_path / "delta.safetensors", out=out)
    again: Any = AutoGPTQForCausalLM.from_quantized(str(out), **plain)
    with torch.no_grad():
        torch.testing.assert_close(again.model(input_ids=ids).logits, model(input_ids=ids).logits)
