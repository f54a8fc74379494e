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
    _call("mallopt", _M_MMAP_THRESHOLD, _LARGE)


def give_back_free_memory() -> None:
    """Give what is free now back to the system. Does nothing without glibc.

    Source: malloc_trim(3).
    """
    _call("malloc_trim", 0)


def _call(name: str, *arguments: int) -> None:
    found = getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
    if found is not None:
        found(*arguments)
