"""Which compiled code draws the noise of a device, writes its views, and computes its rows and columns."""

from collections.abc import Container, Mapping, Sequence
from types import ModuleType
from typing import Protocol, TypeVar, cast

import torch
from torch import Tensor

from zoquant.kernels import build, gpu
from zoquant.kernels.build import library
from zoquant.kernels.checks import CPU
from zoquant.kernels.noise import compiled as noise
from zoquant.kernels.noise.tables import NoiseTables
from zoquant.kernels.products import factors
from zoquant.kernels.write import compiled as write
from zoquant.kernels.write.stretch import Stretch

Table = TypeVar("Table")
"""Where values are written, as the kernels of a device have it; whoever holds one keeps the tensors alive."""


class NoiseKernels(Protocol):
    """A module of compiled noise: `kernels.noise.compiled` for the CPU, `kernels.noise.triton` for a GPU.

    They refuse tensors of another dtype, device or shape with a ShapeError.
    """

    def draw(
        self, noise: NoiseTables, seed: int, start: int, out: Tensor, *, delta: Tensor | None = None, eps: float = 0.0
    ) -> Tensor:
        """Write z, or delta + eps · z with the product and the sum rounded each; return `out`.

        Args:
            noise: what it is drawn from.
            seed: seed of the direction, 0 ≤ seed < 2⁶⁴.
            start: first element, a multiple of 128.
            out: float32 `[n]`, n a multiple of 128, overwritten.
            delta: float32 `[n]`; None writes z alone.
            eps: signed length of the probe.
        """
        ...

    def accumulate(self, noise: NoiseTables, seeds: Sequence[int], amounts: Sequence[float], delta: Tensor) -> Tensor:
        """Add amount · z(seed) to delta for every direction in turn, each product and each sum rounded to float32.

        Args:
            noise: what it is drawn from.
            seeds: seeds of the directions, 0 ≤ seed < 2⁶⁴.
            amounts: what each direction is multiplied with, rounded to float32 first.
            delta: float32 `[128 · blocks]`, changed in place and returned.
        """
        ...


class WriteKernels(Protocol[Table]):
    """A module of compiled writes: `kernels.write.compiled` for the CPU, `kernels.write.triton` for a GPU."""

    @property
    def DTYPES(self) -> Container[torch.dtype]:  # noqa: N802
        """Dtypes of values."""
        ...

    def tables_of(
        self, groups: Mapping[tuple[torch.dtype, bool], Sequence[Stretch]], device: torch.device
    ) -> list[Table]:
        """Return the tables of some stretches by dtype and whether their values stop at zero."""
        ...

    def write(
        self, table: Table, delta: Tensor, *, relative: bool, noise: NoiseTables | None = None, seed: int = 0,
        eps: float = 0.0,
    ) -> None:  # fmt: skip
        """Write theta, or a probe of it, to all values of a table.

        Args:
            table: where, and from which base.
            delta: float32 `[n]`, all of it.
            relative: whether theta is base · (1 + delta), or base + delta.
            noise: what the direction is drawn from; None writes theta itself.
            seed: seed of the direction.
            eps: signed length of the probe.
        """
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
    """Return the compiled rows and columns of a device, `kernels.products.factors`; None where torch computes."""
    return factors if device.type == "cpu" and library() is not None else None


def status(device: torch.device = CPU) -> str:
    """Return who computes on a device, and where it is or why it is not.

    On a CPU `"compiled: <file>"` or `"torch: <reason>"`; on a GPU `"triton <version>"` or `"torch: <reason>"`, of noise
    and of products where they differ.
    """
    return build.status() if device.type == "cpu" else gpu.status(device)
