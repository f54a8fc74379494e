"""Where a tensor of a checkpoint lies."""

from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from zoquant.errors import CheckpointError


def byte_strides(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[int, ...]:
    """Return the bytes between neighbours of a contiguous tensor, one number a dimension."""
    return tuple(dtype.itemsize * prod(shape[place + 1 :]) for place in range(len(shape)))


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a file.

    Attributes:
        name: the file's name of it.
        file: the file.
        offset: bytes from the start of the file.
        nbytes: bytes of its data, contiguous.
        shape: its shape.
        dtype: its dtype.
    """

    name: str
    file: Path
    offset: int
    nbytes: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def described(self) -> str:
        """Shape and dtype, for a message."""
        return f"{list(self.shape)} of {str(self.dtype).removeprefix('torch.')}"

    def read(self) -> Tensor:
        """Return the tensor, as stored.

        Raises:
            CheckpointError: the file ended before the tensor did.
        """
        data = bytearray(self.nbytes)
        with self.file.open("rb", buffering=0) as file:
            file.seek(self.offset)
            view, done = memoryview(data), 0
            while done < self.nbytes:
                got = file.readinto(view[done:])
                if not got:
                    raise CheckpointError(
                        f"{self.file}: tensor {self.name!r}: expected {self.nbytes} bytes, got {done}. "
                        "The file was cut off; get it again."
                    )
                done += got
        flat = torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
        return flat.view(self.dtype).view(self.shape)
