"""Which compiled code draws the noise of a device, writes its views, and computes its rows and columns."""

from collections.abc import Sequence
from types import ModuleType
from typing import Protocol, cast

import torch
from torch import Tensor

from zoquant.kernels import gpu
from zoquant.kernels.build import library
from zoquant.kernels.noise import compiled as noise
from zoquant.kernels.products import factors
from zoquant.kernels.write import compiled as write


class NoiseKernels(Protocol):
    """A module of compiled noise: `kernels.noise.compiled` for the CPU, `kernels.noise.triton` for a GPU."""

    def draw(
        self,
        kind: int,
        table: Tensor,
        counters: Tensor,
        seed: int,
        start: int,
        out: Tensor,
        *,
        delta: Tensor | None = None,
        eps: float = 0.0,
    ) -> Tensor:
        """See `zoquant.kernels.noise.compiled.draw`."""
        ...

    def accumulate(
        self,
        kind: int,
        table: Tensor,
        counters: Tensor,
        seeds: Sequence[int],
        amounts: Sequence[float],
        delta: Tensor,
    ) -> Tensor:
        """See `zoquant.kernels.noise.compiled.accumulate`."""
        ...


def noise_kernels(device: torch.device) -> NoiseKernels | None:
    """Return the compiled noise of a device; None where torch draws it."""
    if device.type == "cpu":
        return noise if library() is not None else None
    return cast(NoiseKernels | None, gpu.noise_kernels(device))


def write_kernels(device: torch.device) -> ModuleType | None:
    """Return the module of compiled writes of a device, `write.compiled` or `write.triton`; None where torch writes."""
    if device.type == "cpu":
        return write if write.ready() else None
    return gpu.write_kernels(device)


def factor_kernels(device: torch.device) -> ModuleType | None:
    """Return the module of compiled rows and columns of a device, `factors`; None where torch computes."""
    return factors if device.type == "cpu" and library() is not None else None
