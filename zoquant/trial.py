"""A forward that only tries a model: what training has put around its layers lets it pass."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn

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
