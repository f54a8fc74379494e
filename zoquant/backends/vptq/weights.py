"""A matrix of VPTQ.

    V[i * length + t, j] = centroids[g, index[g, i, j], t] + res_centroids[g, res_index[g, i, j], t]
    W = permute([outliers, V]) * weight_scale + weight_bias

Column j counts within group g; an index and its residual index share one field of bits in a row of int32 words.

Source: VPTQ 0.0.5, vptq/ops/quant_gemm.py (`dequant`), vptq/utils/pack.py (`unpack_index_tensor`).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zoquant.native import FieldSpec, PackedWeight
from zoquant.native.packed import Rows
from zoquant.native.values import indices
from zoquant.protocol import Role

ROLES: Mapping[str, Role] = {
    "centroids.weight": "codebook",
    "res_centroids.weight": "codebook",
    "outlier_centroids.weight": "codebook",
    "weight_scale": "scale",
    "weight_bias": "zero",
}
"""The continuous tensors of a layer, by the names that the file has."""


@dataclass(frozen=True)
class Part:
    """Some columns of a matrix, in vectors along the rows.

    Attributes:
        codes: the tensor of indices.
        books: the centroids that an index has a field for, its lowest bits first.
        groups: number of codebooks in each; groups of columns, one beside the other.
        size: columns of a group.
        length: rows of a vector.
    """

    codes: str
    books: tuple["Book", ...]
    groups: int
    size: int
    length: int

    @property
    def bits(self) -> int:
        """Bits of an index and its residual index together."""
        return sum(book.bits for book in self.books)


@dataclass(frozen=True)
class Book:
    """Centroids: the tensor `[groups, entries * length]`, and the bits of an index into it."""

    name: str
    entries: int
    bits: int


class VPTQWeight(PackedWeight):
    """One matrix of VPTQ.

    Args:
        rows: rows of the matrix.
        columns: columns of the matrix.
        parts: its columns before they are permuted: the outliers first, if there are any.
        tensors: the tensors of the layer by the names that the file has.
    """

    def __init__(self, rows: int, columns: int, parts: tuple[Part, ...], tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.layout, self.rows, self.columns, self.parts = "VPTQ", rows, columns, parts
        self.names = tuple(tensors)
        for name, tensor in tensors.items():
            self.register_buffer(_buffer(name), tensor)

    @property
    def fields(self) -> tuple[FieldSpec, ...]:
        return tuple(FieldSpec(name, ROLES[name], self.value(name).dtype) for name in self.names if name in ROLES)

    def value(self, name: str) -> Tensor:
        tensor: Tensor = getattr(self, _buffer(name))
        return tensor

    def decode_rows(self, rows: Rows) -> Tensor:
        index = indices(rows, self.rows, self.device)
        weight = torch.cat([self._decode(part, index) for part in self.parts], 1)
        if "perm" in self.names:
            weight = weight[:, torch.argsort(self.value("perm").to(torch.int64) & 0xFFFF)]
        if "weight_scale" in self.names:
            weight = weight.mul_(self.value("weight_scale").float()).add_(self.value("weight_bias").float())
        return weight

    def _decode(self, part: Part, index: Tensor) -> Tensor:
        """Return some rows of the columns of a part, float32 `[len(index), groups * size]`."""
        blocks, place = torch.unique(index // part.length, return_inverse=True)
        codes = fields_of(self.value(part.codes)[:, blocks], part.bits, part.size)
        vectors, shift = torch.zeros(1, device=index.device), 0
        for book in part.books:
            centroids = self.value(book.name).view(part.groups, book.entries, part.length).float()
            chosen = ((codes >> shift) & ((1 << book.bits) - 1)) % book.entries
            vectors = vectors + torch.stack([entries[which] for entries, which in zip(centroids, chosen, strict=True)])
            shift += book.bits
        lines = vectors.permute(1, 3, 0, 2).flatten(2).flatten(0, 1)
        return lines[place * part.length + index % part.length]


def fields_of(words: Tensor, bits: int, count: int) -> Tensor:
    """Return the fields of a row of words, the lowest bits of the first word first.

    Args:
        words: int32 or int16 `[..., words]`.
        bits: bits of a field, at most 32.
        count: number of fields.

    Returns:
        int64 `[..., count]`.
    """
    width = words.element_size() * 8
    start = torch.arange(count, device=words.device) * bits
    wide = nn.functional.pad(words.to(torch.int64) & ((1 << width) - 1), (0, 1))
    low, high = wide[..., start // width], wide[..., start // width + 1]
    shift = start % width
    below = (low >> shift) | torch.where(shift > 0, high << (width - shift), 0)
    return below & ((1 << bits) - 1)


def _buffer(name: str) -> str:
    return name.replace(".", "_")
