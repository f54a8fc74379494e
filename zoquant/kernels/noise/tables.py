"""What compiled noise is drawn from, and what has to hold before it is."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from zoquant.errors import ShapeError
from zoquant.kernels.checks import check_tensor
from zoquant.kernels.noise.definition import BLOCK


class NoiseTables(NamedTuple):
    """What draws any direction of a layout.

    Attributes:
        kind: number of the distribution, as `zoquant.kernels.noise.definition.KINDS` counts.
        quantiles: float32 `[65536]`; not read for Rademacher noise.
        counters: int64 `[3, blocks]`: number of a block within its key, low and high half of the key's hash.
    """

    kind: int
    quantiles: Tensor
    counters: Tensor

    @property
    def blocks(self) -> int:
        """How many blocks of 128 elements the layout has."""
        return self.counters.shape[1]

    def check(self, device: torch.device) -> None:
        """Refuse tables that noise cannot be drawn from on a device.

        Raises:
            ShapeError: see `check_tensor`.
        """
        check_tensor("counters", self.counters, device, dtype=torch.int64)
        check_tensor("table", self.quantiles, device)


def check_draw(noise: NoiseTables, start: int, out: Tensor, delta: Tensor | None, device: torch.device) -> None:
    """Refuse what `zoquant.kernels.choice.NoiseKernels.draw` cannot be given."""
    noise.check(device)
    check_tensor("out", out, device)
    if start % BLOCK or out.numel() % BLOCK or start < 0 or start + out.numel() > noise.blocks * BLOCK:
        raise ShapeError(
            f"expected a stretch of whole blocks of {BLOCK} elements within {noise.blocks * BLOCK}, "
            f"got {out.numel()} elements from {start}."
        )
    if delta is not None:
        check_tensor("delta", delta, device)
        if delta.shape != out.shape:
            raise ShapeError(f"expected delta of shape {tuple(out.shape)}, got {tuple(delta.shape)}.")


def check_accumulate(
    noise: NoiseTables, seeds: Sequence[int], amounts: Sequence[float], delta: Tensor, device: torch.device
) -> None:
    """Refuse what `zoquant.kernels.choice.NoiseKernels.accumulate` cannot be given."""
    noise.check(device)
    check_tensor("delta", delta, device)
    if delta.numel() != noise.blocks * BLOCK or len(seeds) != len(amounts):
        raise ShapeError(
            f"expected {noise.blocks * BLOCK} elements and an amount a seed, got {delta.numel()} elements, "
            f"{len(seeds)} seeds and {len(amounts)} amounts."
        )
