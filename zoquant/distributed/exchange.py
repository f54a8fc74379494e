"""What travels between ranks: a row of 64-bit numbers a step, the steps that a rank has missed, sums of gradients."""

import json
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from zoquant.errors import RankError, RankMemoryError
from zoquant.kernels.out_of_memory import is_out_of_memory

FINE, NO_MEMORY, FAILED = range(3)


def state_of(failure: BaseException | None) -> int:
    """Return how a rank fared that failed so."""
    return FINE if failure is None else NO_MEMORY if is_out_of_memory(failure) else FAILED


def refuse_worse(states: Sequence[int], own: int, what: str) -> None:
    """Name a rank that fared worse than this one; one among the worst has its own error to raise."""
    worst = max(states)
    if worst > own:
        kind, fared = (RankMemoryError, "ran out of memory") if worst == NO_MEMORY else (RankError, "failed")
        raise kind(
            f"{what}: rank {states.index(worst)} {fared}; its own log says why. The step was undone on all ranks and "
            "does not count."
        )


def gathered(row: Sequence[int]) -> list[list[int]]:
    """Return the rows of all ranks, in their order: signed 64-bit numbers, as many on every rank."""
    own = torch.tensor(row, dtype=torch.int64, device=_device())
    rows = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(rows, own)
    return [found.tolist() for found in rows]


def broadcast(value: Any, source: int = 0) -> Any:
    """Return the value of rank `source` on all ranks: anything JSON can hold, of which a float comes out to the bit."""
    data = json.dumps(value).encode() if dist.get_rank() == source else b""
    size = torch.tensor([len(data)], dtype=torch.int64, device=_device())
    dist.broadcast(size, source)
    text = torch.zeros(int(size), dtype=torch.uint8, device=_device())
    if data:
        text.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
    dist.broadcast(text, source)
    return json.loads(bytes(text.tolist()))


def add_up(tensors: Sequence[Tensor], failure: Exception | None) -> None:
    """Add up tensors over all ranks, in place, to the same bytes, unless a failure kept one from computing its part.

    Raises:
        Exception: the failure of this rank.
        RankError: see `refuse_worse`. Nothing was added.
    """
    own = state_of(failure)
    states = [state for (state,) in gathered([own])]
    refuse_worse(states, own, "the gradient of a step")
    if failure is not None:
        raise failure
    for tensor in tensors:
        dist.all_reduce(tensor)


def bits_of(losses: Sequence[float]) -> list[int]:
    """Return the bits of losses as signed 64-bit numbers."""
    bits: list[int] = torch.tensor(losses, dtype=torch.float64).view(torch.int64).tolist()
    return bits


def losses_of(bits: Sequence[int]) -> list[float]:
    """Return the losses that `bits_of` was given."""
    losses: list[float] = torch.tensor(bits, dtype=torch.int64).view(torch.float64).tolist()
    return losses


def _device() -> torch.device:
    """Return where tensors of the default group have to lie."""
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
