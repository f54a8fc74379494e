"""How much memory this process holds: its own, and on a GPU that of its tensors."""

import sys
from pathlib import Path

import torch


def rss_bytes() -> int:
    """Return the resident memory of this process now, in bytes."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def peak_rss_bytes() -> int:
    """Return the largest resident memory of this process so far, in bytes.

    On Linux this is `VmHWM`, since `ru_maxrss` still knows the process that started this one.
    """
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        return int(lines["VmHWM"].split()[0]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def held_bytes(device: torch.device) -> int:
    """Return what the process holds now where a model computes: its resident memory, or tensors on a GPU, in bytes."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else rss_bytes()


def free_bytes(device: torch.device) -> int:
    """Return what the machine, or the GPU, could give besides."""
    import psutil

    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    return int(free)


def peak_bytes(device: torch.device) -> int:
    """Return the largest of `held_bytes` so far."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_rss_bytes()
