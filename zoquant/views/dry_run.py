"""A forward that only tries a model: what training has put around its layers lets it pass."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

_trying: ContextVar[bool] = ContextVar("trying", default=False)


def trying() -> bool:
    """Whether the forward under way is a trial, so that hooks have to leave it alone."""
    return _trying.get()


@contextmanager
def trial(model: nn.Module) -> Iterator[None]:
    """Try a model within a `with`: without gradients, hooks of probes and second values of pairs."""
    paired: list[Any] = [module for module in model.modules() if getattr(module, "twin", None) is not None]
    twins = [module.twin for module in paired]
    token = _trying.set(True)
    try:
        for module in paired:
            module.twin = None
        with torch.no_grad():
            yield
    finally:
        for module, twin in zip(paired, twins, strict=True):
            module.twin = twin
        _trying.reset(token)


def ordinary_ids(model: nn.Module, count: int) -> Tensor:
    """Return ids from the middle of a vocabulary, int64 `[count]`, on the device of the model.

    Rounding shows most in tokens that mean something else than text, and those stand at the ends.
    """
    language_model: Any = model
    size = int(getattr(language_model.get_input_embeddings(), "num_embeddings", 2 * count))
    device = next(chain(model.parameters(), model.buffers())).device
    return (size // 2 + torch.arange(count, device=device)) % size
