"""A matrix of ExLlamaV3: a trellis between two Hadamard matrices and two vectors of scales.

    W = (diag(suh) · H · trellis · H · diag(svh))ᵀ, with H the Hadamard matrix of 128 over blocks, divided by √128

Source: turboderp-org/exllamav3, modules/quant/exl3.py (`LinearEXL3.get_weight_tensor`), util/hadamard.py.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from zoquant.backends.exl3.trellis import SIDE, codebook, states, step_of
from zoquant.native import FieldSpec, PackedWeight
from zoquant.native.packed import Rows
from zoquant.native.values import indices

BLOCK = 128


class TrellisWeight(PackedWeight):
    """A matrix in blocks of 128 inputs and outputs; a block is the least that can be decoded.

    Args:
        layout: the layout's own name.
        trellis: int16 `[columns / 16, rows / 16, 16 K]`.
        suh: one scale an input, `[columns]`.
        svh: one scale an output, `[rows]`.
        book: name of the codebook.
    """

    trellis: Tensor
    suh: Tensor
    svh: Tensor
    table: Tensor
    steps: Tensor
    hadamard: Tensor

    def __init__(self, layout: str, trellis: Tensor, suh: Tensor, svh: Tensor, book: str) -> None:
        super().__init__()
        self.layout = layout
        for name, tensor in (("trellis", trellis), ("suh", suh), ("svh", svh)):
            self.register_buffer(name, tensor)
        self.register_buffer("table", codebook(book))
        self.register_buffer("steps", step_of())
        self.register_buffer("hadamard", hadamard(BLOCK) / BLOCK**0.5)
        self.rows, self.columns = len(svh), len(suh)

    @property
    def fields(self) -> tuple[FieldSpec, ...]:
        return tuple(FieldSpec(name, "scale", self.value(name).dtype) for name in ("suh", "svh"))

    def value(self, name: str) -> Tensor:
        tensor: Tensor = getattr(self, name)
        return tensor

    def decode_rows(self, rows: Rows) -> Tensor:
        index = indices(rows, self.rows, self.trellis.device)
        blocks, place = torch.unique(index // BLOCK, return_inverse=True)
        decoded = torch.cat([self._block(int(block)) for block in blocks])
        return decoded[place * BLOCK + index % BLOCK]

    def row_tiles(self, least: int = BLOCK) -> Iterator[slice]:
        """Yield the rows of the tiles, whole blocks of outputs."""
        return super().row_tiles(least)

    def _block(self, number: int) -> Tensor:
        """Decode 128 outputs, float32 `[128, columns]`."""
        tiles = BLOCK // SIDE
        words = self.trellis[:, number * tiles : (number + 1) * tiles].contiguous()
        inner = self.table[states(words, self.steps)]
        inner = inner.permute(0, 2, 1, 3).reshape(-1, BLOCK, BLOCK)
        turned = (self.hadamard @ inner @ self.hadamard).view(self.columns, BLOCK)
        outputs = self.svh[number * BLOCK : (number + 1) * BLOCK]
        return turned.t() * self.suh.float() * outputs.float()[:, None]


def hadamard(size: int) -> Tensor:
    """Return Sylvester's Hadamard matrix, float32 `[size, size]`, for a power of two."""
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.cat((torch.cat((matrix, matrix), 1), torch.cat((matrix, -matrix), 1)))
    return matrix
