"""The AWQ layers of GPTQModel and AutoAWQ: every kernel that runs on a CPU, and the words of those that do not."""

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.backends.awq.layers import auto_awq, gptqmodel_awq
from tests.backends.awq.reference import random_awq
from tests.backends.gptq.layers import warm
from zoquant import attach
from zoquant.backends.awq.live import FastBackend, GEMVBackend
from zoquant.errors import UnsupportedLayoutError
from zoquant.registry import backend_of
from zoquant.testing import run_backend_checks
from zoquant.testing.tensors import same_bits

os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")

TORCH, ATEN, FUSED = (
    "torch_awq.AwqTorchLinear", "torch_aten_kernel_awq.TorchAtenAwqLinear", "torch_fused_awq.TorchFusedAwqLinear",
)  # fmt: skip
AVX512 = "torch_cpu_avx512_awq.TorchCpuAvx512AwqLinear"
REPACKED = {"check_codes_never_change": "the kernel arranges its words at its first forward"}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "torch": (TORCH, {}),
    "torch-bf16": (TORCH, {"dtype": torch.bfloat16}),
    "aten": (ATEN, {}),
    "aten-bf16": (ATEN, {"dtype": torch.bfloat16}),
    "fused": (FUSED, {}),
    "fused-bf16": (FUSED, {"dtype": torch.bfloat16}),
    "avx512": (AVX512, {"dtype": torch.bfloat16}),
}


def need_gptqmodel() -> None:
    pytest.importorskip("gptqmodel", reason="gptqmodel is not installed")


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_every_kernel_that_has_run_keeps_every_law(case: str) -> None:
    need_gptqmodel()
    name, changes = CASES[case]
    results = run_backend_checks(lambda: warm(gptqmodel_awq(name, **changes)), steps=20)
    assert [(result.check, result.text) for result in results if result.outcome != "passed"] == []


@pytest.mark.slow
@pytest.mark.parametrize("case", ["aten", "fused", "avx512"])
def test_every_kernel_that_has_not_run_keeps_all_laws_but_one(case: str) -> None:
    need_gptqmodel()
    name, changes = CASES[case]
    results = run_backend_checks(lambda: gptqmodel_awq(name, **changes), steps=20, expected_failures=REPACKED)
    assert {result.outcome for result in results} == {"passed", "expected failure"}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("first", [lambda layer: layer, warm], ids=["fresh", "warm"])
def test_weight_is_the_reference(case: str, first: Callable[[nn.Module], nn.Module]) -> None:
    need_gptqmodel()
    name, changes = CASES[case]
    check_weight(first(gptqmodel_awq(name, **changes)), *random_awq("", 32, 64, **changes))


def check_weight(layer: nn.Module, tensors: dict[str, Tensor], expected: Any) -> None:
    backend = backend_of(layer)
    assert backend is not None
    got = backend.dequantize(layer).double().numpy()
    np.testing.assert_allclose(got, expected, atol=2e-2 * float(np.abs(expected).max()))
    for view in backend.open(layer):
        assert same_bits(view.read(), tensors[f".{view.name}"].float())


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("gemv_awq.AwqGEMVLinear", "gemv"),
        ("gemv_fast_awq.AwqGEMVFastLinear", "gemv_fast"),
        ("gemv_fast_awq.LLMAwqLinear", "gemv_fast"),
    ],
)
def test_weights_of_kernels_that_need_a_gpu(name: str, layout: str) -> None:
    need_gptqmodel()
    kind: Any = {"layout": layout, "group_size": 64}
    layer: Any = gptqmodel_awq(name, columns=128, rows=64, **kind)
    check_weight(layer, *random_awq("", 64, 128, zeros_name=getattr(layer, "zeros_name", "qzeros"), **kind))


@pytest.mark.parametrize(("backend", "layout"), [(GEMVBackend(), "gemv"), (FastBackend(), "gemv_fast")])
def test_a_write_moves_the_weight(backend: GEMVBackend | FastBackend, layout: str) -> None:
    layer: Any = nn.Module()
    tensors, expected = random_awq("", 32, 64, layout=layout)
    for name, tensor in tensors.items():
        layer.register_buffer(name.removeprefix("."), tensor)
    layer.in_features, layer.group_size, layer.w_bit = 64, 32, 4
    np.testing.assert_allclose(backend.dequantize(layer).double().numpy(), expected, rtol=1e-6, atol=1e-6)
    for view in backend.open(layer):
        view.write(view.read() * 2)
    np.testing.assert_allclose(backend.dequantize(layer).double().numpy(), 2 * expected, rtol=1e-6, atol=1e-6)
    assert backend.sample_input(layer).shape[-1] == 64


def test_other_widths_are_refused() -> None:
    need_gptqmodel()
    with pytest.raises(UnsupportedLayoutError, match="8 bits"):
        attach(nn.ModuleDict({"a": gptqmodel_awq(TORCH, bits=8)}))


@pytest.mark.slow
def test_layer_of_autoawq_keeps_every_law() -> None:
    pytest.importorskip("awq", reason="autoawq is not installed")
    results = run_backend_checks(lambda: auto_awq("gemm.WQLinear_GEMM", "gemm"), steps=20)
    assert [(result.check, result.text) for result in results if result.outcome != "passed"] == []


@pytest.mark.parametrize(
    ("name", "layout"),
    [("gemm.WQLinear_GEMM", "gemm"), ("gemv.WQLinear_GEMV", "gemv"), ("gemv_fast.WQLinear_GEMVFast", "gemv_fast")],
)
def test_weights_of_autoawq(name: str, layout: str) -> None:
    pytest.importorskip("awq", reason="autoawq is not installed")
    check_weight(auto_awq(name, layout), *random_awq("", 32, 64, layout=layout))
