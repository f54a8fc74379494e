"""Linear and embedding layers over packed words: the weights exist one tile at a time, while they are multiplied."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from zoquant.errors import ShapeError
from zoquant.kernels.products.contract import RowContractor, contractible
from zoquant.kernels.products.decode import OUTPUTS, RowDecoder, decodable
from zoquant.kernels.products.matmul import Factors, RowMultiplier, multiplies
from zoquant.kernels.products.operands import Numbers, Operands, words_of_blocks
from zoquant.kernels.workspace import scratch
from zoquant.native.backward.matrix import lookup, tracked
from zoquant.native.backward.matrix import product as tracked_product
from zoquant.native.codec import Codec, FieldSpec
from zoquant.native.compiled import decoded_on_gpu
from zoquant.native.packed import PackedWeight, Rows, product, rounded
from zoquant.protocol import Grid


class QuantWeight(PackedWeight):
    """The packed words and continuous values of one matrix in blocks of the same layout, as GGUF has them.

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
        self.layout = codec.name
        self.rows, self.columns = codes.shape[0], codes.shape[1] * codec.block
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
    def fields(self) -> tuple[FieldSpec, ...]:
        return self.codec.fields

    def value(self, name: str) -> Tensor:
        tensor: Tensor = getattr(self, name)
        return tensor

    def grids(self) -> Mapping[str, Grid]:
        """Return the grids of all fields: the weights are linear in them together."""
        values = {field.name: self.value(field.name) for field in self.codec.fields}
        if any(value.dim() != 2 for value in values.values()):
            return {}
        rows = torch.arange(self.rows, device=self.device) if self.row_order is None else self.row_order
        columns = torch.arange(self.columns, device=self.device) // self.codec.block
        return {name: Grid((value.shape[0], value.shape[1]), rows, columns) for name, value in values.items()}

    def decode_rows(self, rows: Rows) -> Tensor:
        return self.decode_rows_to(rows, torch.float32)

    def decode_rows_to(self, rows: Rows, dtype: torch.dtype) -> Tensor:
        found = decoded_on_gpu(self, rows, dtype)
        if found is not None:
            return found
        return self._decoded(*self._parts(rows), dtype).flatten(1)

    def _decoded(self, codes: Tensor, values: Sequence[Tensor], place: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Return the blocks of words and values at some places, `[n, groups, block]`, in scratch memory."""
        compiled: RowDecoder | None = getattr(self.codec, "decode_rows", None)
        if compiled is not None and dtype in OUTPUTS and decodable(codes, values):
            count = len(codes) if place is None else len(place)
            out = scratch((count, codes.shape[1], self.codec.block), dtype, codes.device, "decode")
            compiled(codes, values, place, out)
            return out
        if place is not None:
            codes, values = codes[place], [value[place] for value in values]
        out = scratch((*codes.shape[:2], self.codec.block), torch.float32, codes.device, "decode")
        self.codec.decode(codes, [value.float() for value in values], out)
        return rounded(out, dtype)

    def product(self, x: Tensor, dtype: torch.dtype, factors: Factors | None = None) -> Tensor:
        """Return `x Wᵀ`, decoded where it is multiplied if that is compiled, see `PackedWeight.product`."""
        compiled: RowMultiplier | None = getattr(self.codec, "multiply_rows", None)
        codes, values, place = self._parts(slice(0, self.rows))
        if compiled is not None and multiplies(x, dtype) and decodable(codes, values):
            return compiled(x, codes, values, place, factors)
        return super().product(x, dtype, factors)

    def add_field_gradients(self, rows: Rows, gradient: Tensor, into: Mapping[str, Tensor]) -> None:
        # Weights are linear in all fields of a block together: decoded from a one in a field and zeros in the others,
        # they say what each of them is multiplied with.
        if any(self.value(field.name).dim() != 2 for field in self.fields):
            super().add_field_gradients(rows, gradient, into)
            return
        codes, _, place = self._parts(rows)
        groups = gradient.view(-1, codes.shape[1], self.codec.block)
        for field, found in zip(self.fields, self._contracted(codes, place, groups), strict=True):
            if field.name not in into:
                continue
            if place is None:
                into[field.name][rows] += found
            else:
                into[field.name].index_add_(0, place, found)

    def _contracted(self, codes: Tensor, place: Tensor | None, gradient: Tensor) -> Iterable[Tensor]:
        """Yield the gradient by each field of the groups at some places, `[n, groups]`, from that by their weights."""
        compiled: RowContractor | None = getattr(self.codec, "contract_rows", None)
        if compiled is not None and contractible(codes, gradient):
            yield from compiled(codes, place, gradient)
            return
        codes = codes if place is None else codes[place]
        for wanted in self.fields:
            ones = [torch.full(codes.shape[:2], float(field is wanted)).to(codes.device) for field in self.fields]
            yield self._decoded(codes, ones, None, torch.float32).mul_(gradient).sum(-1)

    def operands(self, rows: Rows | None = None) -> Operands | None:
        """Return codes, scale and minimum as a kernel reads them, of a codec that says it has ggml's blocks."""
        codes = words_of_blocks(self.layout, self.codes) if getattr(self.codec, "ggml", False) else None
        values = [self.value(field.name) for field in self.fields]
        if codes is None or not all(value.is_contiguous() for value in values):
            return None
        found = [Numbers(value, value.shape[1], 1, self.codec.block, value.shape[1]) for value in values]
        scale, minimum = (*found, None)[:2]
        return Operands("affine", self.rows, self.columns, codes, (scale, None, None, minimum), None, self.row_order)

    def _parts(self, rows: Rows) -> tuple[Tensor, list[Tensor], Tensor | None]:
        """Return words and values of some rows, and their places in them where they have to be looked up."""
        codes, values = self.codes, [self.value(field.name) for field in self.codec.fields]
        place = rows if self.row_order is None else self.row_order[rows]
        if isinstance(place, Tensor):
            return codes, values, place
        if place != slice(0, self.rows):
            codes, values = codes[place], [value[place] for value in values]
        return codes, values, None


class QuantLinear(nn.Module):
    """`y = x Wᵀ + b` over packed words.

    Args:
        packed: the matrix.
        bias: float32 `[out_features]`, or None.
        compute_dtype: dtype of the matrix product; what comes in and goes out keeps its own.

    Attributes:
        weight: None: there is no matrix in memory. Models that look at its dtype before a product see that, as T5 does.
    """

    weight: None = None
    bias: Tensor | None

    def __init__(self, packed: PackedWeight, bias: Tensor | None = None, *, compute_dtype: torch.dtype) -> None:
        super().__init__()
        self.packed = packed
        self.register_buffer("bias", bias)
        self.compute_dtype = compute_dtype
        self.in_features, self.out_features = packed.columns, packed.rows

    def forward(self, x: Tensor, *, factors: Factors | None = None) -> Tensor:
        """Return `x Wᵀ + b`, `[..., out_features]`, in the dtype of `x`.

        Args:
            x: `[..., in_features]`.
            factors: on what goes into the product and what comes out of it, for each block of rows; None for none.
        """
        flat = x.reshape(-1, self.in_features)
        if factors is None and tracked(self.packed, x):
            y = tracked_product(flat, self.packed, self.compute_dtype)
        else:
            y = self.packed.product(flat, self.compute_dtype, factors)
        if self.bias is not None:
            y = (y + self.bias).to(x.dtype)
        return y.view(*x.shape[:-1], self.out_features)

    @property
    def qweight(self) -> Tensor:
        """Packed words, under the name by which other libraries look up the device of a quantized layer."""
        return next(self.packed.buffers())

    def rows(self, x: Tensor, outputs: Rows, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return some of the outputs only, float32 `[..., len(outputs)]`: their rows alone are decoded.

        Args:
            x: `[..., in_features]`.
            outputs: which outputs, a slice or int64 `[n]`.
            dtype: dtype that x and the rows are rounded to. Label logits stay in float32: with factors in bfloat16 a
                logit of 20 is known to 0.03 or so, which a loss would show.
        """
        shape, x = x.shape[:-1], x.reshape(-1, self.in_features).float()
        if tracked(self.packed, x):
            y = tracked_product(x, self.packed, dtype, outputs)
        else:
            y = product(x, self.packed.decode_rows_to(outputs, dtype))
        y = y if self.bias is None else y + self.bias[outputs]
        return y.view(*shape, y.shape[-1])

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, layout={self.packed.layout}"


class QuantEmbedding(nn.Module):
    """Looks rows up in packed words.

    Args:
        packed: the matrix, one row a token.
        scale: factor on every row, as Gemma has it; None for 1.
        dtype: dtype of what comes out.
    """

    def __init__(self, packed: PackedWeight, *, scale: float | None = None, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.packed = packed
        self.scale = scale
        self.dtype = dtype
        self.num_embeddings, self.embedding_dim = packed.rows, packed.columns

    def forward(self, ids: Tensor) -> Tensor:
        """Return the rows of `ids`, `[..., embedding_dim]`."""
        flat = ids.reshape(-1)
        rows = lookup(flat, self.packed) if tracked(self.packed) else self.packed.decode_rows_to(flat, torch.float32)
        own = rows.clone() if self.scale is None else rows * self.scale
        return own.to(self.dtype).view(*ids.shape, self.embedding_dim)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, layout={self.packed.layout}"
