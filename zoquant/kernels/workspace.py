"""Scratch memory that the native layers share: one buffer a device and dtype, never holding anything between calls."""

import torch
from torch import Tensor

_buffers: dict[tuple[torch.device, torch.dtype, str], Tensor] = {}


def scratch(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, slot: str = "") -> Tensor:
    """Return an uninitialized tensor that the next call with the same slot overwrites.

    Args:
        shape: shape of the tensor.
        dtype: its dtype.
        device: where it lies.
        slot: tensors that are needed at the same time take different slots.
    """
    size = 1
    for length in shape:
        size *= length
    key = (device, dtype, slot)
    buffer = _buffers.get(key)
    if buffer is None or buffer.numel() < size:
        with torch.inference_mode(False):
            buffer = torch.empty(size, dtype=dtype, device=device)
        _buffers[key] = buffer
    return buffer[:size].view(shape)


def held(device: torch.device) -> list[Tensor]:
    """Return the scratch memory of a device as it is now: who keeps it can go on using it when it has been outgrown."""
    return [buffer for (place, _, _), buffer in _buffers.items() if place == device]
