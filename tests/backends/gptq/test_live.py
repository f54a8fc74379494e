"""The layers of GPTQModel, on the CPU: every kernel before and after its first forward, and what cannot be trained."""

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.backends.gptq.layers import gptqmodel_embedding, gptqmodel_layer, warm
from tests.backends.gptq.reference import dequantize, random_gptq
from zoquant import attach
from zoquant.errors import UnsupportedLayoutError
from zoquant.registry import backend_of
from zoquant.testing import run_backend_checks
from zoquant.testing.tensors import same_bits

os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
pytest.importorskip("gptqmodel", reason="gptqmodel is not installed")

TORCH, ATEN, FUSED = "torch.TorchLinear", "torch_aten_kernel.TorchAtenLinear", "torch_fused.TorchFusedLinear"
AVX512 = "torch_cpu_avx512.TorchCpuAvx512Linear"
REPACKED = {"check_codes_never_change": "the kernel arranges its words at its first forward"}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{f"torch-{bits}-bit": (TORCH, {"bits": bits}) for bits in (2, 3, 4, 8)},
    "torch-act-order": (TORCH, {"act_order": True, "sym": True, "dtype": torch.bfloat16}),
    "torch-one-group": (TORCH, {"group_size": -1}),
    "aten": (ATEN, {}),
    "aten-act-order-bf16": (ATEN, {"act_order": True, "dtype": torch.bfloat16}),
    "fused": (FUSED, {"sym": True}),
    "fused-act-order-bf16": (FUSED, {"sym": True, "act_order": True, "dtype": torch.bfloat16}),
    "avx512": (AVX512, {"dtype": torch.bfloat16}),
    "avx512-act-order": (AVX512, {"act_order": True, "sym": True, "dtype": torch.bfloat16}),
    "avx512-on-fp16": (AVX512, {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_every_kernel_that_has_run_keeps_every_law(case: str) -> None:
    name, changes = CASES[case]
    results = run_backend_checks(lambda: warm(gptqmodel_layer(name, **changes)), steps=20)
    assert [(result.check, result.text) for result in results if result.outcome != "passed"] == []


@pytest.mark.slow
@pytest.mark.parametrize("case", ["torch-4-bit", "aten", "aten-act-order-bf16", "fused", "avx512-act-order"])
def test_every_kernel_that_has_not_run_keeps_all_laws_but_one(case: str) -> None:
    name, changes = CASES[case]
    results = run_backend_checks(lambda: gptqmodel_layer(name, **changes), steps=20, expected_failures=REPACKED)
    assert {result.outcome for result in results} == {"passed", "expected failure"}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("first", [lambda layer: layer, warm], ids=["fresh", "warm"])
def test_weight_is_the_reference(case: str, first: Callable[[nn.Module], nn.Module]) -> None:
    name, changes = CASES[case]
    layer = first(gptqmodel_layer(name, **changes))
    kind = {"bits": 4, "group_size": 32, **changes}
    tensors = random_gptq("", 32, 64, minus_one=False, **kind)
    size = {"bits": kind["bits"], "group_size": kind["group_size"]}
    expected = dequantize(tensors, "", columns=64, minus_one=False, **size)
    backend = backend_of(layer)
    assert backend is not None
    got = backend.dequantize(layer).double().numpy()
    np.testing.assert_allclose(got, expected, atol=2e-2 * float(np.abs(expected).max()))
    (view,) = backend.open(layer)
    assert (view.name, view.role, view.shape) == ("scales", "scale", tuple(tensors[".scales"].shape))
    assert same_bits(view.read(), tensors[".scales"].float())


def test_embedding() -> None:
    model = nn.ModuleDict({"a": gptqmodel_embedding()})
    views = attach(model)
    assert views.keys == ("a.scales",)
    before = model["a"](torch.arange(5))
    views[0].write(views[0].read() * 2)
    torch.testing.assert_close(model["a"](torch.arange(5)), before * 2)


def test_compiled_function_is_taken_off() -> None:
    layer = gptqmodel_layer(TORCH)
    assert "dequantize_weight" in layer.__dict__
    attach(nn.ModuleDict({"a": layer}))
    assert "dequantize_weight" not in layer.__dict__


@pytest.mark.parametrize("ran", [False, True])
def test_fused_kernel_is_refused_for_asymmetric_codes(ran: bool) -> None:
    layer: Any = gptqmodel_layer(FUSED, sym=False)
    if ran:
        layer(torch.zeros(1, 64, dtype=torch.float16))
    with pytest.raises(UnsupportedLayoutError, match="GPTQ_TORCH"):
        attach(nn.ModuleDict({"a": layer}))


def test_a_scale_of_zero_after_the_first_forward_is_refused() -> None:
    layer: Any = gptqmodel_layer(ATEN)
    layer.scales[0, 0] = 0
    attach(nn.ModuleDict({"a": layer}), verify=False)
    layer(torch.zeros(1, 64, dtype=torch.float16))
    with pytest.raises(UnsupportedLayoutError, match="first forward"):
        attach(nn.ModuleDict({"a": layer}), verify=False)


@pytest.mark.parametrize("name", [TORCH, ATEN, AVX512])
def test_first_forward_under_inference_mode(name: str) -> None:
    layer = gptqmodel_layer(name, dtype=torch.bfloat16)
    views = attach(nn.ModuleDict({"a": layer}), verify=False)
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.inference_mode():
        before = layer(x).clone()
    base = views[0].read()
    views[0].write(base * 2)
    with torch.inference_mode():
        bias: Any = layer.bias
        torch.testing.assert_close(layer(x) - bias, (before - bias) * 2, rtol=2e-2, atol=5e-2)
    views[0].write(base)
    with torch.inference_mode():
        assert torch.equal(layer(x), before)
