"""Ready-made views: over a tensor, over the member of a dict, and over values strewn through packed bytes."""

from collections.abc import MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

from zoquant.errors import ShapeError, ValueRangeError
from zoquant.protocol import Role


def check_value(name: str, shape: tuple[int, ...], value: Tensor) -> None:
    """Refuse a value that a view of this shape cannot store.

    Raises:
        ShapeError: the shape differs.
        ValueRangeError: a number is NaN or infinite.
    """
    if tuple(value.shape) != shape:
        raise ShapeError(
            f"{name}: write() got {tuple(value.shape)}, expected {shape}. "
            "Write a tensor of the shape that read() returned."
        )
    if not torch.isfinite(value).all():
        raise ValueRangeError(f"{name}: write() got NaN or infinity, expected finite numbers. Nothing was written.")


def clamp_to(dtype: torch.dtype, value: Tensor) -> Tensor:
    """Return `value` within the finite range of `dtype`."""
    limit = torch.finfo(dtype).max
    return value.clamp(-limit, limit)


def store(target: Tensor, value: Tensor) -> None:
    """Copy `value` into `target`, whether or not `target` was made under inference mode.

    An in-place write to an inference tensor raises after it has happened, so the mode is chosen beforehand.
    """
    with torch.inference_mode(target.is_inference()), torch.no_grad():
        target.copy_(value)


class TensorView:
    """A view of a plain tensor in disk order: a parameter, a buffer, an attribute.

    Args:
        name: local name of the view.
        role: what the values are to the layer.
        tensor: the storage that the forward reads.
        dtype: dtype of the values on disk when the storage is wider; None for the storage's own.
    """

    def __init__(self, name: str, role: Role, tensor: Tensor, *, dtype: torch.dtype | None = None) -> None:
        self.name, self.role = name, role
        self._dtype = dtype
        self._held = tensor.detach()
        self.live: Tensor | None = self._held if self.dtype == tensor.dtype else None

    @property
    def _tensor(self) -> Tensor:
        return self._held

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self._tensor.shape)

    @property
    def dtype(self) -> torch.dtype:
        return self._dtype or self._tensor.dtype

    @property
    def device(self) -> torch.device:
        return self._tensor.device

    def read(self) -> Tensor:
        """Return a float32 copy."""
        return self._tensor.detach().to(torch.float32, copy=True)

    def write(self, value: Tensor) -> None:
        """Store `value`, cast to `dtype`, even where the storage is wider: the file will hold no more than that.

        Raises:
            ShapeError, ValueRangeError: see `check_value`.
        """
        check_value(self.name, self.shape, value)
        store(self._tensor, clamp_to(self.dtype, value).to(self.dtype))


class MemberView(TensorView):
    """A view of a tensor that lives in a dict, such as HQQ's `meta["scale"]`: neither parameter nor buffer.

    Args:
        name: local name of the view.
        role: what the values are to the layer.
        members: the dict; whoever replaces the member is followed.
        key: the member.
        dtype: dtype of the values on disk when what is held is wider; None for that of the member.
    """

    def __init__(
        self, name: str, role: Role, members: MutableMapping[str, Any], key: str, *, dtype: torch.dtype | None = None
    ) -> None:
        self.name, self.role = name, role
        self._dtype = dtype
        self._members, self._key = members, key
        self.live = None

    @property
    def _tensor(self) -> Tensor:
        tensor: Tensor = self._members[self._key]
        return tensor


class BytesView:
    """A view of values strewn through packed bytes, such as `d` of every GGUF block.

    Args:
        name: local name of the view.
        role: what the values are to the layer.
        packed: uint8 `[n]`, the bytes that the forward reads.
        offset: bytes from the start to the first value.
        shape: logical shape.
        strides: bytes between neighbours, one number a dimension.
        dtype: dtype of the values in the bytes.

    Attributes:
        bytes: the bytes of the values, uint8 `[*shape, itemsize]`: the conformance kit tells them from codes by it.
    """

    live: Tensor | None = None

    def __init__(
        self,
        name: str,
        role: Role,
        packed: Tensor,
        *,
        offset: int,
        shape: Sequence[int],
        strides: Sequence[int],
        dtype: torch.dtype,
    ) -> None:
        self.name = name
        self.role = role
        self.shape = tuple(shape)
        self.dtype = dtype
        self.device = packed.device
        self.bytes = bytes_of(packed, offset, self.shape, tuple(strides), dtype)

    def read(self) -> Tensor:
        """Return a float32 copy."""
        return values_of(self.bytes, self.dtype).to(torch.float32)

    def write(self, value: Tensor) -> None:
        """Store `value`, cast to `dtype`, byte by byte.

        Raises:
            ShapeError, ValueRangeError: see `check_value`.
        """
        check_value(self.name, self.shape, value)
        cast = clamp_to(self.dtype, value).to(self.dtype).contiguous()
        store(self.bytes, cast.view(*self.shape, 1).view(torch.uint8))


def bytes_of(
    packed: Tensor, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], dtype: torch.dtype
) -> Tensor:
    """Return the bytes of values strewn through `packed`, as a view uint8 `[*shape, itemsize]`.

    Raises:
        ShapeError: a value would lie outside of `packed`.
    """
    last = offset + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True)) + dtype.itemsize
    if offset < 0 or last > packed.numel():
        raise ShapeError(
            f"values of shape {shape} with strides {strides} at byte {offset} end at byte {last}, "
            f"expected at most {packed.numel()}. The file is shorter than its header says."
        )
    return packed.as_strided((*shape, dtype.itemsize), (*strides, 1), offset + packed.storage_offset())


def values_of(place: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a copy of the values whose bytes `bytes_of` gave. A copy, since torch reads no value at an odd address."""
    return place.clone(memory_format=torch.contiguous_format).view(dtype).squeeze(-1)
