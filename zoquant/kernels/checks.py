"""What has to hold before compiled code is given the address of a tensor."""

from collections.abc import Sequence

import torch
from torch import Tensor

from zoquant.errors import ShapeError
from zoquant.kernels.noise.definition import BLOCK

CPU = torch.device("cpu")


def check_tensor(
    name: str, tensor: Tensor, device: torch.device = CPU, *, dtype: torch.dtype = torch.float32,
    shape: tuple[int, ...] | None = None,
) -> None:  # fmt: skip
    """Refuse a tensor of another dtype, device or shape, or one that is not contiguous.

    Raises:
        ShapeError: it is one of these; the message begins with `name`.
    """
    fits = tensor.dtype == dtype and tensor.device == device and tensor.is_contiguous()
    if not fits or (shape is not None and tensor.shape != shape):
        raise ShapeError(
            f"{name}: expected a contiguous {dtype} tensor{'' if shape is None else f' {shape}'} on "
            f"{'the CPU' if device.type == 'cpu' else device}, got {tensor.dtype} {tuple(tensor.shape)} on "
            f"{tensor.device}, strides {tensor.stride()}."
        )


Drawn = tuple[int, Tensor, Tensor]
"""What noise is drawn from: the number of its kind in `zoquant.kernels.noise.definition.KINDS`; float32 `[65536]`
quantiles, not read for Rademacher noise; int64 `[3, blocks]` counters: number of a block within its key, low and high
half of the key's hash."""


def check_noise(noise: Drawn, device: torch.device) -> None:
    """Refuse quantiles and counters that noise cannot be drawn from.

    Raises:
        ShapeError: see `check_tensor`.
    """
    _, table, counters = noise
    check_tensor("counters", counters, device, dtype=torch.int64)
    check_tensor("table", table, device)


def check_stretch(blocks: int, start: int, out: Tensor, delta: Tensor | None) -> None:
    """Refuse a stretch that does not consist of whole blocks of the layout, or a delta of another shape.

    Raises:
        ShapeError: it is one of these.
    """
    if start % BLOCK or out.numel() % BLOCK or start < 0 or start + out.numel() > blocks * BLOCK:
        raise ShapeError(
            f"expected a stretch of whole blocks of {BLOCK} elements within {blocks * BLOCK}, "
            f"got {out.numel()} elements from {start}."
        )
    if delta is not None and delta.shape != out.shape:
        raise ShapeError(f"expected delta of shape {tuple(out.shape)}, got {tuple(delta.shape)}.")


def check_directions(blocks: int, seeds: Sequence[int], amounts: Sequence[float], delta: Tensor) -> None:
    """Refuse a delta of another size than the layout, or another number of amounts than of seeds.

    Raises:
        ShapeError: it is one of these.
    """
    if delta.numel() != blocks * BLOCK or len(seeds) != len(amounts):
        raise ShapeError(
            f"expected {blocks * BLOCK} elements and an amount a seed, got {delta.numel()} elements, "
            f"{len(seeds)} seeds and {len(amounts)} amounts."
        )
