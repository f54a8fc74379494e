"""Lookup tables of the codecs, built once a device and kept."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from zoquant.backends.gguf.blocks.base import temporary
from zoquant.errors import CheckpointError


def index_select(values: Tensor, index: Tensor, slot: str) -> Tensor:
    """Return 1-D `values[index]` in scratch memory, in the shape of `index`, which is int32 and contiguous."""
    out = temporary(slot, values, (index.numel(),), values.dtype)
    return torch.index_select(values, 0, index.flatten(), out=out).view(index.shape)


def indices(slot: str, source: Tensor, mask: int | None = None) -> Tensor:
    """Return `source & mask` as contiguous int32 in scratch memory, fit to index a table."""
    out = temporary(slot, source, tuple(source.shape), torch.int32).copy_(source)
    return out if mask is None else out.bitwise_and_(mask)


def of_gguf_py(name: str, what: str) -> Any:
    """Return what the `gguf` package knows of a type; `what` it is needed for stands in the error if there is none."""
    try:
        from gguf import quants
    except ImportError as error:
        raise CheckpointError(
            f"{name} blocks need the {what} of the gguf package, which is not installed. Run: pip install gguf"
        ) from error
    return getattr(quants, name)


@cache
def table(build: Callable[[], Tensor], device: torch.device) -> Tensor:
    """Return the table that `build` makes, on `device`. The first call builds it."""
    with torch.inference_mode(False):
        return build().to(device)


@cache
def shifts(device: torch.device, *amounts: int) -> Tensor:
    """Return `amounts` as int32 on `device`."""
    with torch.inference_mode(False):
        return torch.tensor(amounts, dtype=torch.int32, device=device)


def spread_fifth_bits() -> Tensor:
    """Byte -> its eight bits, lowest first, each as bit 4 of one byte of an int64."""
    bits = torch.arange(256).unsqueeze(1) >> torch.arange(8) & 1
    return (bits << 4).to(torch.uint8).view(torch.int64).flatten()


def byte_pairs(values: Sequence[int], shift: int) -> Tensor:
    """Two packed bytes -> `values` of the nibble at `shift` of each, one a byte of an int16."""
    pair = torch.arange(1 << 16)
    nibbles = torch.stack([pair >> shift & 15, pair >> 8 + shift & 15], dim=1)
    return torch.tensor(values, dtype=torch.int8)[nibbles].view(torch.int16).flatten()
