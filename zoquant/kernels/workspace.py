"""Scratch memory that the native layers share: one buffer a dtype and purpose, which holds nothing between calls.

Every thread has its own, and so has every stream of a GPU: work that runs at the same time does not meet in it.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class _Own(threading.local):
    """The buffers of one thread, by device, stream of the device, dtype and slot."""

    def __init__(self) -> None:
        self.buffers: dict[tuple[torch.device, int, torch.dtype, str], Tensor] = {}
        self.kept = False


_own = _Own()


def scratch(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, slot: str) -> Tensor:
    """Return an uninitialized tensor that the next call with the same slot overwrites, in this thread and stream."""
    if _own.kept:
        return torch.empty(shape, dtype=dtype, device=device)
    size = 1
    for length in shape:
        size *= length
    key = (device, _stream(device), dtype, slot)
    buffer = _own.buffers.get(key)
    if buffer is None or buffer.numel() < size:
        with torch.inference_mode(False):
            buffer = torch.empty(size, dtype=dtype, device=device)
        _own.buffers[key] = buffer
    found = buffer.narrow(0, 0, size).view(shape)
    return found.detach() if torch.is_grad_enabled() else found  # who writes may ask for a derivative, the buffer never


@contextmanager
def kept() -> Iterator[None]:
    """Let what `scratch` returns in a `with` be new memory that nobody overwrites, as autograd needs it."""
    before, _own.kept = _own.kept, True
    try:
        yield
    finally:
        _own.kept = before


def _stream(device: torch.device) -> int:
    """Return what tells the present stream of a device from its others; a CPU has one a thread."""
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
