"""Memory of this process: how much is resident, whether an error says that there is no more, and giving it back."""

import gc
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
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        return int(lines["VmHWM"].split()[0]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


_SAID = ("not enough memory", "out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""What RuntimeErrors of torch say when there is no memory: its allocators for CPU and MPS, and cuBLAS."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on any device."""
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _SAID)


def release_memory() -> None:
    """Give back what nobody holds any more, such as the activations of a forward that failed."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
