"""Triton decodes the bits of the torch code and multiplies with them.

In Triton's interpreter (`make test-triton`), which shows what the kernels compute and nothing of their speed, and on a
GPU where there is one.
"""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from tests.kernels.interpreter import with_bfloat16
from tests.kernels.packed import COLUMNS, MATRICES, ROWS, ggml, gptq
from zoquant.backends.bitsandbytes.weights import NestedAbsmax
from zoquant.errors import ShapeError
from zoquant.kernels import gpu
from zoquant.native import PackedWeight, QuantLinear, compiled
from zoquant.native.packed import Rows

pytest.importorskip("triton", reason="triton is not installed: make test-triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
layouts = pytest.mark.parametrize("name", MATRICES)


@pytest.fixture(params=["interpreter", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """A device whose products are those of the Triton kernels."""
    torch.manual_seed(0)
    if request.param == "cuda":
        assert gpu.matmul_kernels(torch.device("cuda")) is not None, gpu.status(torch.device("cuda"))
        yield torch.device("cuda")
        return
    if not INTERPRETED:
        pytest.skip("not in Triton's interpreter: make test-triton")
    from zoquant.kernels.products import triton_matmul

    monkeypatch.setattr(compiled, "matmul_kernels", lambda device: triton_matmul)
    with_bfloat16(monkeypatch)
    yield torch.device("cpu")


def in_torch(weight: PackedWeight, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """Return what torch decodes, float32 on the CPU."""
    with monkeypatch.context() as patch:
        patch.setattr(compiled, "matmul_kernels", lambda device: None)
        return weight.dequantize().cpu()


def distance(y: Tensor, x: Tensor, weight: Tensor, dtype: torch.dtype) -> float:
    """Return how far a product is from that of the rounded factors in float64."""
    exact = x.to(dtype).double() @ weight.to(dtype).double().t()
    return float((y.cpu().double() - exact).norm() / exact.norm())


@layouts
def test_decoded_bits_are_those_of_torch(device: torch.device, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = MATRICES[name]().to(device)
    assert weight.operands() is not None
    expected = in_torch(weight, monkeypatch)
    found = compiled.decoded_on_gpu(weight, slice(0, ROWS), torch.float32)
    assert found is not None
    assert torch.equal(found.cpu(), expected)
    part = compiled.decoded_on_gpu(weight, slice(5, 38), torch.float16)
    assert part is not None
    assert torch.equal(part.cpu(), expected[5:38].half())


@layouts
def test_products(device: torch.device, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = MATRICES[name]().to(device)
    matrix, x = in_torch(weight, monkeypatch), torch.randn(7, COLUMNS)
    y = compiled.multiplied(x.to(device), weight, torch.float16)
    assert y is not None
    assert distance(y, x, matrix, torch.float16) < 1e-5


@dtypes
def test_products_in_every_dtype(device: torch.device, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, x = gptq().to(device), torch.randn(7, COLUMNS)
    y = compiled.multiplied(x.to(device), weight, dtype)
    assert y is not None
    assert y.dtype == torch.float32
    assert distance(y, x, in_torch(weight, monkeypatch), dtype) < 1e-5


@pytest.mark.parametrize("tokens", [1, 16, 33, 70, 256])
def test_any_number_of_tokens(device: torch.device, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = gptq().to(device)
    x = torch.randn(COLUMNS, tokens).t()  # not contiguous
    y = weight.product(x.to(device), torch.float32)
    assert y.shape == (tokens, ROWS)
    assert distance(y, x, in_torch(weight, monkeypatch), torch.float32) < 1e-5


@dtypes
def test_what_comes_out_has_the_dtype_of_what_went_in(device: torch.device, dtype: torch.dtype) -> None:
    linear = QuantLinear(gptq(), torch.randn(ROWS), compute_dtype=torch.float16).to(device)
    y = linear(torch.randn(2, 3, COLUMNS, device=device, dtype=dtype))
    assert y.dtype == dtype
    assert y.shape == (2, 3, ROWS)


def test_a_write_reaches_the_next_product(device: torch.device) -> None:
    weight, x = gptq().to(device), torch.randn(4, COLUMNS, device=device)
    before = weight.product(x, torch.float32)
    weight.value("scales").mul_(2)
    torch.testing.assert_close(weight.product(x, torch.float32), before * 2)


def test_the_same_input_gives_the_same_bits(device: torch.device) -> None:
    weight, x = gptq().to(device), torch.randn(20, COLUMNS, device=device)
    first = weight.product(x, torch.bfloat16)
    assert torch.equal(weight.product(x, torch.bfloat16), first)


def test_derivatives_are_left_to_torch(device: torch.device) -> None:
    weight = gptq().to(device)
    x = torch.randn(4, COLUMNS, device=device, requires_grad=True)
    weight.product(x, torch.float32).sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    torch.testing.assert_close(x.grad[0], weight.dequantize().sum(0), rtol=1e-4, atol=1e-4)


def test_the_trial_passes_and_finds_what_is_wrong(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    from zoquant.kernels.products import triton_matmul

    gpu._try_matmul(triton_matmul, device)
    right = triton_matmul.multiply
    monkeypatch.setattr(triton_matmul, "multiply", lambda *args, **others: right(*args, **others) * 1.01)
    with pytest.raises(gpu._NotUsableError, match=r"other products in torch\.float32 than the definition"):
        gpu._try_matmul(triton_matmul, device)


def test_what_does_not_fit_is_refused(device: torch.device) -> None:
    from zoquant.kernels.products.triton_matmul import multiply

    operands = gptq().to(device).operands()
    assert operands is not None
    with pytest.raises(ShapeError, match=r"expected x \[tokens, 192\] in float32"):
        multiply(torch.randn(2, 64, device=device), operands, torch.float16)


def test_layouts_without_a_kernel_stay_with_torch(device: torch.device) -> None:
    weight = ggml("Q5_0").to(device)
    assert weight.operands() is None
    x = torch.randn(4, COLUMNS, device=device)
    torch.testing.assert_close(weight.product(x, torch.float32), x @ weight.dequantize().t())


def test_products_compile_for_a_consumer_card_without_fused_arithmetic() -> None:
    names = ["gptq g64", "nf4", "aqlm 2x8"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.compiled", *names],
        env={**os.environ, "TRITON_INTERPRET": "0"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    assert len(found) == len(names)
    assert all(shared <= 99 << 10 and fused == 0 for shared, fused in found), found


def test_a_tile_decodes_its_own_numbers_alone(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = MATRICES["nf4, nested"]().to(device)
    asked: list[int] = []
    at = NestedAbsmax.at

    def counted(values: NestedAbsmax, rows: Rows) -> Tensor:
        asked.append(len(found := at(values, rows)))
        return found

    monkeypatch.setattr(NestedAbsmax, "at", counted)
    compiled.decoded_on_gpu(weight, slice(7, 9), torch.float32)
    assert asked == [2]
