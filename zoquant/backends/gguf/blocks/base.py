"""What the codecs share: cutting blocks into codes and fields, and unpacking bits.

Decoding first gathers the integer codes of a tile as bytes in the order of the weights, then widens them in one
sweep and scales them in place. That is the fastest way in eager torch on a CPU, and no call allocates more than a few
numbers a block: everything as large as the codes lies in scratch memory.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from zoquant.errors import ShapeError
from zoquant.kernels.products.contract import RowContractor, row_contractor
from zoquant.kernels.products.decode import RowDecoder, row_decoder
from zoquant.kernels.products.matmul import RowMultiplier, row_multiplier
from zoquant.kernels.workspace import scratch
from zoquant.native.codec import FieldSpec

D = FieldSpec("d", "scale", torch.float16)
DMIN = FieldSpec("dmin", "scale", torch.float16)
M = FieldSpec("m", "scale", torch.float16)

Unpack = Callable[[Tensor, Sequence[Tensor], Tensor], None]


@dataclass(eq=False)
class BlockCodec:
    """One ggml block type, as `zoquant.native.Codec` has it.

    Attributes:
        name: ggml's name.
        block: weights in a block.
        nbytes: bytes of a block.
        fields: the continuous fields, in the order of the block. They lie side by side at one end of it.
        offsets: byte of the block at which each field starts.
        unpack: writes the weights of codes and fields to a tensor.
        reason: why there is no continuous field; empty where there is one.
        ggml: that `name` is ggml's.
    """

    name: str
    block: int
    nbytes: int
    fields: tuple[FieldSpec, ...]
    offsets: tuple[int, ...]
    unpack: Unpack
    reason: str = ""
    ggml: ClassVar[bool] = True

    def split(self, blocks: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Cut blocks into codes and fields.

        Args:
            blocks: uint8 `[rows, groups, nbytes]`.

        Returns:
            The codes, uint8 `[rows, groups, code bytes]`, and one tensor `[rows, groups]` a field; all contiguous.

        Raises:
            ShapeError: the blocks have another size.
        """
        codes, values = self.cut(blocks)
        return codes.contiguous(), [value.contiguous() for value in values]

    def cut(self, blocks: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return what `split` returns, as views of the blocks."""
        if blocks.dim() != 3 or blocks.shape[-1] != self.nbytes:
            raise ShapeError(
                f"{self.name}: expected blocks [rows, groups, {self.nbytes}], got {tuple(blocks.shape)}. "
                "View the bytes of the tensor as blocks first."
            )
        values = [
            blocks[..., start : start + field.dtype.itemsize].view(field.dtype).squeeze(-1)
            for field, start in zip(self.fields, self.offsets, strict=True)
        ]
        first = self.nbytes - self.code_bytes if self.offsets[:1] == (0,) else 0
        return blocks[..., first : first + self.code_bytes], values

    @property
    def code_bytes(self) -> int:
        """Bytes of a block without its fields."""
        return self.nbytes - sum(field.dtype.itemsize for field in self.fields)

    @property
    def decode_rows(self) -> RowDecoder | None:
        """The compiled decoder, where there is one: the same bits as `decode`."""
        return row_decoder(self.name)

    @property
    def multiply_rows(self) -> RowMultiplier | None:
        """The compiled product, where there is one: of the same weights, rounded to bfloat16."""
        return row_multiplier(self.name)

    @property
    def contract_rows(self) -> RowContractor | None:
        """The compiled gradient by fields, where there is one."""
        return row_contractor(self.name)

    def decode(self, codes: Tensor, values: Sequence[Tensor], out: Tensor) -> None:
        """Write the weights of some blocks to `out`, see `Codec.decode`."""
        self.unpack(codes, values, out)


def temporary(slot: str, like: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return uninitialized scratch memory on the device of `like`; another slot for every tensor in use at once."""
    return scratch(shape, dtype, like.device, f"gguf {slot}")


def planes(packed: Tensor, bits: int, run: int, *, lift: int = 0, slot: str = "planes") -> Tensor:
    """Unpack small integers that are packed in planes: the lowest bits of all bytes of a run come first.

    Eight bytes are shifted at once. What a shift brings over from a neighbour is masked away at the end.

    Args:
        packed: uint8 `[..., runs * run]`.
        bits: bits of an integer: 1, 2 or 4.
        run: bytes of a run, a multiple of 16.
        lift: bits to shift the integers up by.
        slot: scratch memory of the result.

    Returns:
        uint8 `[..., runs * (8 // bits) * run]` in scratch memory.
    """
    count, runs = 8 // bits, packed.shape[-1] // run
    out = temporary(slot, packed, (*packed.shape[:-1], runs, count, run), torch.uint8)
    plane = temporary("plane", packed, (*packed.shape[:-1], runs, run), torch.uint8)
    plane.view(packed.shape).copy_(packed)
    source, target = words(plane), words(out)
    for index in range(count):
        if index:
            plane.view(torch.int64).bitwise_right_shift_(bits)
        target[..., index, :].copy_(source)
    eight = out.view(torch.int64).bitwise_and_(((1 << bits) - 1) * 0x0101010101010101)
    if lift:
        eight.bitwise_left_shift_(lift)
    return out.flatten(-3)


def words(tensor: Tensor) -> Tensor:
    """View bytes as the widest words that copy moves at once: 16 bytes, which torch has as complex128."""
    return tensor.view(torch.int64 if tensor.device.type == "mps" else torch.complex128)


def signed(codes: Tensor, offset: int) -> Tensor:
    """Subtract `offset` from bytes in place; return them as int8."""
    return codes.view(torch.int8).sub_(offset)


def steps(factor: Tensor, integers: Tensor, slot: str = "steps") -> Tensor:
    """Return the scale of every sub-block, `factor * integers`, float32 `[rows, groups, subs, 1]`."""
    scales = temporary(slot, integers, tuple(integers.shape), torch.float32).copy_(integers)
    return scales.mul_(factor.unsqueeze(-1)).unsqueeze(-1)


def subs(out: Tensor, width: int) -> Tensor:
    """View `[rows, groups, block]` as sub-blocks `[rows, groups, subs, width]`."""
    return out.view(*out.shape[:-1], -1, width)
