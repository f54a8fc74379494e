"""What a checkpoint of HQQ says of one matrix: its settings, checked against its tensors.

Source: hqq 0.2.8.post1, hqq/core/quantize.py (`Quantizer.quantize`), hqq/core/utils.py (`encode_safetensor_type`).
"""

from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from zoquant.backends.hqq.weights import PACKINGS, Packing
from zoquant.checkpoint.folder import Folder
from zoquant.checkpoint.folder.matrix import DENSE

_MAX_BYTES = 64
_FLOATS = {torch.uint8: (*DENSE, torch.uint8), torch.int32: (*DENSE, torch.int32)}


@dataclass(frozen=True)
class Matrix:
    """One matrix of HQQ in a file: that of a layer, or one of its scales or zero points.

    Attributes:
        words: the tensor of its words.
        rows: rows of the matrix.
        columns: columns of the matrix.
        axis: 0 or 1.
        packing: how its words are packed.
        groups: number of its groups: of its scales, and of its zero points.
    """

    words: str
    rows: int
    columns: int
    axis: int
    packing: Packing
    groups: int


def read_matrix(folder: Folder, words: str, at: str) -> Matrix:
    """Return what the settings say of a matrix; their names start with `at`.

    Raises:
        CheckpointError: a setting is missing or out of range, or the words are not as many as it says.
    """
    shape, axis = setting(folder, f"{at}shape"), setting(folder, f"{at}axis")
    kind, size = setting(folder, f"{at}packing"), setting(folder, f"{at}group_size")
    if not _is_shape(shape):
        raise folder.error(f"{at}shape", "rows and columns", f"{shape!r:.80}")
    if not isinstance(kind, str) or kind not in PACKINGS:
        raise folder.error(f"{at}packing", f"one of {', '.join(PACKINGS)}", f"{kind!r:.80}")
    if axis not in (0, 1):
        raise folder.error(f"{at}axis", "0 or 1", f"{axis!r:.80}")
    (rows, columns), packing = shape, PACKINGS[kind]
    size = (columns if axis == 1 else rows) if size is None else size
    if type(size) is not int or size < 1 or rows * columns % size:
        raise folder.error(f"{at}group_size", f"a divisor of {rows} x {columns}", f"{size!r:.80}")
    groups = rows * columns // size
    _check_words(folder, words, packing, (groups, size) if axis == 1 else (size, groups))
    return Matrix(words, rows, columns, axis, packing, groups)


def check_numbers(folder: Folder, name: str, groups: int) -> None:
    """Check that a tensor holds scales or zero points: one for each group, or one for all."""
    tensor = folder.tensor(name)
    if prod(tensor.shape) not in (groups, 1) or tensor.dtype not in DENSE:
        raise folder.error(name, f"{groups} numbers in floating point", tensor.described)


def setting(folder: Folder, name: str) -> Any:
    """Return a setting; None where there is none.

    Raises:
        CheckpointError: it is a tensor, but none of a number, some numbers, or the letters of a word.
    """
    if name not in folder.tensors:
        return folder.values.get(name)
    tensor = folder.tensors[name]
    if tensor.nbytes > _MAX_BYTES or len(tensor.shape) > 1:
        raise folder.error(name, f"a setting of at most {_MAX_BYTES} bytes", f"{list(tensor.shape)} of {tensor.dtype}")
    value = tensor.read().tolist()
    if not isinstance(value, list):
        return value
    return "".join(map(chr, value)) if tensor.dtype == torch.uint8 else tuple(value)


def _is_shape(shape: Any) -> bool:
    return isinstance(shape, tuple) and len(shape) == 2 and all(type(n) is int and 0 < n < 1 << 31 for n in shape)


def _check_words(folder: Folder, name: str, packing: Packing, shape: tuple[int, int]) -> None:
    tensor = folder.tensor(name)
    height = -(-shape[0] // packing.count)
    expected = height * shape[1] * packing.dtype.itemsize
    whole = packing.dtype == torch.int32 or shape[0] % packing.count == 0
    if not whole or tensor.nbytes != expected or tensor.dtype not in _FLOATS[packing.dtype]:
        raise folder.error(
            name,
            f"{expected} bytes for {shape[0]} x {shape[1]} codes of {packing.bits} bits",
            f"{tensor.nbytes} of {str(tensor.dtype).removeprefix('torch.')}",
        )
