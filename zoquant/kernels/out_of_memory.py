"""Whether an error says that there is no more memory, on any device, and giving back what nobody holds."""

import gc

import torch

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
