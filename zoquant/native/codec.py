"""What a native layer needs to know of a packed layout."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from zoquant.protocol import Role


@dataclass(frozen=True)
class FieldSpec:
    """One continuous field of a packed layout, e.g. `d` of a GGUF block.

    Attributes:
        name: the name that upstream gives the field.
        role: what the values are to the layer.
        dtype: the dtype that stores the values on disk.
    """

    name: str
    role: Role
    dtype: torch.dtype


class Codec(Protocol):
    """Turns packed words and continuous fields into weights. The weights are linear in every field.

    A codec may have three attributes more, for compiled code that layers on the CPU take where it is not None:
    `decode_rows: RowDecoder | None` gives the same bits as `decode`, see `zoquant.kernels.products.decode.row_decoder`,
    and `multiply_rows: RowMultiplier | None` multiplies with them, see
    `zoquant.kernels.products.matmul.row_multiplier`; and `contract_rows: RowContractor | None` gives the gradient by
    the fields, see `zoquant.kernels.products.contract.row_contractor`. With `ggml = True` its codes are those of
    ggml's layout of its name, which the kernels of a GPU know.

    Attributes:
        name: the layout's own name, e.g. `"Q4_1"`.
        block: weights that one group of packed words holds.
        fields: the continuous fields, in the order in which `decode` takes them.
    """

    name: str
    block: int
    fields: tuple[FieldSpec, ...]

    def decode(self, codes: Tensor, values: Sequence[Tensor], out: Tensor) -> None:
        """Write the weights of some groups to `out`.

        Args:
            codes: packed words, uint8 `[rows, groups, bytes]`, the words of the file without its continuous fields.
            values: one float32 tensor a field, `[rows, groups, ...]`.
            out: float32 `[rows, groups, block]`, overwritten.
        """
        ...
