"""A matrix of SINQ: codes in planes of packed words, a scale and a zero point for each group, a scale for each column.

    W = (codes - zero) * scale * scale2

In tiles (`2D`) a group is a row of a square tile, and each row of tiles has column scales of its own. Scales and zeros
may be quantized to 8 bits (`quantAux`): `scale = x * s + m`, with one `s` and `m` for all numbers n of equal `n % len`.

Source: sinq 0.2.0, quantizer.py (`Quantizer.dequantize`, `rtn8`, `dq8`), dual_shift.py (`tiled_quant_rectangle`,
`tiled_quant_square`), bitpack.py.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from zoquant.backends.hqq.weights import PACKINGS as OLDER_PACKINGS
from zoquant.backends.hqq.weights import Packing
from zoquant.kernels.workspace import scratch
from zoquant.native import Codes, FieldSpec, PackedWeight
from zoquant.native.packed import Rows
from zoquant.native.values import indices
from zoquant.protocol import Role

PACKINGS: Mapping[str, Packing] = {
    **OLDER_PACKINGS,
    "6bit_32": Packing(6, 5, torch.int32),
    "5bit_32": Packing(5, 6, torch.int32),
}


class GroupNumbers(nn.Module):
    """One number a group, plain or in 8 bits.

    Args:
        name: `scale` or `zero`.
        parts: local name within it -> tensor: `""` where it is plain; `x`, `s` and `m` in 8 bits.
    """

    def __init__(self, name: Role, parts: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.kind: Role = name
        self.names = {part: f"meta.{name}.{part}" if part else f"meta.{name}" for part in parts}
        for part, tensor in parts.items():
            self.register_buffer(part or "plain", tensor)

    @property
    def fields(self) -> dict[str, tuple[FieldSpec, Tensor]]:
        """What is continuous: name in the file -> its field and storage."""
        tensors = {name: getattr(self, part or "plain") for part, name in self.names.items() if part != "x"}
        return {name: (FieldSpec(name, self.kind, tensor.dtype), tensor) for name, tensor in tensors.items()}

    def at(self, groups: Tensor) -> Tensor:
        """Return the numbers of some groups, float32 of the shape of `groups`."""
        if "" in self.names:
            return _pick(self, "plain", groups)
        return _pick(self, "x", groups) * _pick(self, "s", groups) + _pick(self, "m", groups)


class SINQWeight(PackedWeight):
    """A matrix with two scales.

    Args:
        layout: the layout's own name.
        codes: the codes.
        size: columns of a group.
        scale: one number a group.
        zero: one number a group, subtracted before.
        columns_scale: `meta.scale2`, `[1, columns]`, or in tiles `[tiles, 1, size]`.
    """

    columns_scale: Tensor

    def __init__(
        self, layout: str, codes: Codes, size: int, scale: GroupNumbers, zero: GroupNumbers, columns_scale: Tensor
    ) -> None:
        super().__init__()
        self.layout = layout
        self.codes, self.size, self.scale, self.zero = codes, size, scale, zero
        self.register_buffer("columns_scale", columns_scale)
        self.rows, self.columns = codes.rows, codes.columns

    @property
    def fields(self) -> tuple[FieldSpec, ...]:
        return tuple(spec for spec, _ in self._values().values())

    def value(self, name: str) -> Tensor:
        return self._values()[name][1]

    def decode_rows(self, rows: Rows) -> Tensor:
        codes, index = self.codes.read(rows), indices(rows, self.rows, self.columns_scale.device)
        out = scratch(tuple(codes.shape), torch.float32, codes.device, "decode").copy_(codes)
        groups, bands = self._groups(index)
        grouped = out.view(*groups.shape, self.size)
        grouped.sub_(self.zero.at(groups)[..., None]).mul_(self.scale.at(groups)[..., None])
        return out.mul_(self.columns_scale.reshape(-1, self.columns)[bands].float())

    def _groups(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the numbers of the groups of some rows, `[n, columns / size]`, and of their rows of tiles, `[n]`."""
        across = torch.arange(count := self.columns // self.size, device=rows.device)
        if self.columns_scale.dim() == 2:
            return rows[:, None] * count + across, torch.zeros_like(rows)
        bands, within = rows // self.size, rows % self.size
        return (bands[:, None] * count + across) * self.size + within[:, None], bands

    def _values(self) -> dict[str, tuple[FieldSpec, Tensor]]:
        spec = FieldSpec("meta.scale2", "scale", self.columns_scale.dtype)
        return {**self.scale.fields, **self.zero.fields, spec.name: (spec, self.columns_scale)}


def _pick(module: nn.Module, name: str, groups: Tensor) -> Tensor:
    flat: Tensor = getattr(module, name).reshape(-1)
    return flat[groups % flat.numel()].float()
