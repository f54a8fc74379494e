"""Layer checkpointing: of a layer of a model its input alone is kept for the backward, which runs the layer again.

The outermost lists of layers are meant, such as `model.layers`, of any model; a forward without gradients is as ever.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from zoquant.errors import UnsupportedLayoutError


@contextmanager
def checkpointed(model: nn.Module) -> Iterator[None]:
    """Run the layers of a model again in each backward within a `with`.

    Args:
        model: the model.

    Raises:
        UnsupportedLayoutError: it has no list of layers.
    """
    layers = [layer for stack in _stacks(model) for layer in stack]
    if not layers:
        raise UnsupportedLayoutError(
            f"{type(model).__name__}: has no list of layers to keep the inputs of. Train it without checkpointing, in "
            "smaller micro-batches."
        )
    before = [layer.__dict__.get("forward") for layer in layers]
    for layer in layers:
        layer.forward = partial(_again, layer.forward)
    try:
        yield
    finally:
        for layer, forward in zip(layers, before, strict=True):
            del layer.__dict__["forward"]
            if forward is not None:
                layer.__dict__["forward"] = forward


def _stacks(model: nn.Module) -> Iterator[nn.ModuleList]:
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and not any(part.isdigit() for part in path.split(".")):
            yield module


def _again(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)
