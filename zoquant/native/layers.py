"""Linear and embedding layers over packed words: the weights exist one tile at a time, while they are multiplied."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from zoquant.errors import ShapeError
from zoquant.kernels.decode import OUTPUTS, RowDecoder, decodable
from zoquant.native.codec import Codec
from zoquant.native.workspace import scratch

TILE = 1 << 20
"""Weights that are decoded at a time: 4 MiB of float32, so that a tile is multiplied while it lies in the cache."""


class QuantWeight(nn.Module):
    """The packed words and continuous values of one matrix, as the file has them.

    Args:
        codec: turns words and values into weights.
        codes: packed words, uint8 `[rows, groups, bytes]`.
        values: one tensor a field of the codec, `[rows, groups, ...]`, in the dtype of the file.
        row_order: for every row of the matrix the row of the file, int64 `[rows]`; None when they agree.
    """

    codes: Tensor
    row_order: Tensor | None

    def __init__(self, codec: Codec, codes: Tensor, values: Sequence[Tensor], row_order: Tensor | None = None) -> None:
        super().__init__()
        self.codec = codec
        self.register_buffer("codes", codes)
        self.register_buffer("row_order", row_order)
        for field, value in zip(codec.fields, values, strict=True):
            if value.shape[:2] != codes.shape[:2]:
                raise ShapeError(
                    f"{codec.name} field {field.name!r}: expected [rows, groups, ...] = {tuple(codes.shape[:2])}, "
                    f"got {tuple(value.shape)}. Split words and fields from the same blocks."
                )
            self.register_buffer(field.name, value)

    @property
    def rows(self) -> int:
        return self.codes.shape[0]

    @property
    def columns(self) -> int:
        return self.codes.shape[1] * self.codec.block

    def value(self, name: str) -> Tensor:
        """Return the storage of one continuous field."""
        tensor: Tensor = getattr(self, name)
        return tensor

    def decode_rows(self, rows: slice | Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Decode some rows of the matrix.

        Args:
            rows: which rows, in the order of the model.
            dtype: what the weights are rounded to, once, from float32.

        Returns:
            `[len(rows), columns]` in scratch memory that the next call overwrites.
        """
        place = rows if self.row_order is None else self.row_order[rows]
        values = [self.value(field.name) for field in self.codec.fields]
        compiled: RowDecoder | None = getattr(self.codec, "decode_rows", None)
        if compiled is not None and dtype in OUTPUTS and decodable(self.codes, values):
            return self._decode_compiled(compiled, values, place, dtype)
        codes = self.codes[place]
        out = scratch((*codes.shape[:2], self.codec.block), torch.float32, codes.device, "decode")
        self.codec.decode(codes, [value[place].float() for value in values], out)
        tile = out.flatten(1)
        return tile if dtype == torch.float32 else scratch(tuple(tile.shape), dtype, tile.device, "cast").copy_(tile)

    def _decode_compiled(
        self, compiled: RowDecoder, values: Sequence[Tensor], place: slice | Tensor, dtype: torch.dtype
    ) -> Tensor:
        codes, order, count = self.codes, None, self.rows
        if isinstance(place, Tensor):
            order, count = place, len(place)
        elif place != slice(0, self.rows):  # a stretch of the file: nothing has to be looked up
            codes, values = codes[place], [value[place] for value in values]
            count = len(codes)
        out = scratch((count, codes.shape[1], self.codec.block), dtype, codes.device, "decode")
        compiled(codes, values, order, out)
        return out.flatten(1)

    def tiles(self, dtype: torch.dtype = torch.float32) -> Iterator[tuple[slice, Tensor]]:
        """Yield the matrix as `(rows, decoded rows)`, in the order of the model."""
        step = max(1, TILE // self.columns)
        for start in range(0, self.rows, step):
            rows = slice(start, min(start + step, self.rows))
            yield rows, self.decode_rows(rows, dtype)

    def dequantize(self) -> Tensor:
        """Return the whole matrix, float32 `[rows, columns]`, in the order of the model."""
        weight = torch.empty(self.rows, self.columns, dtype=torch.float32, device=self.codes.device)
        for rows, tile in self.tiles():
            weight[rows] = tile
        return weight


class QuantLinear(nn.Module):
    """`y = x Wᵀ + b` over packed words.

    Args:
        packed: the matrix.
        bias: float32 `[out_features]`, or None.
        compute_dtype: dtype of the matrix product; what comes in and goes out keeps its own.
    """

    bias: Tensor | None

    def __init__(self, packed: QuantWeight, bias: Tensor | None = None, *, compute_dtype: torch.dtype) -> None:
        super().__init__()
        self.packed = packed
        self.register_buffer("bias", bias)
        self.compute_dtype = compute_dtype
        self.in_features, self.out_features = packed.columns, packed.rows

    def forward(self, x: Tensor) -> Tensor:
        """Return `x Wᵀ + b`, `[..., out_features]`, in the dtype of `x`."""
        flat = x.reshape(-1, self.in_features).to(self.compute_dtype)
        parts = [flat @ tile.t() for _, tile in self.packed.tiles(self.compute_dtype)]
        y = (parts[0] if len(parts) == 1 else torch.cat(parts, -1)).to(x.dtype)
        return (y if self.bias is None else y + self.bias).view(*x.shape[:-1], self.out_features)

    def rows(self, x: Tensor, outputs: Tensor) -> Tensor:
        """Return some of the outputs only, `[..., len(outputs)]`: their rows alone are decoded.

        Args:
            x: `[..., in_features]`.
            outputs: which outputs, int64 `[n]`.
        """
        y = (x.to(self.compute_dtype) @ self.packed.decode_rows(outputs, self.compute_dtype).t()).to(x.dtype)
        return y if self.bias is None else y + self.bias[outputs]

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, layout={self.packed.codec.name}"


class QuantEmbedding(nn.Module):
    """Looks rows up in packed words.

    Args:
        packed: the matrix, one row a token.
        scale: factor on every row, as Gemma has it; None for 1.
        dtype: dtype of what comes out.
    """

    def __init__(self, packed: QuantWeight, *, scale: float | None = None, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.packed = packed
        self.scale = scale
        self.dtype = dtype
        self.num_embeddings, self.embedding_dim = packed.rows, packed.columns

    def forward(self, ids: Tensor) -> Tensor:
        """Return the rows of `ids`, `[..., embedding_dim]`."""
        rows = self.packed.decode_rows(ids.reshape(-1))
        out = rows.clone() if self.scale is None else rows * self.scale
        return out.to(self.dtype).view(*ids.shape, self.embedding_dim)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, layout={self.packed.codec.name}"
