"""Which tensor of a module holds numbers beside the codes of its matrix, and which weights share one of them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from zoquant.checkpoint.folder.matrix import DENSE
from zoquant.checkpoint.folder.reading import Folder, dtype_names
from zoquant.files.tensors import StoredTensor
from zoquant.native import FieldSpec, Values
from zoquant.native.packed_rows import PackedRows, of_first_row
from zoquant.native.values import Decode, GroupLookup, column_groups, per_row, row_groups, tall_groups, whole
from zoquant.protocol import Role

POWERS = (torch.uint8, torch.float8_e8m0fnu)
"""The dtypes of scales that are powers of two."""
MATRIX, ROW = (0, 0), (1, 0)
"""Blocks of all weights, and of those of a row."""


@dataclass(frozen=True)
class StoredNumbers:
    """The tensor of the scales, the zero points, or the offsets: `[rows of blocks, blocks of a row]`.

    A format that lays out its numbers otherwise overrides `shape` and `lookup`.

    Attributes:
        name: its name within the module, such as `"scales"`.
        block: rows and columns of the weights that share a number, 0 for all of them: `(1, 64)` for groups of 64
            columns, `ROW`, `MATRIX`, `(128, 128)`.
        dtypes: the dtypes that it may have. Those of `DENSE` are trained, those of `POWERS` are powers of two.
        role: what trained numbers are to the layer; None for integers, such as the zero points of GPTQ.
        transposed: whether it is `[groups, rows]`, as in GPTQ.
        ragged: whether the last block of a row or a column may be cut short.
        dims: dimensions that it has; None where trailing ones of a single number may be missing.
        decode: what turns stored numbers into factors, such as `reciprocal`; None where they are factors as they are.
        view: the local name of its view; empty for that of the tensor.
    """

    name: str
    block: tuple[int, int]
    dtypes: tuple[torch.dtype, ...] = DENSE
    role: Role | None = "scale"
    transposed: bool = False
    ragged: bool = False
    dims: int | None = None
    decode: Decode | None = None
    view: str = ""

    def grid(self, rows: int, columns: int) -> tuple[int, int]:
        """Return the blocks along the rows of a matrix and along its columns."""
        height, width = self.block
        return -(-rows // (height or rows)), -(-columns // (width or columns))

    def shape(self, rows: int, columns: int) -> tuple[int, ...]:
        """Return the shape of the tensor for a matrix, with all of its dimensions."""
        down, across = self.grid(rows, columns)
        return (across, down) if self.transposed else (down, across)

    def spec(self, dtype: torch.dtype) -> FieldSpec | None:
        """Return the field that numbers of a dtype are; None where they are not trained."""
        return FieldSpec(self.view or self.name, self.role, dtype) if self.role and dtype in DENSE else None

    def check(self, folder: Folder, path: str, rows: int, columns: int) -> StoredTensor:
        """Return the tensor of a module, whose matrix has some rows and columns.

        Raises:
            CheckpointError: it is missing, of another shape or dtype, or blocks do not divide the matrix.
        """
        tensor, shape = folder.tensor(f"{path}.{self.name}"), self.shape(rows, columns)
        short = [shape[:dims] for dims in range(len(shape)) if set(shape[dims:]) == {1} and not self.transposed]
        fitting = [each for each in (*short, shape) if self.dims in (None, len(each))]
        if tensor.shape not in fitting or tensor.dtype not in self.dtypes:
            size = f"{self.block[0] or rows} x {self.block[1] or columns}"
            raise folder.error(
                tensor.name,
                f"{list(fitting[-1])} of {dtype_names(self.dtypes)}, one for each {size} weights",
                tensor.described,
            )
        return tensor

    def divide(self, rows: int, columns: int) -> bool:
        """Tell whether the matrix consists of whole blocks, or need not."""
        height, width = self.block
        return self.ragged or not (rows % (height or rows) or columns % (width or columns))

    def lookup(self, rows: int, columns: int) -> GroupLookup:
        """Return what picks the numbers of some rows of a matrix."""
        down, across = self.grid(rows, columns)
        if self.transposed:
            return column_groups
        if across == 1:
            return whole if down == 1 else per_row if down == rows else tall_groups(rows, self.block[0])
        return row_groups if down == rows else tall_groups(rows, self.block[0] or rows)

    def values(self, stored: Tensor, rows: int, columns: int, group_of: Tensor | None = None) -> Values:
        """Return the numbers of a matrix, whose tensor they hold as it is.

        Args:
            stored: the tensor.
            rows: rows of the matrix.
            columns: columns of the matrix.
            group_of: for every column its group, int64 `[columns]`; None where groups are runs of columns.
        """
        width, across = self.block[1] or columns, self.grid(rows, columns)[1]
        runs = torch.arange(columns, device=stored.device) // width
        if across == 1 or group_of is None or torch.equal(group_of, runs):
            group_of = runs if across > 1 and columns % width else None
        decode = power_of_two if self.role and stored.dtype in POWERS else self.decode
        return Values(self.spec(stored.dtype), stored, self.lookup(rows, columns), group_of=group_of, decode=decode)


@dataclass(frozen=True, kw_only=True)
class PackedZeros(StoredNumbers):
    """Integer zero points, packed along the rows of the matrix, the lowest bits of an int32 word first.

    A tensor of `[words, groups]`, or `[groups, words]` if `transposed`.

    Attributes:
        bits: bits of a zero point.
        plus: what is added to whole words before they are unpacked, so that a field may carry into the next.
        order: which zero point of a word, the lowest bits first, belongs to each of its rows; empty where they agree.
        signed: whether the highest bit of a zero point is its sign.
    """

    dtypes: tuple[torch.dtype, ...] = (torch.int32,)
    role: Role | None = None
    bits: int
    plus: int = 0
    order: tuple[int, ...] = ()
    signed: bool = False

    def shape(self, rows: int, columns: int) -> tuple[int, ...]:
        down, across = self.grid(rows, columns)
        words = -(-down * self.bits // 32)
        return (across, words) if self.transposed else (words, across)

    def lookup(self, rows: int, columns: int) -> GroupLookup:
        packed = PackedRows(self.bits, self.plus, self.order, transposed=not self.transposed, signed=self.signed)
        return packed if self.block[0] else of_first_row(packed)


def reciprocal(stored: Tensor) -> Tensor:
    """Return the factors of scales that the format divides by."""
    return stored.float().reciprocal()


def power_of_two(stored: Tensor) -> Tensor:
    """Return the factors of E8M0 scales, 2 ** (byte - 127), stored as uint8 or float8_e8m0fnu.

    Source: OCP Microscaling Formats (MX) v1.0, section 5.4.1.
    """
    return stored.float() if stored.dtype.is_floating_point else (stored.float() - 127).exp2()
