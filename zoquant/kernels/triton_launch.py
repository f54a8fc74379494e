"""Where Triton kernels are launched: on the device of their tensors, which need not be the current one."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def launch(kernel: Any, grid: tuple[int, ...], device: torch.device, *arguments: Any, **settings: Any) -> None:
    """Launch a kernel."""
    with guard(device):
        kernel[grid](*arguments, **settings)


def guard(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context in which a GPU is the current one; where the interpreter runs, on a CPU, it does nothing."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
