"""Layer checkpointing: of a layer of a model its input alone is kept for the backward, which runs the layer again."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from zoquant.errors import UnsupportedLayoutError
from zoquant.optim.layer_stacks import Forward, called_instead, layer_stacks


@contextmanager
def checkpointed(model: nn.Module) -> Iterator[None]:
    """Run the layers of a model again in each backward within a `with`; a forward without gradients is as ever.

    Raises:
        UnsupportedLayoutError: the model has no list of layers.
    """
    layers = [layer for _, stack in layer_stacks(model) for layer in stack]
    if not layers:
        raise UnsupportedLayoutError(
            f"{type(model).__name__}: has no list of layers to keep the inputs of. Train it without checkpointing, in "
            "smaller micro-batches."
        )
    with called_instead(layers, lambda _, forward: partial(_again, forward)):
        yield


def _again(forward: Forward, *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)
