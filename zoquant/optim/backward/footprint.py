"""What a forward, or a forward and a backward, ask of memory while they run: measured on few examples, without views.

After each operation it is c + s·k bytes for k examples of one length: c and s follow from two examples and from three.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from zoquant.errors import UnsupportedLayoutError
from zoquant.native.packed import PackedWeight
from zoquant.optim.backward.layer_checkpoints import checkpointed
from zoquant.optim.backward.live_bytes import LiveBytes
from zoquant.protocol import Role


def of_examples(count: int, two: Sequence[int], three: Sequence[int] | None) -> int:
    """Return the most bytes that are alive at a time with so many examples.

    Args:
        count: how many, all of one length.
        two: bytes alive after each operation with two of them; one alone may take another path.
        three: the same with three; None, or of other operations: then two count for two, and so on.
    """
    if three is None or len(three) != len(two):
        return -(-count // 2) * max(two, default=0)
    return max((first + (count - 2) * (second - first) for first, second in zip(two, three, strict=True)), default=0)


def of_forward(loss: Callable[[], object]) -> list[int]:
    """Return the bytes of activations that are alive after each operation of a forward."""
    with torch.no_grad(), LiveBytes() as live:
        loss()
    trace: list[int] = live.trace
    return trace


def of_backward(
    model: nn.Module, loss: Callable[[], Tensor], *, roles: tuple[Role, ...], checkpoint: bool
) -> list[int]:
    """Return the bytes that are alive after each operation of a forward and a backward, beside gradients of deltas.

    Raises:
        UnsupportedLayoutError: there is no list of layers to checkpoint, or the loss has no gradient.
    """
    with checkpointed(model) if checkpoint else nullcontext(), _moving(model, roles), LiveBytes() as live:
        found: object = loss()
        if not isinstance(found, Tensor) or not found.requires_grad:
            raise UnsupportedLayoutError("the loss has no gradient. Train by forwards alone, with ZOSGD.")
        found.backward()  # type: ignore[no-untyped-call]
        del found
    trace: list[int] = live.trace
    return trace


def fields_of(model: nn.Module, roles: tuple[Role, ...]) -> Iterator[tuple[PackedWeight, str]]:
    """Yield the fields of these roles of every native matrix, tied ones once."""
    for packed in dict.fromkeys(module for module in model.modules() if isinstance(module, PackedWeight)):
        yield from ((packed, field.name) for field in packed.fields if field.role in roles)


@contextmanager
def _moving(model: nn.Module, roles: tuple[Role, ...]) -> Iterator[None]:
    """Let autograd ask for the gradients of fields within a `with`, and drop each as soon as it is there."""
    found = list(fields_of(model, roles))
    before = {packed: packed.moving for packed, _ in found}
    with torch.enable_grad():
        for packed, name in found:
            nothing = torch.zeros((), device=packed.device, requires_grad=True)
            packed.moving = {**packed.moving, name: nothing.expand(packed.value(name).shape)}
    try:
        with torch.enable_grad():
            yield
    finally:
        for packed, moving in before.items():
            packed.moving = moving
