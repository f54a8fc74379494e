"""Who computes on a device is said, and what cannot is never a reason to fail."""

import sys
from collections.abc import Iterator

import pytest
import torch

from zoquant.kernels import gpu

CUDA = torch.device("cuda")


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Nothing remembered, before and after."""
    gpu._found.cache_clear()
    yield
    gpu._found.cache_clear()


def test_other_devices_have_none() -> None:
    assert gpu.noise_kernels(torch.device("cpu")) is None
    assert gpu.write_kernels(torch.device("cpu")) is None
    assert gpu.status(torch.device("cpu")) == "torch: no Triton kernels for cpu"


def test_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "zoquant.kernels.triton_noise", raising=False)
    assert gpu.noise_kernels(CUDA) is None
    assert gpu.status(CUDA).startswith("torch: triton cannot be imported")


def test_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOQUANT_KERNELS", "0")
    assert gpu.status(CUDA) == "torch: switched off by ZOQUANT_KERNELS=0"


def test_kernels_that_fail_leave_it_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(device: torch.device) -> None:
        raise RuntimeError("no compiler\nhere")

    monkeypatch.setattr(gpu, "_kernels", broken)
    assert gpu.noise_kernels(CUDA) is None
    assert gpu.status(CUDA) == "torch: the Triton kernels failed: no compiler here"
