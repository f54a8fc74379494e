"""A matrix that is not quantized, kept in the dtype of its file beside the quantized ones."""

import torch
from torch import Tensor

from zoquant.kernels.workspace import scratch
from zoquant.native.codec import FieldSpec
from zoquant.native.packed import PackedWeight, Rows


class DenseWeight(PackedWeight):
    """Plain numbers.

    Args:
        weight: `[rows, columns]`, float32, float16 or bfloat16, as the file has it.
        row_order: for every row of the matrix the row of the file, int64 `[rows]`; None when they agree.
    """

    weight: Tensor
    row_order: Tensor | None

    def __init__(self, weight: Tensor, row_order: Tensor | None = None) -> None:
        super().__init__()
        self.layout = str(weight.dtype).removeprefix("torch.")
        self.register_buffer("weight", weight)
        self.register_buffer("row_order", row_order)
        self.rows, self.columns = weight.shape

    @property
    def fields(self) -> tuple[FieldSpec, ...]:
        return (FieldSpec("weight", "dense", self.weight.dtype),)

    def value(self, name: str) -> Tensor:
        return self.weight

    def forward(self, rows: Rows) -> Tensor:
        """Return rows of the file, decoded. Whoever reads them calls the module, so that hooks hear of every read."""
        part = self.weight[rows]
        return scratch(tuple(part.shape), torch.float32, part.device, "decode").copy_(part)

    def decode_rows(self, rows: Rows) -> Tensor:
        found: Tensor = self(rows if self.row_order is None else self.row_order[rows])
        return found
