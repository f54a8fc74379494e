"""bitsandbytes' own layers: every kind of view, the kernel that hides them, and layers that are not quantized."""

from typing import Any

import pytest
import torch
from torch import nn

from tests.backends.bitsandbytes import reference
from tests.backends.bitsandbytes.samples import BACKEND_SAMPLES, embedding, linear4bit, linear8bit
from zoquant import attach
from zoquant.backends.bitsandbytes.live import EightBitBackend, FourBitBackend
from zoquant.errors import UnsupportedLayoutError
from zoquant.testing import BACKEND_CHECKS, BackendCase, check_backend
from zoquant.testing.tensors import same_bits

bnb = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")


def state_of(layer: nn.Module) -> dict[str, torch.Tensor]:
    return {f"a.{name}": value for name, value in layer.state_dict().items()}


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("blocksize", [32, 64, 256, 1024])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
def test_four_bits_against_the_reference(quant_type: str, blocksize: int, nested: bool) -> None:
    """What bitsandbytes would save, dequantized by the published layout, is what the backend predicts."""
    layer = linear4bit(quant_type, blocksize=blocksize, nested=nested, columns=1024, rows=8)
    views = attach(nn.ModuleDict({"a": layer}))
    assert [(view.name, view.role) for view in views] == [("a.nested_absmax" if nested else "a.absmax", "scale")]
    views.add(1, 0.25, "rademacher")
    views.write()
    expected = torch.from_numpy(reference.four_bit(state_of(layer), "a.weight"))
    torch.testing.assert_close(FourBitBackend().dequantize(layer).double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("after_forward", [False, True])
@pytest.mark.parametrize("threshold", [0.0, 6.0])
def test_eight_bits_against_the_reference(threshold: float, after_forward: bool) -> None:
    layer: Any = linear8bit(threshold)
    backend = EightBitBackend()
    x = backend.sample_input(layer)
    if after_forward:
        layer(x)
    views = attach(nn.ModuleDict({"a": layer}))
    assert [(view.name, view.shape, view.dtype) for view in views] == [("a.SCB", (96,), torch.float32)]
    views.add(1, 0.25, "rademacher")
    views.write()
    expected = torch.from_numpy(reference.eight_bit(state_of(layer), "a"))
    torch.testing.assert_close(backend.dequantize(layer).double(), expected, rtol=1e-6, atol=1e-7)
    y = layer(x).double() - layer.bias.double()
    assert (y - x.double() @ expected.t()).norm() < 5e-3 * y.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, None])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
def test_compute_dtypes_conform(quant_type: str, dtype: torch.dtype | None) -> None:
    check_backend(lambda: linear4bit(quant_type, nested=True, compute_dtype=dtype), steps=20)


def test_a_layer_in_training_mode_conforms() -> None:
    check_backend(lambda: linear4bit(fast_cpu=True).train(), steps=20)


def test_outliers_conform() -> None:
    """The columns of outliers that a forward found are an integer tensor too, and no code."""
    reason = "the layer keeps which columns of its last input were outliers"
    check_backend(lambda: linear8bit(6.0), expected_failures={"check_codes_never_change": reason}, steps=20)


def test_the_compute_dtype_is_left_to_the_model() -> None:
    """A layer without a compute dtype takes that of its first input: the check of attach must not decide for it."""
    layer: Any = linear4bit(compute_dtype=None)
    layer.weight.quant_state.dtype = torch.bfloat16
    attach(nn.ModuleDict({"a": layer}))
    assert layer.compute_dtype == torch.bfloat16


def test_the_packing_kernel_is_switched_off() -> None:
    layer: Any = linear4bit(fast_cpu=True)
    layer.support_avx512bf16_for_cpu = True  # whatever this processor has
    words = layer.weight.data.clone()
    views = attach(nn.ModuleDict({"a": layer}))
    with torch.inference_mode():
        layer(torch.ones(1, 128))
    assert torch.equal(layer.weight.data, words)
    assert same_bits(layer.weight.quant_state.absmax, views.base("a.absmax"))


def test_a_layer_that_was_packed_is_refused() -> None:
    layer: Any = linear4bit()
    layer.weight.quant_state.packing_format_for_cpu = True
    with pytest.raises(UnsupportedLayoutError) as caught:
        attach(nn.ModuleDict({"a": layer}))
    assert str(caught.value).startswith("a (bitsandbytes): an earlier forward packed the layer for its AVX512 kernel")
    assert "call attach before its first forward" in str(caught.value)


@pytest.mark.skipif(not linear4bit(fast_cpu=True).support_avx512bf16_for_cpu, reason="no AVX512-BF16 here")
def test_the_packing_kernel_does_what_we_say() -> None:
    layer: Any = linear4bit(fast_cpu=True)
    layer(torch.ones(1, 128))
    assert layer.weight.quant_state.absmax.dtype == torch.bfloat16
    with pytest.raises(UnsupportedLayoutError, match="an earlier forward packed the layer"):
        attach(nn.ModuleDict({"a": layer}))


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: bnb.nn.Linear4bit(64, 64), "Linear4bit is not quantized yet. Move it to its device"),
        (lambda: bnb.nn.Embedding4bit(64, 64), "Embedding4bit is not quantized yet."),
        (lambda: bnb.nn.Linear8bitLt(64, 64), "Linear8bitLt holds no quantized weight. Make it with has_fp16_weights"),
        (lambda: bnb.nn.Embedding8bit(64, 64), "Embedding8bit holds no quantized weight."),
    ],
)
def test_layers_that_are_not_quantized(make: Any, text: str) -> None:
    with pytest.raises(UnsupportedLayoutError) as caught:
        attach(nn.ModuleDict({"a": make()}))
    assert str(caught.value).startswith(f"a (bitsandbytes): {text}")


def test_blocks_that_straddle_rows_are_refused_where_the_kernel_mixes_them_up() -> None:
    """bitsandbytes 0.50.2 on a CPU does not read what its own quantizer wrote; its operator is off by a quarter."""
    layer: Any = linear4bit(columns=96, bias=False)
    original = torch.randn(96, 96, generator=torch.Generator().manual_seed(0)) * 0.1
    backend = FourBitBackend()
    assert (backend.dequantize(layer) - original).norm() < 0.1 * original.norm()
    theirs = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    if (theirs - original).norm() < 0.1 * original.norm():
        assert len(attach(nn.ModuleDict({"a": layer}))) == 1  # a later bitsandbytes, or another kernel
        return
    with pytest.raises(
        UnsupportedLayoutError, match=r"a \(bitsandbytes\): before any write the output of Linear4bit is"
    ):
        attach(nn.ModuleDict({"a": layer}))


@pytest.mark.parametrize("check", BACKEND_CHECKS.values(), ids=BACKEND_CHECKS)
@pytest.mark.parametrize("name", BACKEND_SAMPLES)
def test_conforms(name: str, check: Any) -> None:
    check.run(BackendCase(BACKEND_SAMPLES[name], steps=50))


def test_samples_are_what_they_say() -> None:
    for name, make in BACKEND_SAMPLES.items():
        assert f"{type(make()).__module__}.{type(make()).__qualname__}" == name
    nf4: Any = embedding("EmbeddingNF4")
    assert nf4.weight.quant_state.quant_type == "nf4"
