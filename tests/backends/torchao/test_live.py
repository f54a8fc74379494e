"""torchao's own tensor subclasses: every class, block and input."""

from typing import Any

import pytest
import torch
from torch import nn

from tests.backends.torchao.samples import BACKEND_SAMPLES, float8, int8, intx, quantized
from zoquant import attach
from zoquant.backends.torchao.live import TorchAOBackend
from zoquant.errors import UnsupportedLayoutError
from zoquant.registry import class_name
from zoquant.testing import BACKEND_CHECKS, BackendCase, check_backend

pytest.importorskip("torchao", reason="torchao is not installed")

from torchao.quantization import (
    Int8DynamicActivationInt8WeightConfig,
    Int8DynamicActivationIntxWeightConfig,
    IntxWeightOnlyConfig,
    MappingType,
    PerGroup,
    PerTensor,
    quantize_,
)

INT4: torch.dtype = getattr(torch, "int4")  # noqa: B009 - torch does not declare it

CASES: dict[str, Any] = {
    "int8 tensor": lambda: int8(granularity=PerTensor()),
    "int8 groups": lambda: int8(granularity=PerGroup(16)),
    "int2": lambda: intx(2),
    "int3 with zero points": lambda: intx(3, mapping_type=MappingType.ASYMMETRIC),
    "int4 in bfloat16": lambda: intx(dtype=torch.bfloat16),
    "int8 activations": lambda: quantized(Int8DynamicActivationInt8WeightConfig(version=2)),
    "int8 activations, int4 weights": lambda: quantized(Int8DynamicActivationIntxWeightConfig(INT4, PerGroup(32))),
}


@pytest.mark.parametrize("name", CASES)
def test_cases_conform(name: str) -> None:
    check_backend(CASES[name], steps=20)


@pytest.mark.parametrize("make", [int8, float8, intx, *CASES.values()])
def test_against_torchao(make: Any) -> None:
    """The layout of the file is what torchao's own dequantize says, before and after a write."""
    layer = make()
    for _ in range(2):
        expected = layer.weight.dequantize().float()
        torch.testing.assert_close(TorchAOBackend().dequantize(layer), expected, rtol=8e-3, atol=1e-6)
        views = attach(layer)
        assert all(view.backend == "torchao" for view in views)
        views.add(1, 0.25, "rademacher")
        views.write()


def test_an_embedding() -> None:
    def make() -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = nn.Sequential(nn.Embedding(48, 64))
        config = IntxWeightOnlyConfig(INT4, PerGroup(32), version=2)
        quantize_(model, config, lambda module, name: isinstance(module, nn.Embedding))
        return model[0]

    assert type(make().weight).__name__ == "IntxUnpackedToInt8Tensor"
    check_backend(make, steps=20)


def test_a_scale_of_the_activations_is_refused() -> None:
    layer: Any = int8()
    layer.weight.act_pre_scale = torch.ones(64)
    with pytest.raises(UnsupportedLayoutError) as caught:
        attach(nn.ModuleDict({"a": layer}))
    assert str(caught.value).startswith("a (torchao): the Int8Tensor of Linear multiplies the activations with a scale")


@pytest.mark.parametrize("check", BACKEND_CHECKS.values(), ids=BACKEND_CHECKS)
@pytest.mark.parametrize("name", BACKEND_SAMPLES)
def test_conforms(name: str, check: Any) -> None:
    layer: Any = BACKEND_SAMPLES[name]()
    assert class_name(type(layer.weight)) == name
    check.run(BackendCase(BACKEND_SAMPLES[name], steps=50))
