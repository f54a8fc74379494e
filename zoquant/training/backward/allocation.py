"""Memory that comes back: large tensors of a backward are given to the system when they are freed.

The allocator of glibc learns from the first large blocks that are freed to keep such blocks for itself. Between those
of a backward, which live long and short by turns, it then finds no room: on SmolLM2-135M that costs as much memory as
the activations themselves.
"""

import ctypes
import sys

_M_MMAP_THRESHOLD = -3
_LARGE = 1 << 16


def give_back_large_blocks() -> None:
    """Let blocks of 64 KiB and more be mapped and unmapped one by one, from now on. Does nothing without glibc.

    Source: mallopt(3), M_MMAP_THRESHOLD; setting it switches its growth off.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE)
