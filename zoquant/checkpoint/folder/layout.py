"""The layout of the quantized matrices of a format, as facts: from them follow checks, index, fields and the matrix.

    LAYOUT = AffineLayout(
        type="3-bit g30",
        codes=StoredCodes("words", (torch.int32,), bits=3, per_word=10, offset=4),
        scale=StoredNumbers("scale", block=(1, 30), transposed=True),
    )

`LAYOUT.matrix(folder, path)` is the matrix of a module of a folder. A live layer that has the same tensors has the same
weight, `LAYOUT.weight(tensors)`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor, nn

from zoquant.checkpoint.folder.matrix import StoredMatrix
from zoquant.checkpoint.folder.reading import Folder
from zoquant.checkpoint.folder.stored_codes import StoredCodes
from zoquant.checkpoint.folder.stored_numbers import POWERS, StoredNumbers
from zoquant.errors import CheckpointError
from zoquant.native import AffineWeight, PackedWeight, TableWeight, Values

POWER_NOTE = "its scales are powers of two, so a step cannot be small"
COARSE_NOTE = "its scales are float8, in steps of 6 to 12 %"
"""Why the scales of NVFP4 are not trained: a step that moves them at all is too long."""

_Layout = TypeVar("_Layout", bound="Layout")


@dataclass(frozen=True, kw_only=True, eq=False)
class Layout(ABC):
    """How matrices are stored: tensors of a module by their local names.

    Attributes:
        type: what `zoquant inspect` counts a matrix under, such as `"4-bit g128"`.
        codes: the tensor of the codes.
        group_of: a tensor with the group of each column, `[columns]`, as `g_idx` of GPTQ; empty where groups are runs.
        beside: tensors that belong to the matrix where there are any, and are left as they are, such as scales of the
            activations.
    """

    type: str
    codes: StoredCodes
    group_of: str = ""
    beside: tuple[str, ...] = ()

    @property
    @abstractmethod
    def numbers(self) -> tuple[StoredNumbers, ...]:
        """The tensors of numbers beside the codes."""

    @property
    def names(self) -> tuple[str, ...]:
        """The local names of the tensors that the matrix is made of."""
        names = (self.codes.name, *(numbers.name for numbers in self.numbers), self.group_of)
        return tuple(name for name in names if name)

    @abstractmethod
    def weight(self, tensors: Mapping[str, Tensor], size: tuple[int, int] | None = None) -> PackedWeight:
        """Return the matrix over tensors of a file, or of a live layer that has them in the same order.

        Args:
            tensors: local name -> tensor, held as it is.
            size: rows and columns, where something else than the codes says them.
        """

    def weight_of(self, module: nn.Module, size: tuple[int, int] | None = None) -> PackedWeight:
        """Return the matrix of a live layer that has the tensors under the names of the file, see `weight`."""
        return self.weight({name: getattr(module, name) for name in self.names}, size)

    def size(self, folder: Folder, path: str) -> tuple[int, int] | None:
        """Return rows and columns of the matrix of a module, where something else than the codes says them.

        Raises:
            CheckpointError: what says them makes no sense.
        """
        return None

    def matrix(self, folder: Folder, path: str) -> "LaidMatrix":
        """Return the matrix of a module, after checking the shapes and dtypes of its tensors.

        Raises:
            CheckpointError: a tensor is missing, or is not as the layout says; it is named.
        """
        rows, columns = self.codes.check(folder, path, self.size(folder, path))
        for numbers in self.numbers:
            self._check_blocks(folder, path, numbers, rows, columns)
        stored = [(numbers, numbers.check(folder, path, rows, columns)) for numbers in self.numbers]
        if self.group_of:
            folder.expect(f"{path}.{self.group_of}", (columns,), (torch.int32, torch.int64))
        specs = [(numbers.spec(tensor.dtype), tensor.name) for numbers, tensor in stored]
        fields = {spec.name: (spec.role, name) for spec, name in specs if spec is not None}
        powers = any(numbers.role and tensor.dtype in POWERS for numbers, tensor in stored)
        names = dict.fromkeys((*self.names, *folder.held(path, self.beside)))
        tensors = tuple(f"{path}.{name}" for name in names)
        return LaidMatrix(
            path, rows, columns, self.type, tensors, fields,
            "" if fields else POWER_NOTE if powers else COARSE_NOTE, layout=self,
        )  # fmt: skip

    def matrices(self, folder: Folder, mark: str = "") -> dict[str, StoredMatrix]:
        """Return the matrices of all modules that have a tensor `mark`, or that of the codes, by the module's path.

        Raises:
            CheckpointError: see `matrix`.
        """
        return {path: self.matrix(folder, path) for path in folder.paths(mark or self.codes.name)}

    def read(self, folder: Folder, matrix: StoredMatrix) -> PackedWeight:
        """Return the matrix of a folder, whose tensors were checked by `matrix`.

        Raises:
            CheckpointError: what a tensor holds contradicts the others.
        """
        return self.weight(self.tensors(folder, matrix), (matrix.rows, matrix.columns))

    def tensors(self, folder: Folder, matrix: StoredMatrix) -> dict[str, Tensor]:
        """Read the tensors of a matrix, but those beside it, by their local names.

        Raises:
            CheckpointError: `group_of` names a group that there is not.
        """
        tensors = {name: folder.read(f"{matrix.path}.{name}") for name in self.names}
        if self.group_of:
            groups = tensors[self.group_of]
            last = max(numbers.grid(matrix.rows, matrix.columns)[1] for numbers in self.numbers) - 1
            lowest, highest = int(groups.min()), int(groups.max())
            if lowest < 0 or highest > last:
                name = f"{matrix.path}.{self.group_of}"
                raise folder.error(name, f"groups 0 to {last}", f"{lowest} to {highest}")
        return tensors

    def _check_blocks(self, folder: Folder, path: str, numbers: StoredNumbers, rows: int, columns: int) -> None:
        if not numbers.divide(rows, columns):
            height, width = numbers.block
            blocks = f"blocks of {height} x {width}" if height > 1 else f"groups of {width}"
            got = f"{[rows, columns]}" if height > 1 else f"{columns}"
            raise folder.error(f"{path}.{self.codes.name}", f"columns that {blocks} divide, as the config says", got)


@dataclass(frozen=True, kw_only=True)
class LaidMatrix(StoredMatrix):
    """One matrix of a folder, laid out as `layout` says."""

    layout: Layout = field(repr=False)

    def packed(self, folder: Folder) -> PackedWeight:
        return self.layout.read(folder, self)


@dataclass(frozen=True, kw_only=True, eq=False)
class AffineLayout(Layout):
    """`w = (code − zero) · scale − shift + offset`.

    Attributes:
        scale: what `code − zero` is multiplied with.
        zero: what is subtracted before, integers or continuous.
        shift: what is subtracted after.
        offset: what is added after.
    """

    scale: StoredNumbers
    zero: StoredNumbers | None = None
    shift: StoredNumbers | None = None
    offset: StoredNumbers | None = None

    @property
    def numbers(self) -> tuple[StoredNumbers, ...]:
        found = (self.scale, self.zero, self.shift, self.offset)
        return tuple(numbers for numbers in found if numbers is not None)

    def weight(self, tensors: Mapping[str, Tensor], size: tuple[int, int] | None = None) -> AffineWeight:
        stored = tensors[self.codes.name]
        rows, columns = size or self.codes.size(tuple(stored.shape), stored.dtype)
        groups = tensors[self.group_of].long() if self.group_of else None

        def values(numbers: StoredNumbers | None) -> Values | None:
            return None if numbers is None else numbers.values(tensors[numbers.name], rows, columns, groups)

        scale = self.scale.values(tensors[self.scale.name], rows, columns, groups)
        zero, shift, offset = (values(numbers) for numbers in (self.zero, self.shift, self.offset))
        codes = self.codes.open(stored, rows, columns)
        return AffineWeight(self.type, codes, scale, zero=zero, shift=shift, offset=offset)


@dataclass(frozen=True, kw_only=True, eq=False)
class TableLayout(Layout):
    """`w = table[code] · scale`, or with two scales the product of both.

    Attributes:
        table: the number of each code, float32 `[levels]`.
        scales: what the table's numbers are multiplied with, one after the other.
    """

    table: Tensor
    scales: tuple[StoredNumbers, ...]

    @property
    def numbers(self) -> tuple[StoredNumbers, ...]:
        return self.scales

    def weight(self, tensors: Mapping[str, Tensor], size: tuple[int, int] | None = None) -> TableWeight:
        stored = tensors[self.codes.name]
        rows, columns = size or self.codes.size(tuple(stored.shape), stored.dtype)
        scales = (numbers.values(tensors[numbers.name], rows, columns) for numbers in self.scales)
        return TableWeight(self.type, self.codes.open(stored, rows, columns), self.table.clone(), *scales)


def layouts_that_fit(folder: Folder, path: str, layouts: Iterable[_Layout]) -> list[_Layout]:
    """Return those of some layouts that the tensors of a module agree with, in their order; at least one.

    Raises:
        CheckpointError: they agree with none; what is said is what the first one found.
    """
    found, errors = [], []
    for layout in layouts:
        try:
            layout.matrix(folder, path)
            found.append(layout)
        except CheckpointError as error:
            errors.append(error)
    if not found:
        raise errors[0]
    return found
