"""One quantized matrix of a folder, as its headers describe it; a format adds how its words are read."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from zoquant.checkpoint.folder.reading import Folder
from zoquant.errors import UnsupportedLayoutError
from zoquant.native import PackedWeight
from zoquant.protocol import Role

DENSE = (torch.float32, torch.float16, torch.bfloat16)
"""The dtypes of numbers that are not quantized."""


@dataclass(frozen=True)
class StoredMatrix(ABC):
    """One quantized matrix of a folder.

    Attributes:
        path: the module that holds it.
        rows: rows of the matrix, its outputs.
        columns: columns of the matrix, its inputs.
        type: what `zoquant inspect` counts it under, such as `"4-bit g128"`.
        tensors: every tensor that it is made of, the bias excepted.
        fields: local name of each view -> its role and the tensor that holds its values.
        note: why there is nothing to train, where `fields` is empty.
    """

    path: str
    rows: int
    columns: int
    type: str
    tensors: tuple[str, ...]
    fields: Mapping[str, tuple[Role, str]]
    note: str = ""

    @abstractmethod
    def packed(self, folder: Folder) -> PackedWeight:
        """Read the matrix. Shapes and dtypes were checked when the layer was made."""


def with_attention(folder: Folder, matrix: StoredMatrix, names: Iterable[str]) -> StoredMatrix:
    """Return a matrix to which tensors of the module above belong, too, such as scales of an attention's cache."""
    above = matrix.path.rpartition(".")[0]
    return replace(matrix, tensors=(*matrix.tensors, *(f"{above}.{name}" for name in folder.held(above, names))))


@dataclass(frozen=True)
class MadeMatrix(StoredMatrix):
    """One matrix that is no `Layout`.

    Attributes:
        make: takes the tensors by their local names; returns the matrix.
    """

    make: Callable[[Mapping[str, Tensor]], PackedWeight] = field(repr=False, kw_only=True)

    def packed(self, folder: Folder) -> PackedWeight:
        return self.make({name.removeprefix(f"{self.path}."): folder.read(name) for name in self.tensors})


def refuse_experts(folder: Folder, dtypes: Iterable[torch.dtype]) -> None:
    """Refuse matrices of several experts that lie in one tensor.

    Raises:
        UnsupportedLayoutError: a tensor of these dtypes has more than two dimensions.
    """
    for tensor in folder.tensors.values():
        if len(tensor.shape) > 2 and tensor.dtype in tuple(dtypes):
            raise UnsupportedLayoutError(
                f"{folder.path}: tensor {tensor.name!r}: {tensor.described}: all experts of a layer in one tensor, "
                "which native layers do not compute. Use a checkpoint that keeps each expert apart."
            )


def refuse_leftovers(folder: Folder, layers: Mapping[str, StoredMatrix], mark: str, expected: str) -> None:
    """Refuse tensors of no matrix that only a quantized one can have: codes, and numbers with `mark` in the name.

    Raises:
        CheckpointError: there is one; it is named.
    """
    taken = {name for layer in layers.values() for name in layer.tensors}
    for name, tensor in folder.tensors.items():
        if name not in taken and (tensor.dtype not in DENSE or mark in name):
            raise folder.error(name, expected, "none")
