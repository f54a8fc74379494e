"""Who computes on a device is said, and what cannot is never a reason to fail."""

import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch

from zoquant.kernels import gpu

CUDA = torch.device("cuda")


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing remembered, before and after, and nothing switched off."""
    monkeypatch.delenv("ZOQUANT_KERNELS", raising=False)
    gpu._found.cache_clear()
    yield
    gpu._found.cache_clear()


def test_other_devices_have_none() -> None:
    assert gpu.noise_kernels(torch.device("cpu")) is None
    assert gpu.write_kernels(torch.device("cpu")) is None
    assert gpu.matmul_kernels(torch.device("cpu")) is None
    assert gpu.status(torch.device("cpu")) == "torch: no Triton kernels for cpu"


def test_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    for part in ("noise.triton", "products.triton_decode", "products.triton_matmul"):
        monkeypatch.delitem(sys.modules, f"zoquant.kernels.{part}", raising=False)
    assert gpu.noise_kernels(CUDA) is None
    assert gpu.status(CUDA).startswith("torch: triton cannot be imported")


def test_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOQUANT_KERNELS", "0")
    assert gpu.status(CUDA) == "torch: switched off by ZOQUANT_KERNELS=0"


def test_kernels_that_fail_leave_it_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(part: str, device: torch.device) -> None:
        raise RuntimeError("no compiler\nhere")

    monkeypatch.setattr(gpu, "_kernels", broken)
    assert gpu.noise_kernels(CUDA) is None
    assert gpu.status(CUDA) == "torch: the Triton kernels failed: no compiler here"


def test_products_may_fail_where_noise_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(kernels: ModuleType, device: torch.device) -> None:
        raise gpu._NotUsableError("other products")

    monkeypatch.setitem(sys.modules, "triton", ModuleType("triton"))
    monkeypatch.setattr(sys.modules["triton"], "__version__", "3.x", raising=False)
    monkeypatch.setattr(gpu, "_kernels", lambda part, device: ModuleType(part))
    monkeypatch.setattr(gpu, "_TRIALS", {"noise": lambda kernels, device: None, "matmul": refused})
    assert gpu.status(CUDA) == "noise: triton 3.x, products: torch: other products"
    assert gpu.noise_kernels(CUDA) is not None
    assert gpu.matmul_kernels(CUDA) is None
