"""What a figure was measured on."""

import os
import platform
from pathlib import Path

import torch

from zoquant import kernels


def machine(device: torch.device) -> dict[str, str | int]:
    """Return what a figure depends on besides the code."""
    return {
        "device": device.type,
        "processor": processor(device),
        "threads": torch.get_num_threads(),
        "kernels": kernels.status().partition(":")[0] if device.type == "cpu" else kernels.status(device),
        "torch": torch.__version__,
    }


def processor(device: torch.device) -> str:
    """Return the name of what computes."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores"
