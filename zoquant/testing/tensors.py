"""Looking at bytes: which tensors a module holds, and whether two of them are the same to the bit."""

from collections.abc import Iterator, Mapping, Sequence
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from zoquant.protocol import ScaleView

_DEPTH = 6
_OPAQUE = (str, bytes, int, float, complex, type, FunctionType, MethodType, ModuleType, torch.dtype, torch.device)


def reachable(module: nn.Module) -> dict[str, Tensor]:
    """Return every tensor that hangs on a module, by where it was found.

    Parameters and buffers, and tensors in attributes, dicts, lists and plain objects: a quantized layer's are anywhere.
    """
    return dict(_walk(module, "", _DEPTH, set()))


def same_bits(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors have the same dtype, shape and bytes: -0.0 is not 0.0, NaN equals NaN."""
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    return torch.equal(_bytes(left), _bytes(right))


def codes_of(module: nn.Module, views: Sequence[ScaleView]) -> dict[str, Tensor]:
    """Return a copy of the bytes of every integer tensor of a module, those that belong to its views set to zero."""
    copies: dict[int, tuple[str, Tensor]] = {}
    for path, tensor in reachable(module).items():
        if tensor.is_floating_point() or tensor.is_complex() or hasattr(tensor, "__tensor_flatten__"):
            continue  # what holds other tensors has no storage of its own, and they are reachable, too
        place = tensor.untyped_storage().data_ptr()
        if place not in copies:
            whole = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())
            copies[place] = (path, whole.detach().clone())
    for view in views:
        for values in (view.live, getattr(view, "bytes", None)):
            if values is not None and values.untyped_storage().data_ptr() in copies:
                _blank(copies[values.untyped_storage().data_ptr()][1], values)
    return dict(copies.values())


def _blank(storage: Tensor, values: Tensor) -> None:
    """Set the bytes of `values` within a copy of its storage to zero."""
    size = values.dtype.itemsize
    strides = [stride * size for stride in values.stride()]
    storage.as_strided((*values.shape, size), (*strides, 1), values.storage_offset() * size).zero_()


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().view(-1).view(torch.uint8)


def _walk(thing: Any, path: str, depth: int, seen: set[int]) -> Iterator[tuple[str, Tensor]]:
    if thing is None or isinstance(thing, _OPAQUE) or id(thing) in seen or depth < 0:
        return
    seen.add(id(thing))
    if isinstance(thing, Tensor):
        yield path, thing
    for name, member in _members(thing):
        inside = depth if isinstance(member, nn.Module) else depth - 1
        yield from _walk(member, f"{path}.{name}" if path else str(name), inside, seen)


def _members(thing: Any) -> list[tuple[Any, Any]]:
    if isinstance(thing, Mapping):
        return list(thing.items())
    if isinstance(thing, list | tuple):
        return list(enumerate(thing))
    if isinstance(thing, nn.Module):
        own = {
            name: value for name, value in vars(thing).items() if name not in ("_parameters", "_buffers", "_modules")
        }
        return [*thing._parameters.items(), *thing._buffers.items(), *thing._modules.items(), *own.items()]
    return list(getattr(thing, "__dict__", {}).items())
