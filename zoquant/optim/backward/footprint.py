"""What a forward, or a forward and a backward, ask of memory while they run: measured on few examples, without views.

Memory grows with the tokens of a batch and has a part that does not, so that of few examples, times the share of
tokens, is no less than that of many.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from zoquant.errors import UnsupportedLayoutError
from zoquant.native.packed import PackedWeight
from zoquant.optim.backward.layer_checkpoints import checkpointed
from zoquant.optim.backward.live_bytes import LiveBytes
from zoquant.protocol import Role


def of_forward(loss: Callable[[], object]) -> int:
    """Return the most bytes of activations that are alive at a time in a forward."""
    with torch.no_grad(), LiveBytes() as live:
        loss()
    peak: int = live.peak
    return peak


def of_backward(model: nn.Module, loss: Callable[[], Tensor], *, roles: tuple[Role, ...], checkpoint: bool) -> int:
    """Return the most bytes that are alive at a time in a forward and a backward, beside gradients of deltas.

    Args:
        model: the model, all of whose layers are native.
        loss: its loss on some examples.
        roles: what would move.
        checkpoint: as `GradientDescent` takes it.

    Raises:
        UnsupportedLayoutError: there is no list of layers to checkpoint, or the loss has no gradient.
    """
    with checkpointed(model) if checkpoint else nullcontext(), _moving(model, roles), LiveBytes() as live:
        found: object = loss()
        if not isinstance(found, Tensor) or not found.requires_grad:
            raise UnsupportedLayoutError("the loss has no gradient. Train by forwards alone, with ZOSGD.")
        found.backward()  # type: ignore[no-untyped-call]
        del found
    peak: int = live.peak
    return peak


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
