"""`w = scale · Σ_k codebook_k[code_k]`: a codebook of small vectors, as AQLM, VPTQ, HIGGS."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from zoquant.kernels.products.operands import Operands, Vectors
from zoquant.native.codec import FieldSpec
from zoquant.native.numbers import READ, numbers_of
from zoquant.native.packed import PackedWeight, Rows
from zoquant.native.values import Values, indices
from zoquant.protocol import Grid

_WIDEST = 32
"""Columns of a vector that a kernel reads at most."""


class VectorWeight(PackedWeight):
    """A matrix whose codes index vectors of `height` rows times `width` columns.

    Args:
        layout: the layout's own name.
        codes: `[rows // height, columns // width, codebooks]`, any integer dtype; negative codes wrap around.
        codebooks: name, role and dtype of the codebooks, and the tensor `[codebooks, entries, height, width]`.
        scale: what the sum of the vectors is multiplied with, over the rows divided by `height`; None for nothing.
    """

    codes: Tensor
    codebooks: Tensor

    def __init__(self, layout: str, codes: Tensor, codebooks: tuple[FieldSpec, Tensor], scale: Values | None) -> None:
        super().__init__()
        self.layout = layout
        self.register_buffer("codes", codes)
        self.codebook_spec, books = codebooks
        self.register_buffer("codebooks", books)
        self.scale = scale
        _, self.entries, self.height, self.width = books.shape
        self.rows, self.columns = codes.shape[0] * self.height, codes.shape[1] * self.width

    @property
    def fields(self) -> tuple[FieldSpec, ...]:
        scale = (self.scale.spec,) if self.scale is not None and self.scale.spec is not None else ()
        return (*scale, self.codebook_spec)

    def value(self, name: str) -> Tensor:
        return self.codebooks if self.scale is None or name == self.codebook_spec.name else self.scale.data

    def grids(self) -> Mapping[str, Grid]:
        found = None if self.scale is None else self.scale.grid(self.rows // self.height, self.columns)
        if self.scale is None or self.scale.spec is None or found is None:
            return {}
        return {self.scale.spec.name: replace(found, rows=found.rows.repeat_interleave(self.height))}

    def operands(self, rows: Rows | None = None) -> Operands | None:
        """Return codes, codebooks and scale as a kernel reads them, where sizes are powers of two."""
        powers = all(size & (size - 1) == 0 for size in (self.entries, self.width))
        plain = self.codes.is_contiguous() and self.codebooks.is_contiguous() and self.codebooks.dtype in READ
        if self.scale is None or not (powers and plain) or self.width > _WIDEST:
            return None
        scale = numbers_of(self.scale, self.rows // self.height, self.columns)
        codes = Vectors(self.codes, self.codes.shape[-1], self.entries, self.height, self.width)
        return None if scale is None else Operands("vector", self.rows, self.columns, codes, (scale,), self.codebooks)

    def decode_rows(self, rows: Rows) -> Tensor:
        index = indices(rows, self.rows, self.codes.device)
        groups, within = index // self.height, index % self.height
        codes = self.codes[groups].long() % self.entries
        out = torch.zeros(len(index), codes.shape[1], self.width, device=codes.device)
        for book in range(codes.shape[-1]):
            entries = self.codebooks[book].to(torch.float32)
            out += entries[codes[..., book], within[:, None]]
        out = out.flatten(1)
        if self.scale is not None:
            scale = self.scale.at(groups)
            out.view(len(index), scale.shape[1], -1).mul_(scale)
        return out
